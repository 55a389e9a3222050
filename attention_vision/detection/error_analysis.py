"""Errors of a detector: curves over recall and score, the confusion matrix, TIDE's kinds of error.

All of it rests on one matching, that of COCO at IoU 0.5, so that its numbers agree: the area under
the curves is the logged AP50, and the confusion matrix counts what precision and recall count.
Arrays run over the D detections or the T true objects of all images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from attention_vision.detection.average_precision import Image

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which a box is found, to which it is background
MOST_PER_CLASS = 100  # detections of an image and class that count, as in AP
RECALLS = np.linspace(0, 1, 101)  # of COCO's average precision
SCORES = np.linspace(0, 1, 1001)  # at which F1 is measured

# Kinds of a detection; the errors in the order of TIDE's figures.
CORRECT = "correct"
FALSE_KINDS = ("classification", "localization", "both", "duplicate", "background")
KINDS = (CORRECT, *FALSE_KINDS)
MISSED = "missed"


class Matches(NamedTuple):
    """Detections and true objects of all images, matched; neither crowds nor detections on them."""

    images: list[int]  # ids
    boxes: np.ndarray  # (D, 4) x, y, w, h in pixels
    scores: np.ndarray  # (D,) best first within an image
    labels: np.ndarray  # (D,)
    image: np.ndarray  # (D,) index into `images`
    truth: np.ndarray  # (D,) the true object that was found, or -1
    kind: np.ndarray  # (D,) index into `KINDS`
    target: np.ndarray  # (D,) the missed object that it would find without its error, or -1
    true_boxes: np.ndarray  # (T, 4)
    true_labels: np.ndarray  # (T,)
    true_image: np.ndarray  # (T,)
    crossed: np.ndarray  # (X, 2) detections and true objects of other classes from IoU 0.5
    overlaps: np.ndarray  # (X,) IoU of each

    @property
    def correct(self) -> np.ndarray:
        return self.truth >= 0

    @property
    def missed(self) -> np.ndarray:
        """Objects that no detection found or, without its error, would find; (T,) bool."""
        missed = np.ones(len(self.true_labels), bool)
        missed[self.truth[self.correct]] = False
        missed[self.target[self.target >= 0]] = False
        return missed


def match(images: Mapping[int, Image]) -> Matches:
    """Match the detections of each image with its true objects, and name the errors.

    Args:
        images: by id, in the order in which equal scores of several images count.

    As COCO: the best scored detection of a class first takes the object of its class with the
    largest IoU, from 0.5, that is not taken. Kinds of error after Bolya et al. (TIDE, arXiv
    2008.08115, section 2.2), tested in the order of the release: localization, IoU 0.1 to 0.5 with
    an object of its class; classification, IoU from 0.5 with one of another class; duplicate, from
    0.5 with an object that a better scored one has taken; background, to 0.1 with every object;
    both else, an object of another class hit badly.
    """
    parts = list(_matched(images))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else []
    return Matches(list(images), *(columns or _empty()))


def _empty() -> list[np.ndarray]:
    boxes, whole, real = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
    ends = [np.zeros((0, 2), int), real]
    return [boxes, real, whole, whole, whole, whole, whole, boxes, whole, whole, *ends]


def _matched(images: Mapping[int, Image]) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of `Matches` of each image."""
    detections = truths = 0
    for number, image in enumerate(images.values()):
        objects, crowds = image.crowds == 0, image.crowds != 0
        order = np.argsort(-image.scores, kind="stable")
        order = order[_rank_in_class(image.labels[order]) < MOST_PER_CLASS]
        boxes, labels = image.boxes[order], image.labels[order].astype(int)
        true_boxes, true_labels = image.true_boxes[objects], image.true_labels[objects].astype(int)
        overlaps = iou(boxes, true_boxes)
        same = labels[:, None] == true_labels
        truth = _take(np.where(same, overlaps, 0))
        if crowds.any():
            inside = iou(boxes, image.true_boxes[crowds], of_first=True)
            on_crowd = (inside >= FOREGROUND) & (labels[:, None] == image.true_labels[crowds])
            kept = (truth >= 0) | ~on_crowd.any(1)
            order, boxes, labels, truth = order[kept], boxes[kept], labels[kept], truth[kept]
            overlaps, same = overlaps[kept], same[kept]
        kind, target = _errors(overlaps, same, truth)
        crossed = np.argwhere((overlaps >= FOREGROUND) & ~same)
        yield (
            boxes,
            image.scores[order],
            labels,
            np.full(len(boxes), number),
            np.where(truth >= 0, truth + truths, -1),
            kind,
            np.where(target >= 0, target + truths, -1),
            true_boxes,
            true_labels,
            np.full(len(true_boxes), number),
            crossed + np.array([detections, truths]),
            overlaps[crossed[:, 0], crossed[:, 1]],
        )
        detections, truths = detections + len(boxes), truths + len(true_boxes)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many with the same label stand before each."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))
    return rank


