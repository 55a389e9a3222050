"""Errors of detectors: definitions of COCO and TIDE, on cases whose answer is known and random."""

from collections.abc import Sequence

import numpy as np
import pytest
from test_average_precision import case, measured

from attention_vision.detection.average_precision import Image
from attention_vision.detection.error_analysis import (
    FALSE_KINDS,
    KINDS,
    MISSED,
    analyze,
    confusion_matrix,
    match,
    worst_first,
)

Box = Sequence[float]


def image(
    truths: Sequence[tuple[int, Box]],
    found: Sequence[tuple[int, float, Box]],
    crowds: Sequence[int] = (),
) -> Image:
    """An image of (label, box) and (label, score, box), boxes x, y, w, h; crowds by position."""
    true_boxes = np.array([box for _, box in truths], float).reshape(-1, 4)
    marks = np.array([float(index in crowds) for index in range(len(truths))])
    return Image(
        np.array([box for *_, box in found], float).reshape(-1, 4),
        np.array([score for _, score, _ in found], float),
        np.array([label for label, *_ in found], float),
        true_boxes,
        np.array([label for label, _ in truths], float),
        true_boxes[:, 2:].prod(1),
        marks,
    )


# IoU with [0, 0, 10, 10]: 1, 0.8, 0.4, 0.4, 0.05; `far` is somewhere else.
WHOLE, MOST, PART, LOW = [0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [0, 6, 10, 4]
CORNER, FAR = [0, 0, 5, 1], [50, 50, 10, 10]


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        ([(0, 0.9, WHOLE)], ["correct"]),
        ([(0, 0.9, MOST), (0, 0.8, WHOLE)], ["correct", "duplicate"]),
        ([(0, 0.8, MOST), (0, 0.9, WHOLE)], ["correct", "duplicate"]),  # best first
        ([(1, 0.9, WHOLE)], ["classification"]),
        ([(0, 0.9, PART)], ["localization"]),
        ([(1, 0.9, PART)], ["both"]),
        ([(0, 0.9, CORNER)], ["background"]),
        ([(1, 0.9, CORNER)], ["background"]),
        ([(0, 0.9, FAR)], ["background"]),
        ([(0, 0.9, WHOLE), (1, 0.8, WHOLE), (0, 0.7, PART)],
         ["correct", "classification", "localization"]),
    ],
)  # fmt: skip
def test_kinds_of_errors(found, kinds) -> None:
    matches = match({7: image([(0, WHOLE)], found)})
    assert [KINDS[kind] for kind in matches.kind] == kinds
    repaired = {"correct", "classification", "localization"} & set(kinds)
    assert matches.missed.tolist() == [not repaired]


def test_crowds_count_neither_way() -> None:
    on_crowd = [(0, 0.9, PART), (0, 0.8, FAR), (1, 0.7, PART)]
    matches = match({1: image([(0, WHOLE), (1, FAR)], on_crowd, crowds=[0])})
    assert matches.scores.tolist() == [0.8, 0.7]  # of another class it is an error
    assert [KINDS[kind] for kind in matches.kind] == ["classification", "background"]
    assert len(matches.true_labels) == 1


def test_losses_of_ap() -> None:
    """Two objects; one is found by the second best detection, the best one is an error."""
    truths = [(0, WHOLE), (0, FAR)]
    for kind, error in {
        "localization": (0, 0.9, [50, 50, 10, 4]),
        "background": (0, 0.9, [90, 90, 5, 5]),
        "duplicate": (0, 0.8, MOST),
    }.items():
        others = [(0, 0.85, WHOLE)]
        gains = analyze({1: image(truths, [error, *others])}).gains
        missed = kind != "localization"
        assert gains.pop(kind) > 0 or kind == "duplicate"  # the last rank costs nothing
        assert (gains.pop(MISSED) > 0) == missed
        assert all(gains[other] == 0 for other in FALSE_KINDS if other in gains)
    # AP50 is 51/101 of precision 1/2 with the error in front: 0.252; 51/101 without it.
    gains = analyze({1: image(truths, [(0, 0.9, [90, 90, 5, 5]), (0, 0.85, WHOLE)])}).gains
    assert gains["background"] == pytest.approx(51 / 101 / 2)
    assert gains[MISSED] == pytest.approx((101 - 51) / 101 / 2)
    assert gains["false positives"] == pytest.approx(51 / 101 / 2)
    assert gains["false negatives"] == pytest.approx((101 - 51) / 101 / 2)
    # A class error becomes an object of the other class, once.
    truths = [(0, WHOLE), (1, FAR)]
    found = [(0, 0.9, WHOLE), (0, 0.8, FAR), (0, 0.7, FAR)]
    assert analyze({1: image(truths, found)}).gains["classification"] == pytest.approx(0.5)


