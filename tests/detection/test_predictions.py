"""What predict leaves: results that pycocotools reads, and a picture of every image."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import corners
import numpy as np
import pytest
import torch
from corners import Corners, predict
from PIL import Image
from pycocotools.coco import COCO

from attention_vision.detection.data import DigitScenes
from attention_vision.detection.predictions import DetectionResults
from attention_vision.errors import InputError
from attention_vision.training.logging import WithoutPictures

FILES = {  # modes and sizes (width, height) as they come
    "a.png": ("RGB", (64, 48)),
    "one/a.png": ("L", (33, 21)),
    "one/b.jpg": ("L", (100, 31)),
    "one/b.png": ("P", (7, 50)),
    "two/a.png": ("RGBA", (401, 333)),
}


def write_images(folder: Path) -> None:
    for name, (mode, size) in FILES.items():
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(file)


def predicted(folder: Path, **options: object) -> tuple[list[dict], DigitScenes]:
    write_images(folder)
    data = predict(folder, "run", DetectionResults(**options))
    return json.loads((folder / "run" / "results.json").read_text()), data


def test_results_are_read_by_pycocotools(tmp_path: Path) -> None:
    rows, data = predicted(tmp_path)
    assert [row["file_name"] for row in rows] == [name for name in FILES for _ in range(2)]
    images = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, (_, size)) in enumerate(FILES.items())
    ]
    categories = [
        {"id": number, "name": name}
        for number, name in zip(data.category_ids, data.class_names, strict=True)
    ]
    truth = COCO()
    truth.dataset = {"images": images, "annotations": [], "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        read = truth.loadRes(str(tmp_path / "run" / "results.json"))
    for image in images:
        best, other = read.loadAnns(read.getAnnIds(imgIds=[image["id"]]))
        width, height = image["width"], image["height"]
        assert best["bbox"] == [0, 0, width / 2, height / 2]
        assert other["bbox"] == pytest.approx([width / 4, height / 3, width / 4, height / 6])
        assert (best["score"], other["score"]) == (0.9, 0.1)
        assert (best["category_id"], other["category_id"]) == (3, 10)
        named = (data.class_names[data.category_ids.index(number)] for number in (3, 10))
        assert (best["category_name"], other["category_name"]) == tuple(named)
        assert best["area"] == pytest.approx(width * height / 4)


def test_pictures_show_what_the_report_counts(tmp_path: Path, capsys) -> None:
    """The detections of `Corners` have scores of 0.9 and 0.1."""
    pixels, lines = {}, {}
    for name, options, table in (
        ("both", {}, "class,score\nRBC,0.0625\nWBC,0.0625\n"),
        ("one", {}, None),
        ("given", {"threshold": 0.5}, "class,score\nRBC,0.0625\n"),
    ):
        folder = tmp_path / name
        (folder / "run").mkdir(parents=True)
        if table:
            (folder / "run" / "per_class.csv").write_text(table)
        predicted(folder, **options)
        pixels[name] = (folder / "run/pictures/a_boxes.png").read_bytes()
        lines[name] = [x for x in capsys.readouterr().out.splitlines() if "pictures show" in x]
    assert pixels["both"] != pixels["one"] == pixels["given"]
    assert lines["both"] == ["pictures show detections with a score of 0.0625 or more"]
    assert lines["one"] == ["pictures show detections with a score of 0.5 or more"]
    assert not lines["given"]


def test_every_image_has_its_own_picture(tmp_path: Path) -> None:
    predicted(tmp_path)
    folder = tmp_path / "run" / "pictures"
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*_boxes.*"))]
    assert names == [
        "a_boxes.png",
        "one/a_boxes.png",
        "one/b.jpg_boxes.jpg",
        "one/b.png_boxes.png",
        "two/a_boxes.png",
    ]
    assert Image.open(folder / "two/a_boxes.png").size == (401, 333)
    assert Image.open(folder / "one/a_boxes.png").size == (330, 210)


def test_pictures_can_be_left_out(tmp_path: Path) -> None:
    rows, _ = predicted(tmp_path, pictures=False)
    assert len(rows) == 10
    assert not (tmp_path / "run" / "pictures").exists()


def test_a_large_photograph_leaves_a_small_picture(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (600, 3200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "photo.JPG")
    predict(tmp_path, "run", DetectionResults())
    picture = tmp_path / "run" / "pictures" / "photo_boxes.jpg"
    with Image.open(picture) as drawn:
        assert drawn.size == (1600, 300)
        assert drawn.format == "JPEG"
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert rows[0]["bbox"] == [0, 0, 1600, 300]  # pixels of the file, not of the picture


def test_a_trainer_without_pictures_draws_none(tmp_path: Path) -> None:
    write_images(tmp_path)
    predict(tmp_path, "run", DetectionResults(), callbacks=[WithoutPictures()])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json"}


def test_nothing_found_is_an_empty_list(tmp_path: Path, monkeypatch) -> None:
    nothing = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0).long(),
    }
    monkeypatch.setattr(Corners, "predict_step", lambda _, batch, __: [nothing] * len(batch[2]))
    rows, _ = predicted(tmp_path)
    assert rows == []


def test_diverged_predictions_are_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Corners, "score", float("nan"))
    with pytest.raises(InputError, match=r"predicted for a.png is not finite"):
        predicted(tmp_path)


def test_two_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    """Five images are parts of three and two, in two batches and one."""
    one, _ = predicted(tmp_path)
    command = [sys.executable, corners.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [row["file_name"] for row in one] == [name for name in FILES for _ in range(2)]
    files = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.*")}
    assert len(files) == 1 + len(FILES)
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*")}
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()
