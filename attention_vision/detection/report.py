"""Report of a detector's evaluation: tables, figures, the worst images, and one HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib import rc_context
from PIL import Image as Pillow

from attention_vision.data.loading import data_of
from attention_vision.detection.average_precision import Image
from attention_vision.detection.error_analysis import (
    FALSE_KINDS,
    KINDS,
    MISSED,
    RECALLS,
    SCORES,
    Evaluation,
    ImageErrors,
    analyze,
    confusion_matrix,
    worst_first,
)
from attention_vision.detection.error_figures import (
    KIND_COLORS,
    draw_errors,
    error_figures,
    error_panel,
)
from attention_vision.detection.figures import WHITE, class_name
from attention_vision.ranges import Count, checked
from attention_vision.report.html import figure_part, html_table, page
from attention_vision.report.plots import SETTINGS
from attention_vision.report.tables import Record, as_text, csv_text
from attention_vision.report.text_table import aligned
from attention_vision.training.logging import (
    draws_pictures,
    image_loggers,
    run_folder,
    writes_reports,
)
from attention_vision.training.progress import say
from attention_vision.training.steps import step_number
from attention_vision.visualization.confusion import MOST_DRAWN, confusion_csv, confusion_figure
from attention_vision.visualization.drawing import pixels
from attention_vision.yaml_json import write_atomically

LONGEST = 480  # pixels of the longer side of a worst image
MOST_PRINTED = 20  # classes
MOST_COUNTED = 1000  # classes of a confusion matrix, which is 8 MB then
BACKGROUND = "background"
TITLES = {
    "precision_recall": (
        "Precision and recall",
        "At IoU 0.5, interpolated as for AP50, which is the area under a line.",
    ),
    "f1": (
        "F1 by score",
        "Of the detections with that score or more. The dotted line has the largest mean F1; all"
        " counts on this page are of detections from there on.",
    ),
    "errors": (
        "Kinds of error",
        "AP50 that correcting the errors of one kind would gain (TIDE, arXiv 2008.08115).",
    ),
    "confusion": (
        "Confusion matrix",
        "Rows are true classes, columns detected ones. The last column are objects that were not"
        " found, the last row detections of none.",
    ),
}


class Measured(NamedTuple):
    """An evaluation to report on."""

    split: str
    weights: str  # their step, as in metrics.csv, or the name of their checkpoint
    numbers: dict[str, float]  # see `average_precision.NUMBERS`
    class_ap: dict[str, float]
    images: dict[int, Image]


@checked
class DetectionReport(Callback):
    """Reports on each `validate` and `test`, and on the last validation of `fit`.

    Into the run folder: `report.html`, a page that needs nothing else; `per_class.csv`;
    `precision_recall.csv` (COCO's interpolation, at IoU 0.5); `f1.csv`; `confusion.csv` (with
    background); `errors.csv` (AP50 lost to each kind of error); `images.csv`, the worst first. A
    test's are `report_test.html` and so on. The same as pictures, in pictures/ and for the loggers
    of `fit`, which `--pictures false` leaves out; and as tables for W&B. Definitions:
    `detection/error_analysis.py`.

    Rank zero writes, from what `COCOAveragePrecision` has gathered of all processes. Expects a
    module with `average_precision`, by split.

    Args:
        images: most of the worst images that are drawn.
    """

    def __init__(self, images: Count = 12):
        self.images = images
        self._last: Measured | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._keep(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._keep(trainer, module, "test")

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer)

    def on_test_end(self, trainer: Trainer, module: Any) -> None:
        self._report(trainer)

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        self._report(trainer)

    def _keep(self, trainer: Trainer, module: Any, split: str) -> None:
        if trainer.sanity_checking:
            return
        if not writes_reports(trainer):
            return
        metric = module.average_precision[split]
        numbers = metric.compute()  # of all processes; all compute, and the module does not again
        if trainer.is_global_zero:
            weights = Path(str(trainer.ckpt_path or "initial weights")).name
            if trainer.state.fn == TrainerFn.FITTING:
                weights = f"step {step_number(trainer):,}"
            self._last = Measured(split, weights, numbers, metric.per_class(), metric.gathered)

    def _report(self, trainer: Trainer) -> None:
        measured, self._last = self._last, None
        folder = run_folder(trainer)
        # Lightning's own default is the current folder, where nobody expects a file.
        nowhere = getattr(trainer, "fast_dev_run", False) or folder == Path.cwd()
        if measured is None or nowhere or not (evaluation := analyze(measured.images)).classes:
            return
        data = data_of(trainer)
        names = [str(name) for name in getattr(data, "class_names", ())]
        source = getattr(getattr(data, f"{measured.split}_images", None), "source", None)
        draws = draws_pictures(trainer)
        report = Report(measured, evaluation, names, source, self.images if draws else 0)
        say(report.text())
        report.write(folder)
        if draws:
            pictures = report.pictures()
            for logger in image_loggers(trainer):
                for name, picture in pictures.items():
                    logger.log_image(f"{measured.split}/{name}", [picture])
            if not trainer.loggers:  # of `validate` and `test`
                (folder / "pictures").mkdir(exist_ok=True)
                for name, picture in pictures.items():
                    file = folder / "pictures" / f"{measured.split}_{name}.png"
                    Pillow.fromarray(picture).save(file)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, (head, *rows) in report.tables().items():
                    key = f"{measured.split}/{name}"
                    logger.log_table(key, columns=[str(column) for column in head], data=rows)


class Report:
    """Tables, figures and page of an evaluation.

    Args:
        measured, evaluation: its numbers and errors.
        names: of the labels; without any, their numbers are written.
        source: the images, whose `image_ids` find those that are drawn; see `DetectionSource`.
        images: how many are drawn, at most.
    """

    def __init__(
        self,
        measured: Measured,
        evaluation: Evaluation,
        names: Sequence[str],
        source: Any,
        images: int,
    ):
        self.measured, self.evaluation, self.names = measured, evaluation, names
        labels = [*evaluation.classes, *evaluation.matches.labels.tolist()]
        count = len(names) or 1 + max(labels)
        self.confusion_names = [*(class_name(names, label) for label in range(count)), BACKGROUND]
        self.confusion = None
        if count <= MOST_COUNTED:
            self.confusion = confusion_matrix(evaluation, count)
        self.worst = worst_first(evaluation)
        figures = error_figures(evaluation, names)
        if self.confusion is not None and count <= MOST_DRAWN:
            with rc_context(SETTINGS):
                figures["confusion"] = confusion_figure(
                    self.confusion, self.confusion_names, "objects"
                )
        self.figures = {name: pixels(figure) for name, figure in figures.items()}
        ids = getattr(source, "image_ids", ())
        self.index_of = {int(image_id): index for index, image_id in enumerate(ids)}
        self.files = getattr(source, "files", None)
        self.drawings = {
            one.image_id: self.drawing(source, one)
            for one in self.worst[:images]
            if one.errors and one.image_id in self.index_of
        }

    def drawing(self, source: Any, one: ImageErrors) -> Pillow.Image:
        image, _, _ = source[self.index_of[one.image_id]]
        index = self.evaluation.matches.images.index(one.image_id)
        return draw_errors(image, self.evaluation, index, self.names, LONGEST)

    def file_of(self, image_id: int) -> str:
        """Name of the file of an image; empty where there is none."""
        if self.files is None or image_id not in self.index_of:
            return ""
        return Path(self.files[self.index_of[image_id]]).name

    def tables(self) -> dict[str, list[Record]]:
        """Tables by name, with a header each."""
        return {"per_class": self.per_class(), "errors": self.errors(), "images": self.of_images()}

    def per_class(self) -> list[Record]:
        """Objects and AP, and at the threshold precision, recall and F1, of each class."""
        evaluation, here = self.evaluation, self.evaluation.at_threshold
        rows: list[Record] = [
            ["class", "objects", "ap", "ap50", "precision", "recall", "f1", "score"]
        ]
        for index, label in enumerate(evaluation.classes):
            name = class_name(self.names, label)
            rows.append(
                [
                    as_text(name),
                    int(evaluation.objects[index]),
                    self.measured.class_ap.get(name),
                    evaluation.curves[index].average_precision,
                    finite(evaluation.precision[index, here]),
                    float(evaluation.recall[index, here]),
                    float(evaluation.f1[index, here]),
                    evaluation.threshold,
                ]
            )
        return rows

    def errors(self) -> list[Record]:
        """AP50 lost to each kind of error, and its count, of all and from the threshold."""
        matches, shown = self.evaluation.matches, self.evaluation.shown
        rows: list[Record] = [["kind", "ap50_lost", "count", "count_from_score"]]
        for kind, gain in self.evaluation.gains.items():
            if kind in KINDS:
                of_kind = matches.kind == KINDS.index(kind)
                counts: Record = [int(of_kind.sum()), int((of_kind & shown).sum())]
            elif kind == MISSED:
                counts = [int(matches.missed.sum()), None]
            else:
                continue
            rows.append([kind, gain, *counts])
        gains, false = self.evaluation.gains, ~matches.correct
        unfound = len(matches.true_labels) - int(matches.correct.sum())
        late = unfound + int((matches.correct & ~shown).sum())
        counts = [int(false.sum()), int((false & shown).sum())]
        rows.append(["all false detections", gains["false positives"], *counts])
        rows.append(["all objects not found", gains["false negatives"], unfound, late])
        return rows

    def of_images(self) -> list[Record]:
        """Errors of each image at the threshold, the worst first."""
        rows: list[Record] = [
            ["image_id", "file_name", "errors", "objects", "found", MISSED, *FALSE_KINDS]
        ]
        for one in self.worst:
            counts = [one.errors, one.objects, one.found, one.missed, *one.false.values()]
            rows.append([one.image_id, as_text(self.file_of(one.image_id)), *counts])
        return rows

    def curves(self) -> dict[str, list[Record]]:
        """Points of the curves: precision by recall, and precision, recall and F1 by score."""
        evaluation = self.evaluation
        by_recall: list[Record] = [["class", "recall", "precision", "score"]]
        by_score: list[Record] = [["class", "score", "precision", "recall", "f1"]]
        for index, label in enumerate(evaluation.classes):
            name = as_text(class_name(self.names, label))
            points = zip(RECALLS, *evaluation.curves[index], strict=True)
            by_recall += [[name, *map(float, point)] for point in points]
            columns = (evaluation.precision, evaluation.recall, evaluation.f1)
            points = zip(SCORES[::10], *(column[index, ::10] for column in columns), strict=True)
            by_score += [[name, *map(finite, point)] for point in points]
        return {"precision_recall": by_recall, "f1": by_score}

    def pictures(self) -> dict[str, np.ndarray]:
        """The figures, and `worst`, as (H, W, 3) uint8."""
        worst = {"worst": error_panel(list(self.drawings.values()))} if self.drawings else {}
        return self.figures | worst

    def text(self) -> str:
        """AP, precision, recall and F1 of the classes with the least AP, as a table."""
        head, *rows = self.per_class()
        rows = sorted(rows, key=lambda row: float(row[2] or 0))[:MOST_PRINTED]
        shown = [[str(cell) for cell in head[:-1]]]
        shown += [[str(name), str(count), *map(decimals, rest[:-1])] for name, count, *rest in rows]
        few = f", the {MOST_PRINTED} with the least AP" if len(rows) == MOST_PRINTED else ""
        return (
            f"{self.measured.split}: AP of each class{few}; precision, recall and F1 of detections"
            f" with a score from {self.evaluation.threshold:.3g}\n"
            f"{aligned(shown, right=range(1, len(head) - 1))}"
        )

    def write(self, folder: Path) -> None:
        """Write the tables and the page; all files are replaced."""
        ending = "" if self.measured.split == "val" else f"_{self.measured.split}"
        for name, rows in (self.tables() | self.curves()).items():
            write_atomically(folder / f"{name}{ending}.csv", csv_text(rows))
        if self.confusion is not None:
            text = confusion_csv(self.confusion, self.confusion_names)
            write_atomically(folder / f"confusion{ending}.csv", text)
        file = folder / f"report{ending}.html"
        write_atomically(file, self.page(folder.name))
        say(f"report: {file}")

    def page(self, run: str) -> str:
        """Render the page of the run of this name."""
        measured, evaluation = self.measured, self.evaluation
        numbers = {name: value for name, value in measured.numbers.items() if value >= 0}
        objects, images = int(evaluation.objects.sum()), len(evaluation.matches.images)
        title = f"{run}: AP {numbers['ap']:.3f} on {measured.split}"
        facts = (
            f"{measured.weights}: {images:,} images, {objects:,} objects of"
            f" {len(evaluation.classes)} classes. Counts are of detections with a score of"
            f" {evaluation.threshold:.3g} or more, where the mean F1 is largest."
        )
        right = list(range(1, 12))
        return page(
            title,
            [
                f"<h1>{escape(title)}</h1>",
                f'<p class="soft">{escape(facts)}</p>',
                html_table([list(numbers), [decimals(value) for value in numbers.values()]], right),
                "<h2>Classes</h2>",
                html_table(in_words(self.per_class()), right),
                figure_row(self.figures),
                "<h2>Errors</h2>",
                html_table(in_words(self.errors()), right),
                self.worst_images(),
            ],
        )

    def worst_images(self) -> str:
        """Render the images with the most errors."""
        if not self.drawings:
            return ""
        colors = {"true box, found": WHITE, "true box, not found": KIND_COLORS[MISSED]}
        colors |= {f"detection: {kind}": KIND_COLORS[kind] for kind in KINDS}
        legend = "".join(
            f'<li><span style="display: inline-block; width: .8em; height: .8em; border: 1px solid;'
            f' background: rgb{color}"></span> {escape(text)}</li>'
            for text, color in colors.items()
        )
        by_id = {one.image_id: one for one in self.worst}
        parts = []
        for image_id, drawing in self.drawings.items():
            one = by_id[image_id]
            kinds = {MISSED: one.missed, **one.false}
            words = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            text = f"{one.found} of {one.objects} objects found; {words}"
            name = self.file_of(image_id) or f"image {image_id}"
            parts.append(figure_part(name, as_img(drawing), text))
        rows = "\n".join(parts)
        return (
            f'<h2>Worst images</h2>\n<ul class="remarks soft">{legend}</ul>\n'
            f'<div class="figures">\n{rows}\n</div>'
        )


def figure_row(figures: Mapping[str, np.ndarray]) -> str:
    """Render the figures, side by side if the screen is wide enough."""
    parts = []
    for name, figure in figures.items():
        title, caption = TITLES[name]
        parts.append(figure_part(title, as_img(Pillow.fromarray(figure), "png"), caption))
    return '<div class="figures">\n' + "\n".join(parts) + "\n</div>"


def as_img(picture: Pillow.Image, kind: str = "jpeg") -> str:
    """Render a picture as an <img> that contains it, as a JPEG or PNG."""
    content = io.BytesIO()
    picture.save(content, kind, quality=85)
    text = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind};base64,{text}">'


def in_words(rows: Sequence[Record]) -> list[list[str]]:
    """Cells as text: numbers with three decimals, whole ones as they are."""
    return [
        [decimals(cell) if isinstance(cell, float) else words(cell) for cell in row] for row in rows
    ]


def finite(value: float) -> float | None:
    """A number, or None for NaN, an empty cell."""
    return float(value) if value == value else None


def words(cell: str | float | None) -> str:
    return "" if cell is None else str(cell)


def decimals(value: str | float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