def test_random_cases_agree_with_coco_and_among_themselves() -> None:
    errors = 0
    for seed in range(15):
        metric = measured(case(seed), "pycocotools")
        expected = metric.compute()
        evaluation = analyze(metric.gathered)
        if not evaluation.classes:
            assert expected["ap50"] == -1
            continue
        ap50 = np.mean([one.average_precision for one in evaluation.curves])
        assert ap50 == pytest.approx(expected["ap50"], abs=1e-12)
        counts, here = confusion_matrix(evaluation, 3), evaluation.at_threshold
        assert counts[:3].sum() == evaluation.objects.sum()
        assert counts[:, :3].sum() == evaluation.shown.sum()
        for index, label in enumerate(evaluation.classes):
            found = counts[label, label]
            assert found / counts[label].sum() == pytest.approx(evaluation.recall[index, here])
            if detected := counts[:, label].sum():
                assert found / detected == pytest.approx(evaluation.precision[index, here])
        rows = worst_first(evaluation)
        assert [row.errors for row in rows] == sorted((row.errors for row in rows), reverse=True)
        assert sum(row.found for row in rows) == np.trace(counts)
        assert sum(row.missed for row in rows) == counts[:3].sum() - np.trace(counts)
        false = sum(sum(row.false.values()) for row in rows)
        assert false == counts[:, :3].sum() - np.trace(counts)
        errors += false
    assert errors > 50
    metric.reset()
    assert not metric.gathered


def test_objects_and_detections_in_the_confusion_matrix() -> None:
    truths = [(0, WHOLE), (1, FAR), (1, [20, 20, 5, 5])]
    found = [(0, 0.9, WHOLE), (0, 0.9, FAR), (2, 0.8, [0, 0, 10, 9]), (1, 0.1, [20, 20, 5, 5])]
    # The mean F1 of classes 0 and 1 is 2/3 of both up to 0.1, and 1/3 above.
    counts = confusion_matrix(analyze({1: image(truths, found)}), 3)
    assert counts.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_nothing_to_measure() -> None:
    for images in ({}, {1: image([], [])}, {1: image([], [(0, 0.9, WHOLE)])}):
        evaluation = analyze(images)
        assert evaluation.classes == []
        assert evaluation.gains == {}
    evaluation = analyze({1: image([(2, WHOLE)], [])})
    assert evaluation.threshold == 0.5
    assert confusion_matrix(evaluation, 3)[2].tolist() == [0, 0, 0, 1]
    assert [(row.errors, row.missed) for row in worst_first(evaluation)] == [(1, 1)]


def test_tide_agrees() -> None:
    """The authors' own code, on its recall grid: i / 100, of which COCO's differs by rounding."""
    tidecv = pytest.importorskip("tidecv", reason="pip install tidecv opencv-python")
    from attention_vision.detection import error_analysis

    rng = np.random.default_rng(0)
    images, truth, found = {}, tidecv.Data("truth"), tidecv.Data("found")
    for label in range(3):
        truth.add_class(label, str(label))
        found.add_class(label, str(label))
    for number in range(30):
        true_boxes = np.concatenate((rng.uniform(0, 90, (5, 2)), rng.uniform(5, 50, (5, 2))), 1)
        true_labels, pick = rng.integers(0, 3, 5), rng.integers(0, 5, 20)
        boxes = true_boxes[pick] + rng.normal(0, 1, (20, 4)) * rng.choice([1, 6, 20], (20, 1))
        boxes[:, 2:] = np.abs(boxes[:, 2:]).clip(1)
        labels = np.where(rng.random(20) < 0.7, true_labels[pick], rng.integers(0, 3, 20))
        detections = list(
            zip(labels.tolist(), rng.random(20).tolist(), boxes.tolist(), strict=True)
        )
        objects = list(zip(true_labels.tolist(), true_boxes.tolist(), strict=True))
        images[number] = image(objects, detections)
        for data in (truth, found):
            data.add_image(number, str(number))
        for label, box in objects:
            truth.add_ground_truth(number, label, box)
        for label, score, box in detections:
            found.add_detection(number, label, score, box)
    box = tidecv.quantify.TIDE.BOX
    run = tidecv.quantify.TIDERun(truth, found, 0.5, 0.1, box, max_dets=100)
    names = ("classification", "localization", "both", "duplicate", "background", MISSED)
    counts = dict(zip(names, run.count_errors().values(), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_analysis, "RECALLS", np.array([i / 100 for i in range(101)]))
        evaluation = analyze(images)
    matches = evaluation.matches
    ours = {kind: int((matches.kind == KINDS.index(kind)).sum()) for kind in names[:-1]}
    assert counts == ours | {MISSED: int(matches.missed.sum())}
    losses = [*run.fix_main_errors().values(), *run.fix_special_errors().values()]
    expected = dict(zip((*names, "false positives", "false negatives"), losses, strict=True))
    for kind, loss in expected.items():
        assert evaluation.gains[kind] == pytest.approx(loss / 100, abs=1e-9), kind