def iou(first: np.ndarray, second: np.ndarray, of_first: bool = False) -> np.ndarray:
    """IoU of boxes x, y, w, h: (n, 4), (m, 4) -> (n, m); or the share of the first inside."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum((first[:, :2] + first[:, 2:])[:, None], second[:, :2] + second[:, 2:])
    both = (high - low).clip(0).prod(2)
    area = first[:, 2:].prod(1)[:, None]
    union = np.broadcast_to(area, both.shape) if of_first else area + second[:, 2:].prod(1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _take(overlaps: np.ndarray) -> np.ndarray:
    """The object that each detection (n, m) finds, best first; -1 for none."""
    truth = np.full(len(overlaps), -1)
    free = overlaps.copy()
    for index in np.flatnonzero(overlaps.max(1, initial=0) >= FOREGROUND):
        best = free.shape[1] - 1 - free[index, ::-1].argmax()  # of equal ones the last, as COCO
        if free[index, best] >= FOREGROUND:
            truth[index] = best
            free[:, best] = 0
    return truth


def _errors(
    overlaps: np.ndarray, same: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kind of each detection, and the missed object that it would find, or -1."""
    correct = truth >= 0
    if not overlaps.shape[1]:
        return np.full(len(truth), KINDS.index("background")), truth
    of_class, of_others = np.where(same, overlaps, 0), np.where(same, 0, overlaps)
    own, other = of_class.max(1), of_others.max(1)
    tests = {  # the first that holds
        CORRECT: correct,
        "localization": (own >= BACKGROUND) & (own <= FOREGROUND),
        "classification": other >= FOREGROUND,
        "duplicate": own >= FOREGROUND,
        "background": np.maximum(own, other) <= BACKGROUND,
    }
    kind = np.select(list(tests.values()), list(map(KINDS.index, tests)), KINDS.index("both"))
    target = np.select(
        [kind == KINDS.index("localization"), kind == KINDS.index("classification")],
        [of_class.argmax(1), of_others.argmax(1)],
        -1,
    )
    return kind, np.where(np.isin(target, truth[correct]), -1, target)


class Curve(NamedTuple):
    """Precision of one class at `RECALLS`, and the least score that reaches each; 0 beyond."""

    precision: np.ndarray
    score: np.ndarray

    @property
    def average_precision(self) -> float:
        return float(self.precision.mean())


def curve(scores: np.ndarray, correct: np.ndarray, objects: int) -> Curve:
    """Precision over recall as COCO interpolates it: the largest at that recall or a larger one.

    Args:
        scores: of the detections of a class, (n,).
        correct: whether each is, (n,).
        objects: true ones.
    """
    precision, least = np.zeros_like(RECALLS), np.zeros_like(RECALLS)
    if not len(scores) or not objects:
        return Curve(precision, least)
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(correct[order])
    envelope = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
    index = np.searchsorted(found / objects, RECALLS)
    reached = index < len(found)
    precision[reached], least[reached] = envelope[index[reached]], scores[order][index[reached]]
    return Curve(precision, least)


