"""Metrics against naive loops, and metrics.csv against a table in memory."""

import csv
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_vision.classification.confusion import ClassAccuracy, named_accuracies
from attention_vision.detection.average_precision import COCOAveragePrecision
from attention_vision.generation.image_to_image.module import SegmentationMetrics
from attention_vision.training.logging import ResumableMean
from attention_vision.training.metrics_csv import MetricsCSV

SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(SEEDS, st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 4))
def test_accuracy_of_classes(seed, batches, classes):
    stream = torch.Generator().manual_seed(seed)
    metric, images, right = ClassAccuracy(classes), [0] * classes, [0] * classes
    for size in batches:
        logits = torch.randn(size, classes, generator=stream)
        labels = torch.randint(classes, (size,), generator=stream)
        metric.update(logits, labels)
        for one, label in zip(logits.tolist(), labels.tolist(), strict=True):
            images[label] += 1
            right[label] += one.index(max(one)) == label
    names = [str(number) for number in range(classes)]
    found = named_accuracies(metric.compute(), names)
    expected = {f"top1_of/{n}": right[int(n)] / images[int(n)] for n in names if images[int(n)]}
    expected = {"top1_macro": sum(expected.values()) / len(expected)} | expected
    assert found == pytest.approx(expected)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=5), st.data())
def test_a_mean_is_resumed_anywhere(batches, data):
    """As one mean over all values, each batch weighing as it counts, saved behind any of them."""
    whole, parts = ResumableMean(), ResumableMean()
    cut = data.draw(st.integers(0, len(batches)))
    for number, values in enumerate(batches):
        if number == cut:
            state, parts = parts.state_dict(), ResumableMean()
            parts.load_state_dict(state)
        for mean in (whole, parts):
            mean.update(torch.tensor(values))
    assert torch.equal(whole.compute(), parts.compute())
    values = [value for batch in batches for value in batch]
    scale = max(map(abs, values)) + 1e-9
    assert whole.compute().item() == pytest.approx(sum(values) / len(values), abs=1e-4 * scale)


@given(SEEDS, st.integers(2, 4), st.lists(st.integers(1, 2), min_size=1, max_size=3))
def test_dice_of_masks(seed, classes, batches):
    """Over images, of those where the class is in the mask or the prediction; then over classes."""
    stream = torch.Generator().manual_seed(seed)
    metric, scores = SegmentationMetrics(classes), [[] for _ in range(classes)]
    for size in batches:
        logits = torch.randn(size, classes, 3, 3, generator=stream)
        targets = torch.randint(classes, (size, 3, 3), generator=stream)
        metric.update(targets, logits, targets)
        for found, wanted in zip(logits.argmax(1), targets, strict=True):
            for label in range(1, classes):
                a, b = found == label, wanted == label
                if a.any() or b.any():
                    dice = 2 * (a & b).sum().item() / (a.sum() + b.sum()).item()
                    scores[label].append(dice)
    means = [sum(one) / len(one) for one in scores[1:] if one]
    numbers = metric.compute()
    if means:
        assert float(numbers["score"]) == pytest.approx(sum(means) / len(means), abs=1e-5)
    else:
        assert "score" not in numbers or math.isnan(float(numbers["score"]))


@given(SEEDS, st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_average_precision_does_not_depend_on_order(seed, counts):
    stream = torch.Generator().manual_seed(seed)
    images = []
    for number, count in enumerate(counts):
        boxes = torch.rand(count, 4, generator=stream) * 0.4 + 0.3
        labels = torch.randint(2, (count,), generator=stream)
        target = {
            "image_id": number, "orig_size": torch.tensor([50, 80]), "boxes": boxes,
            "labels": labels, "area": boxes[:, 2] * boxes[:, 3] * 4000,
            "iscrowd": torch.zeros(count, dtype=torch.int64),
        }  # fmt: skip
        found = int(torch.randint(4, (), generator=stream))
        corner = torch.rand(found, 2, generator=stream) * 30
        prediction = {
            "boxes": torch.cat((corner, corner + 20), 1),
            "scores": torch.rand(found, generator=stream),
            "labels": torch.randint(2, (found,), generator=stream),
        }
        images.append((prediction, target))

    def numbers(pairs: list) -> dict[str, float]:
        metric = COCOAveragePrecision()
        for prediction, target in pairs:
            metric.update([prediction], [target])
        return metric.compute()

    expected = numbers(images)
    mixed = []
    for prediction, target in reversed(images):
        order = torch.randperm(len(prediction["scores"]), generator=stream)
        mixed.append(({key: value[order] for key, value in prediction.items()}, target))
    assert numbers(mixed) == expected
    assert all(value == -1 or 0 <= value <= 1 for value in expected.values())
    perfect = []
    for _, target in images:
        center, size = target["boxes"][:, :2], target["boxes"][:, 2:]
        pixels = torch.cat((center - size / 2, center + size / 2), 1)
        pixels = pixels * torch.tensor([80, 50, 80, 50])
        scores = torch.ones(len(pixels))
        answer = {"boxes": pixels, "scores": scores, "labels": target["labels"]}
        perfect.append((answer, target))
    assert numbers(perfect)["ap"] == pytest.approx(1.0 if sum(counts) else -1.0)


KEYS = st.sampled_from(["train/loss", "val/top1", "lr", "a,b", 'say "x"'])
CALLS = st.one_of(
    st.tuples(
        st.just("log"), st.integers(0, 12),
        st.dictionaries(KEYS, st.floats(allow_nan=True), min_size=1, max_size=3),
    ),
    st.tuples(st.just("rewind"), st.integers(0, 12), st.just({})),
    st.tuples(st.sampled_from(["reopen", "cut"]), st.just(0), st.just({})),
)  # fmt: skip


@given(st.lists(CALLS, min_size=1, max_size=14))
def test_metrics_csv_is_the_table_of_its_calls(calls):
    """Rows that are logged in any order, dropped, and continued by another process."""
    with tempfile.TemporaryDirectory() as folder:
        log, table, columns = MetricsCSV(folder), {}, []
        for call, step, values in calls:
            if call == "log":
                log.log_metrics(values | {"epoch": step // 4}, step)
                table.setdefault(step, {}).update(
                    {key: repr(value) for key, value in values.items()} | {"epoch": str(step // 4)}
                )
                columns += [key for key in values if key not in columns]
            elif call == "rewind":
                log.rewind(step)
                table = {key: row for key, row in table.items() if key < step}
            else:
                if call == "cut" and log.file.exists():
                    with log.file.open("a") as file:
                        file.write("1,2")  # half a line of a killed process
                log = MetricsCSV(folder)
        if not table and not Path(folder, "metrics.csv").exists():
            return
        log.rewind(99)
        with Path(folder, "metrics.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: cell for key, cell in row.items() if cell} for row in reader]
        assert rows == [row | {"step": str(step)} for step, row in sorted(table.items())]
        assert list(reader.fieldnames) == ["epoch", "step", *columns]
