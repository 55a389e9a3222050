"""metrics.csv: one row per step, exact values, continued by the next process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attention_vision.training.metrics_csv import MetricsCSV


def rows(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


def test_one_row_per_step(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"loss": 0.1, "epoch": 0}, step=4)
    logger.log_metrics({"loss": torch.tensor(0.25), "epoch": 0.0}, step=9)
    logger.log_metrics({"top1": 0.5, "epoch": 0}, step=9)
    logger.log_metrics({"loss": 0.125, "epoch": 1}, step=14)
    assert rows(tmp_path) == ["epoch,step,loss,top1", "0,4,0.1,", "0,9,0.25,0.5", "1,14,0.125,"]


def test_continues_the_file_and_repeats_nothing(tmp_path: Path) -> None:
    first = MetricsCSV(str(tmp_path))
    for step in range(4):
        first.log_metrics({"loss": 1 / (step + 3), "epoch": 0}, step=step)
    before = rows(tmp_path)
    second = MetricsCSV(str(tmp_path))
    second.rewind(2)
    assert rows(tmp_path) == before[:3]
    for step in (1, 2, 3):  # a step written again changes nothing
        second.log_metrics({"loss": 1 / (step + 3), "epoch": 0}, step=step)
    assert rows(tmp_path) == before
    assert float(before[1].rpartition(",")[2]) == 1 / 3


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"loss": 1.0, "epoch": 0}, step=0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0,1")
    MetricsCSV(str(tmp_path)).log_metrics({"loss": 2.0, "epoch": 0}, step=1)
    assert rows(tmp_path) == ["epoch,step,loss", "0,0,1.0", "0,1,2.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (6, 4)),
        np.zeros((4, 6, 3), dtype=np.uint8),
        np.zeros((4, 6)),
        torch.zeros(3, 4, 6),
        torch.zeros(1, 4, 6, dtype=torch.uint8),
    ],
)
def test_pictures(tmp_path: Path, image: object) -> None:
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"loss": 1.0, "epoch": 0}, step=12)
    logger.log_image("val/images", [image], caption=["seven"])
    picture = Image.open(tmp_path / "pictures" / "val_images_000012.png")
    assert picture.size == (6, 4)
    assert picture.text["caption"] == "seven"


def test_cells_of_older_rows_and_new_columns(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    for step in (1, 3, 5):
        logger.log_metrics({"loss": float(step), "epoch": 0}, step=step)
    logger.log_metrics({"top1": 0.5, "epoch": 0}, step=3)  # a column and an older row
    logger.log_metrics({"loss": 4.0, "epoch": 0}, step=4)  # a row between two
    logger.log_metrics({"loss": 0.25, "epoch": 0}, step=5)  # shorter than before
    logger.log_metrics({"a,b": 1.0, "epoch": 0}, step=5)
    expected = [
        'epoch,step,loss,top1,"a,b"',
        "0,1,1.0,,",
        "0,3,3.0,0.5,",
        "0,4,4.0,,",
        "0,5,0.25,,1.0",
    ]
    assert rows(tmp_path) == expected
    again = MetricsCSV(str(tmp_path))
    again.log_metrics({"loss": 0.25, "epoch": 0}, step=5)
    assert rows(tmp_path) == expected


def test_a_row_costs_the_same_in_a_file_of_any_length(tmp_path: Path, monkeypatch) -> None:
    logger = MetricsCSV(str(tmp_path))
    formatted = []
    monkeypatch.setattr(
        logger, "_format", lambda rows: formatted.extend(rows) or MetricsCSV._format(logger, rows)
    )
    for step in range(50):
        logger.log_metrics({"loss": 0.5, "epoch": 0}, step=step)
        logger.log_metrics({"part": 0.5, "epoch": 0}, step=step)
    assert len(formatted) == 2 * 50 + 2  # and a header for each of two sets of columns
