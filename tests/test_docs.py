"""Every command and Python block of the README and of docs/ runs, or says why it is not run.

The blocks of a page run in its order, in a folder of its own that has the experiments, four tiny
runs in the place of the demo's, and small stand-ins for PHOTOS, DATA and D. A block whose first
line is `# NAME.py` or `# NAME.yaml` is that file. Commands run in this process; trainings get the
laptop's profile and end after a step.
"""

import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import attention_vision
from attention_vision.__main__ import main
from attention_vision.runs.command import parse

pytest.importorskip("sklearn")  # the digits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
LANGUAGES = {"bash", "python", "yaml", ""}
ROOMS = (
    *("attention", "backbones", "checkpoints", "runs"),
    *("classification", "detection", "generation"),
)
LAPTOP = "experiments/profiles/laptop.yaml"
FEW = {
    "threads": 1,
    "trainer": {
        "max_epochs": 1,
        "check_val_every_n_epoch": 1,
        "limit_train_batches": 1,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
    },
}
LOADING = ["--data.batch_size", "2", "--data.num_workers", "0"]
SMALLER = {  # what would otherwise be made before the first step
    "se_resnet_digits.yaml": ["--data.cluttered", "0"],
    "detr_digits.yaml": ["--data.scenes", "4", "--data.val_scenes", "2"],
    "sagan_digits.yaml": ["--data.batch_size", "10", "--model.scorer.samples", "10"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def file(self) -> str | None:
        found = FILE.match(self.text)
        return found and found[1]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"], found["text"], found["reason"])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def shortened(words: list[str]) -> list[str]:
    """A training that ends after a step; other commands as they are."""
    match words:
        case ["study", "run", *rest] if "--dry-run" not in rest and "--launcher" not in rest:
            seeds = [] if "--seeds" in rest else ["--seeds", "0", "1"]
            return [*words, *seeds, "--jobs", "2", "--profile", LAPTOP, "few_of_a_study.yaml"]
        case ["data", *_]:
            return words
        case [_, "fit", *rest]:
            files = {Path(word).name for word in rest}
            given = {word.rpartition(".")[0] or word for word in rest}
            more = [flag for file in files & SMALLER.keys() for flag in SMALLER[file]]
            if "--data" in given or {"Unscored"} & {*rest}:  # another class than the file's
                more = []
            return [*words, *LOADING, *more, "-c", LAPTOP, "-c", "few.yaml"]
    return words


def run(words: list[str]) -> None:
    assert words[0] == "attention-vision", f"mark the block as not run: {' '.join(words)}"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(shortened(words[1:]))
        except SystemExit as end:  # --help
            code = end.code or 0
    assert code == 0, f"{' '.join(words)}: exit code {code}: {said.getvalue()[-300:]}"


def write_few() -> None:
    Path("few.yaml").write_text(yaml.safe_dump(FEW))
    smaller = {"data": {"init_args": {"batch_size": 10}}}
    Path("few_of_a_study.yaml").write_text(yaml.safe_dump(FEW | smaller))


def draw_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def draw_own_data(folder: Path) -> None:
    """Small sets in the layouts of the guide on own data."""
    for name in ("rose", "tulip"):
        draw_images(folder / "FLOWERS" / name, 10)
    files = [*draw_images(folder / "DOGS" / "images", 8), *draw_images(folder / "NAMED", 8)]
    for number, file in enumerate(files[8:]):
        file.rename(file.with_name(f"{('rose', 'tulip')[number % 2]}_{number}.png"))
    rows = [f"{file.stem},{('pug', 'boxer')[number % 2]}" for number, file in enumerate(files[:8])]
    (folder / "DOGS" / "labels.csv").write_text("\n".join(["id,breed", *rows]))
    for split in ("train", "valid"):
        images = draw_images(folder / "CARS" / split, 2)
        (folder / "CARS" / split / "_annotations.coco.json").write_text(instances_of(images))
    (folder / "RACCOONS" / "annotations").mkdir(parents=True)
    for file in draw_images(folder / "RACCOONS" / "images", 4):
        box = "<xmin>8</xmin><ymin>8</ymin><xmax>32</xmax><ymax>40</ymax>"
        (folder / "RACCOONS" / "annotations" / f"{file.stem}.xml").write_text(
            f"<annotation><filename>{file.name}</filename>"
            "<size><width>64</width><height>48</height><depth>3</depth></size>"
            f"<object><name>raccoon</name><bndbox>{box}</bndbox></object></annotation>"
        )
    for split in ("train", "valid"):
        (folder / "SHIPS" / split / "labels").mkdir(parents=True)
        for file in draw_images(folder / "SHIPS" / split / "images", 2):
            label = folder / "SHIPS" / split / "labels" / f"{file.stem}.txt"
            label.write_text("0 0.5 0.5 0.25 0.5\n")
    (folder / "SHIPS" / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [ship]\n"
    )
    for number, file in enumerate(draw_images(folder / "RETINAS" / "images", 4)):
        mask = np.full((48, 64), 255 * (np.arange(64) > 20), np.uint8)
        (folder / "RETINAS" / "1st_manual").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "RETINAS/1st_manual" / f"{number:02}_manual1.png")
        file.rename(file.with_name(f"{number:02}_training.png"))


def instances_of(files: list[Path]) -> str:
    """A COCO file with an object in each image."""
    images = [
        {"id": number, "file_name": file.name, "width": 64, "height": 48}
        for number, file in enumerate(files)
    ]
    objects = [
        {"id": number, "image_id": number, "category_id": 7, "bbox": [8, 8, 24, 30],
         "area": 720, "iscrowd": 0}
        for number in range(len(files))
    ]  # fmt: skip
    categories = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    return json.dumps({"images": images, "annotations": objects, "categories": categories})


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder with runs/demo, PHOTOS, DATA and D."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in ("experiments", "docs/ledger"):
        shutil.copytree(ROOT / name, folder / name)
    draw_images(folder / "PHOTOS", 4)
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            draw_images(folder / "DATA" / split / name, 2)
        images = draw_images(folder / "D" / split, 2)
        (folder / "D" / f"{split}.json").write_text(instances_of(images))
    draw_own_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        write_few()
        for task, name in (
            ("classification", "vit_digits"),
            ("classification", "se_resnet_digits"),
            ("detection", "detr_digits"),
            ("generation", "sagan_digits"),
        ):
            file, place = f"experiments/demo/{name}.yaml", f"runs/demo/{name}"
            run(["attention-vision", task, "fit", "-c", file, "--run", place])
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, request, tmp_path, monkeypatch):
    found = list(blocks(page))
    assert page.read_text().count("\n```") == 2 * len(found), "a fence is not closed"
    for block in found:
        assert block.language in LANGUAGES, f"{block}: {block.language} is not run"
    if not any(block.language and not block.reason for block in found):
        return
    shutil.copytree(request.getfixturevalue("stand_ins"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()
    for block in found:
        if block.reason:
            continue
        if block.file:
            Path(block.file).write_text(block.text)
        try:
            run_block(block)
        except Exception as error:
            raise AssertionError(f"{block}: {error}") from error


def run_block(block: Block) -> None:
    match block.language:
        case "bash":
            for words in commands(block.text):
                run(words)
        case "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "block"})
        case "yaml" if not block.file:  # a part of an experiment
            Path("part.yaml").write_text(block.text)
            file = "experiments/demo/vit_digits.yaml"
            assert parse("classification", "fit", ["-c", file, "-c", "part.yaml"]).config


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in link or (ROOT / link).exists(), f"{page.name}: {link}"


def test_one_version_everywhere():
    version = attention_vision.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    newest = re.search(r"^## (\d.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == version


def test_site_has_all_exports_and_needs_no_network(tmp_path, monkeypatch):
    pytest.importorskip("mkdocstrings")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert not built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?([^\"> ]+)", page.read_text()
        )
        assert not [one for one in loaded if "//" in one], page
    reference = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    for room in ROOMS:
        package = importlib.import_module(f"attention_vision.{room}")
        missing = [
            name for name in package.__all__
            if f'id="attention_vision.{room}.{name}"' not in reference
        ]  # fmt: skip
        assert not missing, f"{room}: {missing}"


def test_picture_of_the_house_is_current():
    command = [sys.executable, "docs/house.py", "--check"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "stale" not in answer.stdout, "draw it anew by `make house`"
