"""Report of an evaluation: it agrees with what was logged, and stands alone."""

import csv
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torchvision.ops import box_convert

from attention_vision.detection import COCOAveragePrecision, DigitScenes
from attention_vision.detection import report as reports
from attention_vision.detection.module import in_pixels
from attention_vision.detection.report import DetectionReport
from attention_vision.runs.fp8 import metrics_in
from attention_vision.training.logging import WithoutPictures
from attention_vision.training.metrics_csv import MetricsCSV

TABLES = {"per_class", "precision_recall", "f1", "confusion", "errors", "images"}
PICTURES = {"precision_recall", "f1", "confusion", "errors", "worst"}


class Clumsy(LightningModule):
    """Finds every object but the first of an image, takes an 8 for a 3, and sees one too many."""

    def __init__(self) -> None:
        super().__init__()
        splits = ("val", "test")
        self.average_precision = nn.ModuleDict({one: COCOAveragePrecision() for one in splits})
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        return self.layer(torch.zeros(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        found = []
        for target in batch[2]:
            boxes = box_convert(target["boxes"], "cxcywh", "xyxy")[1:]
            labels = target["labels"][1:].where(target["labels"][1:] != 8, 3)
            boxes = torch.cat((boxes, torch.tensor([[0.0, 0.0, 0.02, 0.02]])))
            labels = torch.cat((labels, torch.tensor([5])))
            one = {"boxes": boxes, "scores": torch.full((len(boxes),), 0.7), "labels": labels}
            found.append(in_pixels(one, target))
        self.average_precision["val"].update(found, batch[2])

    def on_validation_epoch_end(self) -> None:
        metric = self.average_precision["val"]
        self.log_dict({f"val/{name}": value for name, value in metric.compute().items()})
        metric.reset()


class Tables(WandbLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[list, list]] = {}
        self.images: list[str] = []

    def log_table(self, key: str, columns: list, data: list, **_: object) -> None:
        self.tables[key] = columns, data

    def log_image(self, key: str, images: list, **_: object) -> None:
        self.images.append(key)

    def log_metrics(self, *_: object, **__: object) -> None: ...
    def log_hyperparams(self, *_: object, **__: object) -> None: ...
    def log_graph(self, *_: object, **__: object) -> None: ...
    def save(self) -> None: ...
    def finalize(self, status: str) -> None: ...
    def after_save_checkpoint(self, *_: object) -> None: ...


def trainer(folder: Path, *callbacks: Callback, logger: object = False) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), max_epochs=2,
        callbacks=[DetectionReport(4), *callbacks],
    )  # fmt: skip


def scenes() -> DigitScenes:
    return DigitScenes(scenes=8, val_scenes=20, batch_size=8)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> tuple[Trainer, dict[str, float], str]:
    """A trainer, which has written its report, and what it logged and printed."""
    done, said = trainer(tmp_path_factory.mktemp("run")), io.StringIO()
    with redirect_stdout(said):
        (logged,) = done.validate(Clumsy(), scenes(), verbose=False)
    return done, dict(logged), said.getvalue()


def test_a_validation_leaves_tables_pictures_and_a_page(validated) -> None:
    done, logged, said = validated
    tmp_path = Path(done.default_root_dir)
    assert {file.stem for file in tmp_path.glob("*.csv")} == TABLES
    assert {file.stem for file in tmp_path.glob("pictures/*")} == {f"val_{x}" for x in PICTURES}
    classes = rows_of(tmp_path / "per_class.csv")
    assert np.mean([float(row["ap"]) for row in classes]) == pytest.approx(logged["val/ap"])
    ap50 = [float(row["ap50"]) for row in classes]
    assert np.mean(ap50) == pytest.approx(logged["val/ap50"])
    curves = rows_of(tmp_path / "precision_recall.csv")
    for row, expected in zip(classes, ap50, strict=True):
        points = [float(one["precision"]) for one in curves if one["class"] == row["class"]]
        assert len(points) == 101
        assert np.mean(points) == pytest.approx(expected)
    assert float(classes[8]["recall"]) == 0
    assert classes[8]["precision"] == ""  # nothing was taken for an 8

    confusion = rows_of(tmp_path / "confusion.csv")
    assert [row["class"] for row in confusion] == [*map(str, range(10)), "background"]
    assert int(confusion[8]["3"]) > 0
    assert int(confusion[10]["5"]) == 20  # one too many, in every image
    assert sum(int(row["background"]) for row in confusion) == 20  # the first, in every image
    errors = {row["kind"]: row for row in rows_of(tmp_path / "errors.csv")}
    assert int(errors["background"]["count"]) == 20
    assert errors["classification"]["count"] == confusion[8]["3"]
    assert float(errors["classification"]["ap50_lost"]) > 0.05
    assert float(errors["missed"]["ap50_lost"]) > 0.05
    images = rows_of(tmp_path / "images.csv")
    assert len(images) == 20
    assert [int(row["errors"]) for row in images] == sorted(
        (int(row["errors"]) for row in images), reverse=True
    )
    assert sum(int(row["missed"]) for row in images) == 20 + int(confusion[8]["3"])

    page = (tmp_path / "report.html").read_text()
    assert f"AP {logged['val/ap']:.3f} on val" in page
    assert page.count("data:image/jpeg") == 4
    assert page.count("data:image/png") == 4
    outside = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:|#)[^"\'\s)>]+', page)
    assert not outside
    assert "<script" not in page
    assert re.search(r"class +objects +ap +ap50 +precision +recall +f1\n8 ", said)  # least AP
    assert f"report: {tmp_path}/report.html" in said


def test_an_evaluation_for_comparison_replaces_no_report(validated) -> None:
    done, logged, _ = validated
    folder = Path(done.default_root_dir)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert metrics_in("fused", done, "validate", Clumsy(), scenes()) == logged
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_fit_reports_once_at_its_end(tmp_path, monkeypatch) -> None:
    measured = []
    analyze = reports.analyze
    monkeypatch.setattr(reports, "analyze", lambda images: measured.append(1) or analyze(images))
    tables, folder = Tables(), MetricsCSV(str(tmp_path))
    trainer(tmp_path, logger=[folder, tables]).fit(Clumsy(), scenes())
    assert len(measured) == 1
    assert {file.stem for file in tmp_path.glob("*.csv")} == {*TABLES, "metrics"}
    names = {file.stem.rpartition("_")[0] for file in tmp_path.glob("pictures/*")}
    assert names == {f"val_{one}" for one in PICTURES}
    assert set(tables.images) == {f"val/{one}" for one in PICTURES}
    assert set(tables.tables) == {"val/per_class", "val/errors", "val/images"}
    columns, data = tables.tables["val/per_class"]
    assert [len(row) for row in data] == [len(columns)] * 10
    assert "step 1: 20 images" in (tmp_path / "report.html").read_text()


def test_without_pictures(tmp_path) -> None:
    trainer(tmp_path, WithoutPictures()).validate(Clumsy(), scenes(), verbose=False)
    assert not (tmp_path / "pictures").exists()
    assert "data:image/jpeg" not in (tmp_path / "report.html").read_text()
    assert {file.stem for file in tmp_path.glob("*.csv")} == TABLES