def by_class(labels: np.ndarray, classes: Sequence[int]) -> list[np.ndarray]:
    """Indices of each class, in their order."""
    order = np.argsort(labels, kind="stable")
    low, high = (np.searchsorted(labels[order], classes, side) for side in ("left", "right"))
    return [order[start:stop] for start, stop in zip(low, high, strict=True)]


def error_gains(matches: Matches) -> dict[str, float]:
    """AP50 that is lost to each kind of error: TIDE's dAP, in 0..1.

    It is the AP50 of an oracle that corrects the errors of one kind, less AP50 (arXiv 2008.08115,
    section 2.3), each by itself; their sum is not what all cost together. A classification or
    localization error becomes correct if its object is missed and no other such error on it scores
    higher, else it goes; other errors go. Missed objects that no such error lies on are not asked
    for. `false positives` is the gain without any false detection, `false negatives` that without
    any object that was not found.

    Without objects it is empty. A loss below 0, of the interpolation, is 0.
    """
    classes = sorted(set(matches.true_labels.tolist()))
    if not classes:
        return {}
    counts = np.bincount(matches.true_labels)[classes]
    correct, labels, scores = matches.correct, matches.labels, matches.scores

    def mean(labels: np.ndarray, correct: np.ndarray, kept: np.ndarray, asked: np.ndarray) -> float:
        """AP50 of what an oracle keeps."""
        rows = np.flatnonzero(kept)
        parts = by_class(labels[rows], classes)
        return float(
            np.mean(
                [
                    curve(scores[rows[part]], correct[rows[part]], count).average_precision
                    for part, count in zip(parts, asked, strict=True)
                ]
            )
        )

    def lacking(objects: np.ndarray) -> np.ndarray:
        """Objects of each class without those marked."""
        return (
            counts - np.bincount(matches.true_labels[objects], minlength=classes[-1] + 1)[classes]
        )

    now = mean(labels, correct, np.ones_like(correct), counts)
    best = np.zeros_like(correct)  # the best scored error on each missed object
    rows = np.flatnonzero(matches.target >= 0)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    best[rows[np.unique(matches.target[rows], return_index=True)[1]]] = True

    gains = {}
    for number, kind in enumerate(FALSE_KINDS, 1):
        of_kind = matches.kind == number
        mended = of_kind & best
        renamed = labels.copy()
        if kind == "classification":
            renamed[mended] = matches.true_labels[matches.target[mended]]
        gains[kind] = mean(renamed, correct | mended, ~of_kind | mended, counts)
    everything = np.ones_like(correct)
    gains[MISSED] = mean(labels, correct, everything, lacking(matches.missed))
    gains["false positives"] = mean(labels, correct, correct, counts)
    unfound = np.ones(len(matches.true_labels), bool)
    unfound[matches.truth[correct]] = False
    gains["false negatives"] = mean(labels, correct, everything, lacking(unfound))
    return {kind: max(0.0, ap - now) for kind, ap in gains.items()}


@dataclass(frozen=True)
class Evaluation:
    """The errors of an evaluation.

    Attributes:
        matches: of all images.
        classes: labels that have objects, K of them.
        objects: number of each, (K,).
        curves: of each.
        precision, recall, f1: of each at `SCORES`, of the detections with that score or more,
            (K, 1001); precision is NaN where there are none.
        threshold: of `SCORES`, the one with the largest mean F1, or 0.5 if all are 0; counts are of
            detections from it.
        gains: see `error_gains`.
    """

    matches: Matches
    classes: list[int]
    objects: np.ndarray
    curves: list[Curve]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    threshold: float
    gains: dict[str, float]

    @property
    def at_threshold(self) -> int:
        """Index of the threshold in `SCORES`."""
        return int(np.searchsorted(SCORES, self.threshold))

    @property
    def shown(self) -> np.ndarray:
        """Detections with a score of the threshold or more, (D,) bool."""
        return self.matches.scores >= self.threshold


