"""Tables and pictures of the demo's runs, and one page that contains all of them.

python experiments/demo/report.py runs/demo

Metrics are those that a run logged for its best checkpoint, pictures those of its last validation.
`attention-vision profile` measured size and speed (costs.csv); `attention-vision explain` drew
where the generator looked.
"""

import csv
import sys
from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from attention_vision.report.html import STYLE

COSTS, PAGE, TITLE = "costs.csv", "index.html", "Attention in digits"
RUN_PICTURES = "{}/pictures/val_{}_*.png"


@dataclass(frozen=True)
class Section:
    """A task of the demo.

    Attributes:
        title: of its table.
        models: name of a run -> name of its model.
        metrics: start of a logged key -> name of a column and format of a number. The largest
            value of the first one chose the best checkpoint.
        pictures: name of a file -> caption, and patterns of the pictures that it shows, one below
            the other; of a pattern the last file.
        jobs: besides the runs, that have to be done.
    """

    title: str
    models: dict[str, str]
    metrics: dict[str, tuple[str, str]]
    pictures: dict[str, tuple[str, ...]]
    jobs: tuple[str, ...] = ()


SECTIONS = (
    Section(
        "355 held-out digits",
        {"vit_digits": "ViT", "se_resnet_digits": "SE-ResNet-8"},
        {"val/top1": ("accuracy", "{:.2%}")},
        {
            "where_they_look.png": (
                "Where each classifier looks: above ViT, below SE-ResNet-8",
                RUN_PICTURES.format("vit_digits", "panel"),
                RUN_PICTURES.format("se_resnet_digits", "panel"),
            )
        },
    ),
    Section(
        "200 held-out scenes of digits",
        {"detr_digits": "DETR", "deformable_detr_digits": "Deformable DETR"},
        {"val/ap": ("AP", "{:.3f}"), "val/ap50": ("AP50", "{:.3f}")},
        {
            "boxes.png": (
                "What DETR finds, and below Deformable DETR; in white what there is",
                RUN_PICTURES.format("detr_digits", "panel"),
                RUN_PICTURES.format("deformable_detr_digits", "panel"),
            ),
            "what_queries_attend_to.png": (
                "What the queries of DETR's best detections attend to",
                RUN_PICTURES.format("detr_digits", "attention"),
            ),
        },
    ),
    Section(
        "2000 generated digits, as SE-ResNet-8 sees them (at best a score of 10)",
        {"sagan_digits": "SAGAN"},
        {"val/score": ("score", "{:.2f}"), "val/classifier_accuracy": ("recognised", "{:.1%}")},
        {
            "generated_digits.png": (
                "What SAGAN draws, a class in each row",
                RUN_PICTURES.format("sagan_digits", "samples"),
            ),
            "where_the_generator_looked.png": (
                "Where the generator looked from the green points",
                "sagan_digits/explained/generated.png",
            ),
        },
        ("attention",),
    ),
)
RUNS = [run for section in SECTIONS for run in section.models]


def write(folder: Path, done: Collection[str]) -> list[Path]:
    """Write the page and its pictures, as far as jobs are done; return the pictures' paths."""
    parts, files = [f"<h1>{TITLE}</h1>"], []
    for section in finished(done):
        table = tabulate(rows(folder, section), "keys", "html", disable_numparse=True)
        parts += [f"<h2>{escape(section.title)}</h2>", f'<div class="scroll">{table}</div>']
        for name, (caption, *patterns) in section.pictures.items():
            files.append(folder / name)
            stacked([sorted(folder.glob(pattern))[-1] for pattern in patterns]).save(files[-1])
            source = f"data:image/png;base64,{b64encode(files[-1].read_bytes()).decode()}"
            image = f'<img src="{source}" alt="{caption}">'
            parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    page = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<link rel="icon" href="data:,">\n<title>{TITLE}</title>\n<style>{STYLE}',
        "figure { max-width: none; margin: 1.5rem 0; } img { max-width: 100%; }",
        "</style>\n</head>\n<body>\n<main>",
        *parts,
        "</main>\n</body>\n</html>\n",
    ]
    (folder / PAGE).write_text("\n".join(page))
    return files


def text(folder: Path, done: Collection[str]) -> str:
    """The tables, and where the pictures are."""
    parts = []
    for section in finished(done):
        table = tabulate(
            rows(folder, section), "keys", "plain", disable_numparse=True, stralign="right"
        )
        pictures = [f"{one[0]}: {folder / name}" for name, one in section.pictures.items()]
        parts += [section.title, "", table, "", *pictures, ""]
    return "\n".join(parts)


def finished(done: Collection[str]) -> list[Section]:
    """Sections whose runs and other jobs are done."""
    return [one for one in SECTIONS if set(done).issuperset((*one.models, *one.jobs))]


def rows(folder: Path, section: Section) -> list[dict[str, str]]:
    """Rows of a section's table, a model each; size and speed where they were measured."""
    costs = {row["name"]: row for row in read(folder / COSTS)}
    table = []
    for run, model in section.models.items():
        metrics, row = best(folder / run, next(iter(section.metrics))), {"model": model}
        for start, (column, form) in section.metrics.items():
            row[column] = form.format(next(v for k, v in metrics.items() if k.startswith(start)))
        if cost := costs.get(run) or costs.get(f"{run}, generator"):
            row["parameters"] = f"{int(cost['parameters']):,}"
            row["images/s"] = f"{float(cost['images_per_second']):,.0f}"
        table.append(row)
    return table


def best(run: Path, key: str) -> dict[str, float]:
    """The logged numbers of the best checkpoint: the row with the largest value of `key`."""
    measured = [row for row in read(run / "metrics.csv") if row[key]]
    row = max(measured, key=lambda row: float(row[key]))
    return {name: float(cell) for name, cell in row.items() if cell}


def read(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def stacked(files: list[Path]) -> Image.Image:
    """Pictures one below the other."""
    parts = [Image.open(file) for file in files]
    size = max(part.width for part in parts), sum(part.height for part in parts)
    page, top = Image.new("RGB", size, "white"), 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


if __name__ == "__main__":
    demo, every = Path(sys.argv[1]), [*RUNS, "attention"]
    write(demo, every)
    print(text(demo, every))
