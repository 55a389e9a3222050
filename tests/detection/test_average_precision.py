"""The 12 numbers are pycocotools' own, with either engine and at any number of processes."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attention_vision.detection.average_precision import NUMBERS, COCOAveragePrecision
from attention_vision.detection.error_analysis import analyze
from attention_vision.errors import InputError

CLASSES = 3


def scene(rng: np.random.Generator, image_id: int) -> tuple[dict, dict]:
    """Predictions and targets of one image.

    Sides are powers of two and boxes whole pixels, so that cxcywh in 0..1 is exact in float32, an
    IoU of exactly 0.5 included. Half of the boxes are shifted ground truths, scores have ties.
    """
    height, width = 2 ** rng.integers(5, 9, 2)
    count, found = rng.integers(0, 6), rng.integers(0, 12) * rng.integers(0, 2)
    corner = rng.integers(0, [width // 2, height // 2], (count, 2))
    side = rng.integers(1, [width // 2, height // 2], (count, 2))
    true = np.concatenate([corner, side], 1).astype(float)
    if found and count:
        pick = rng.integers(0, count, found)
        boxes = true[pick] + rng.integers(-3, 4, (found, 4)) * rng.integers(0, 2, (found, 1))
        labels = np.where(rng.random(found) < 0.8, pick % CLASSES, rng.integers(0, CLASSES, found))
    else:
        boxes = rng.integers(1, 30, (found, 4)).astype(float)
        labels = rng.integers(0, CLASSES, found)
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    scale = np.array([width, height] * 2)
    target = {
        "image_id": image_id,
        "orig_size": torch.tensor([height, width]),
        "boxes": torch.tensor(np.concatenate([corner + side / 2, side], 1) / scale).float(),
        "labels": torch.tensor(np.arange(count) % CLASSES),
        "area": torch.tensor(side.prod(1) * rng.choice([0.5, 1.0, 4.0], count)).float(),
        "iscrowd": torch.tensor(rng.random(count) < 0.15).long(),
    }
    boxes[:, 2:] += boxes[:, :2]
    prediction = {
        "boxes": torch.tensor(boxes).float(),
        "scores": torch.tensor(rng.integers(1, 8, found) / 8).float(),
        "labels": torch.tensor(labels),
    }
    return prediction, {**target, "_xywh": true}


def case(seed: int) -> list[tuple[dict, dict]]:
    rng = np.random.default_rng(seed)
    return [scene(rng, int(image_id)) for image_id in rng.permutation(100)[: rng.integers(1, 9)]]


def reference(images: list[tuple[dict, dict]]) -> tuple[np.ndarray, dict[int, float]]:
    """pycocotools alone, by its own door: results through `loadRes`."""
    truth = {"images": [], "annotations": [], "categories": [{"id": k} for k in range(CLASSES)]}
    results = []
    for prediction, target in images:
        image_id = target["image_id"]
        truth["images"].append({"id": image_id})
        for box, label, area, crowd in zip(
            target["_xywh"], target["labels"], target["area"], target["iscrowd"], strict=True
        ):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        columns = (prediction[key].tolist() for key in ("boxes", "labels", "scores"))
        for box, label, score in zip(*columns, strict=True):
            x, y, right, bottom = box
            box = [x, y, right - x, bottom - y]
            results.append(
                {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            )
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:  # loadRes fails on an empty list
            found = COCO()
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = {k: precision[:, :, k] for k in range(CLASSES)}
    return evaluation.stats, {k: p[p > -1].mean() for k, p in per_class.items() if (p > -1).any()}


def measured(images: list[tuple[dict, dict]], engine: str, batch: int = 3) -> COCOAveragePrecision:
    metric = COCOAveragePrecision(engine=engine)
    for start in range(0, len(images), batch):
        predictions, targets = zip(*images[start : start + batch], strict=True)
        metric.update(list(predictions), list(targets))
    return metric


@pytest.mark.parametrize("engine", ["pycocotools", "faster_coco_eval"])
def test_300_cases_equal_pycocotools(engine: str, capfd) -> None:
    if engine != "pycocotools":
        pytest.importorskip(engine, reason="pip install 'attention-vision[speed]'")
    found = crowds = empty = 0
    for seed in range(300):
        images = case(seed)
        numbers, per_class = reference(images)
        metric = measured(images, engine)
        ours = metric.compute()
        assert tuple(ours) == NUMBERS
        np.testing.assert_allclose(list(ours.values()), numbers, rtol=0, atol=1e-9)
        assert metric.per_class() == pytest.approx({str(k): v for k, v in per_class.items()})
        found += 0 < ours["ap"] < 1
        crowds += any(target["iscrowd"].any() for _, target in images)
        empty += sum(len(p["boxes"]) for p, _ in images) == 0
    assert min(found, crowds, 50 * empty) >= 100  # the cases are what they are said to be
    assert capfd.readouterr().out == ""


def full_image(rng: np.random.Generator, image_id: int) -> tuple[dict, dict]:
    """150 detections of one class, of four scores; areas at the limits of the sizes; a crowd."""
    side = np.array([[32, 32], [96, 96], [16, 64], [128, 72], [31, 33], [64, 64]])
    corner = rng.integers(0, 100, (6, 2))
    true = np.concatenate([corner, side], 1).astype(float)
    boxes = true[rng.integers(0, 6, 150)] + rng.integers(-9, 10, (150, 4))
    boxes[:, 2:] += boxes[:, :2]
    target = {
        "image_id": image_id,
        "orig_size": torch.tensor([256, 256]),
        "boxes": torch.tensor(np.concatenate([corner + side / 2, side], 1) / 256).float(),
        "labels": torch.zeros(6).long(),
        "area": torch.tensor(side.prod(1)).float(),
        "iscrowd": torch.tensor([0, 0, 0, 1, 0, 0]),
    }
    prediction = {
        "boxes": torch.tensor(boxes).float(),
        "scores": torch.tensor(rng.integers(1, 5, 150) / 4).float(),
        "labels": torch.zeros(150).long(),
    }
    return prediction, {**target, "_xywh": true}


@pytest.mark.parametrize("engine", ["pycocotools", "faster_coco_eval"])
def test_100_of_150_equal_detections_count(engine: str) -> None:
    if engine != "pycocotools":
        pytest.importorskip(engine, reason="pip install 'attention-vision[speed]'")
    rng = np.random.default_rng(0)
    images = [full_image(rng, image_id) for image_id in range(12)]
    numbers, per_class = reference([*images, case(3)[0]])
    metric = measured([*images, case(3)[0]], engine)
    ours = metric.compute()
    np.testing.assert_allclose(list(ours.values()), numbers, rtol=0, atol=1e-15)
    assert metric.per_class() == pytest.approx({str(k): v for k, v in per_class.items()})
    assert min(ours["ap_small"], ours["ap_medium"], ours["ap_large"]) > 0


def test_what_is_undefined_is_minus_one() -> None:
    metric = COCOAveragePrecision()
    metric.update([], [])
    assert set(metric.compute().values()) == {-1.0}
    prediction, target = next(pair for pair in map(first, range(99)) if len(pair[1]["labels"]))
    empty = {**prediction, **{key: prediction[key][:0] for key in ("boxes", "scores", "labels")}}
    metric = COCOAveragePrecision(class_names=["cat", "dog", "emu"])
    metric.update([empty], [{**target, "iscrowd": torch.zeros_like(target["labels"])}])
    assert metric.compute()["ap"] == metric.compute()["ar100"] == 0
    assert metric.per_class()["cat"] == 0


def first(seed: int) -> tuple[dict, dict]:
    return case(seed)[0]


def test_an_image_counts_once() -> None:
    images = case(7)
    expected = measured(images, "pycocotools").compute()
    assert measured([*images, images[0]], "pycocotools").compute() == expected
    assert expected["ap"] > 0


def test_diverged_predictions_are_one_line() -> None:
    boxes = torch.tensor([[0.0, 0.0, float("nan"), 1.0]])
    prediction = {"boxes": boxes, "scores": torch.ones(1), "labels": torch.zeros(1).long()}
    with pytest.raises(InputError, match="image 4 is not finite: the network has diverged"):
        COCOAveragePrecision().update([prediction], [{**first(3)[1], "image_id": 4}])


def by_other_limits(images: list[tuple[dict, dict]], engine: str) -> dict[str, float]:
    metric = COCOAveragePrecision(engine=engine, size_limits=(8, 24))
    metric.update(*map(list, zip(*images, strict=True)))
    return metric.compute()


@pytest.mark.parametrize("engine", ["pycocotools", "faster_coco_eval"])
def test_sizes_are_parted_where_asked(engine: str) -> None:
    if engine != "pycocotools":
        pytest.importorskip(engine, reason="pip install 'attention-vision[speed]'")
    for seed in range(20):
        images = case(seed)
        enlarged = [  # fourfold, so that (8, 24) becomes COCO's (32, 96)
            (
                {**prediction, "boxes": 4 * prediction["boxes"]},
                {**target, "orig_size": 4 * target["orig_size"], "area": 16 * target["area"]},
            )
            for prediction, target in images
        ]
        assert by_other_limits(images, engine) == measured(enlarged, engine).compute()
    for limits in ((0, 96), (96, 32), (32, 32)):
        with pytest.raises(InputError, match="must be above 0, the second above it"):
            COCOAveragePrecision(size_limits=limits)


def test_the_fastest_engine_that_is_installed_is_the_default(monkeypatch) -> None:
    pytest.importorskip("faster_coco_eval", reason="pip install 'attention-vision[speed]'")
    assert COCOAveragePrecision().engine == "faster_coco_eval"
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert COCOAveragePrecision().engine == "pycocotools"


def test_missing_engine_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r'pip install "attention-vision\[speed\]"'):
        COCOAveragePrecision(engine="faster_coco_eval")


def shares(images: list, processes: int) -> Iterator[list]:
    """Uneven parts that overlap by one image; of three processes the last has none."""
    busy = min(processes, 2)
    bounds = [0, *(len(images) // 3 for _ in range(busy - 1)), len(images)]
    for start, stop in pairwise(bounds):
        yield images[max(start - 1, 0) : stop]
    for _ in range(processes - busy):
        yield []


def in_one_process(rank: int, processes: int, folder: str) -> None:
    meet = f"file://{folder}/{processes}"
    torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=processes)
    metric = measured(list(shares(big_case(), processes))[rank], "pycocotools")
    answer = json.dumps([metric.compute(), metric.per_class(), analyze(metric.gathered).gains])
    Path(folder, f"{rank}_of_{processes}.json").write_text(answer)
    torch.distributed.destroy_process_group()


def big_case() -> list[tuple[dict, dict]]:
    rng = np.random.default_rng(5)
    return [scene(rng, image_id) for image_id in range(20)]


def test_processes_agree_exactly_even_one_without_images(tmp_path: Path) -> None:
    metric = measured(big_case(), "pycocotools")
    expected = [metric.compute(), metric.per_class(), analyze(metric.gathered).gains]
    assert expected[0]["ap"] > 0
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    answers = [json.loads(path.read_text()) for path in tmp_path.glob("*_of_*.json")]
    assert answers == [expected] * 5  # 2 and 3 processes


if __name__ == "__main__":
    for processes in (2, 3):
        torch.multiprocessing.start_processes(
            in_one_process, (processes, sys.argv[1]), processes, start_method="fork"
        )