def analyze(images: Mapping[int, Image]) -> Evaluation:
    """Match, and measure: see `Evaluation`."""
    matches = match(images)
    classes = sorted(set(matches.true_labels.tolist()))
    objects = (
        np.bincount(matches.true_labels, minlength=1)[classes] if classes else np.zeros(0, int)
    )
    curves, found, shown = [], [], []
    for rows, count in zip(by_class(matches.labels, classes), objects, strict=True):
        scores, correct = matches.scores[rows], matches.correct[rows]
        curves.append(curve(scores, correct, count))
        found.append(_at_least(scores[correct]))
        shown.append(_at_least(scores))
    found, shown = (
        np.array(counts).reshape(len(classes), len(SCORES)) for counts in (found, shown)
    )
    precision = np.where(shown > 0, found / np.maximum(shown, 1), np.nan)
    f1 = 2 * found / (shown + objects[:, None])
    mean = f1.mean(0) if classes else np.zeros_like(SCORES)
    return Evaluation(
        matches,
        classes,
        objects,
        curves,
        precision,
        found / objects[:, None],
        f1,
        float(SCORES[mean.argmax()]) if mean.any() else 0.5,
        error_gains(matches),
    )


def _at_least(scores: np.ndarray) -> np.ndarray:
    """How many have each of `SCORES` or more."""
    return len(scores) - np.searchsorted(np.sort(scores), SCORES)


def confusion_matrix(evaluation: Evaluation, num_classes: int) -> np.ndarray:
    """Objects by true class (row) and detected class (column); the last of each is background.

    Shape: (num_classes + 1, num_classes + 1) int

    Of detections from the threshold: first those that found an object of their class, so that the
    diagonal agrees with recall and precision; then pairs of different classes, one to one, the
    largest IoU first, from 0.5. The last column has objects that were not found, the last row
    detections of none.
    """
    matches, shown = evaluation.matches, evaluation.shown
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    detected = np.full(len(matches.true_labels), num_classes)
    free = shown & ~matches.correct
    found = shown & matches.correct
    detected[matches.truth[found]] = matches.labels[found]
    for pair in np.argsort(-matches.overlaps, kind="stable"):
        detection, truth = matches.crossed[pair]
        if free[detection] and detected[truth] == num_classes:
            detected[truth] = matches.labels[detection]
            free[detection] = False
    np.add.at(counts, (matches.true_labels, detected), 1)
    counts[-1] += np.bincount(matches.labels[free], minlength=num_classes + 1)
    return counts


class ImageErrors(NamedTuple):
    """Counts of one image, of detections from the threshold."""

    image_id: int
    objects: int
    found: int
    false: dict[str, int]  # of each of `FALSE_KINDS`
    score: float  # sum of the false ones'

    @property
    def missed(self) -> int:
        return self.objects - self.found

    @property
    def errors(self) -> int:
        """False detections and objects that were not found."""
        return sum(self.false.values()) + self.missed


def worst_first(evaluation: Evaluation) -> list[ImageErrors]:
    """All images, those with the most errors first; of equal ones that with the surer errors."""
    matches, shown = evaluation.matches, evaluation.shown
    number = len(matches.images)
    counts = np.zeros((number, len(KINDS)), int)
    np.add.at(counts, (matches.image[shown], matches.kind[shown]), 1)
    objects = np.bincount(matches.true_image, minlength=number)
    false = shown & ~matches.correct
    scores = np.bincount(matches.image[false], matches.scores[false], minlength=number)
    rows = [
        ImageErrors(
            image_id,
            int(objects[index]),
            int(counts[index, 0]),
            dict(zip(FALSE_KINDS, counts[index, 1:].tolist(), strict=True)),
            float(scores[index]),
        )
        for index, image_id in enumerate(matches.images)
    ]
    return sorted(rows, key=lambda row: (-row.errors, -row.score, row.image_id))
