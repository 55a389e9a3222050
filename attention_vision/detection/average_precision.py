"""COCO's average precision, exact at any number of processes.

Detections and ground truths are gathered as they are and evaluated once, by the code that the
leaderboard runs or its port to C++; nothing is averaged over batches or processes. The
MeanAveragePrecision of torchmetrics lacks size limits, processes without images, and one count per
image_id.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from attention_vision.detection.boxes import to_pixels
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked

# The order in which pycocotools summarizes.
NUMBERS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
COCO_SIZES = (32.0, 96.0)
Detections = dict[str, Tensor]


class Image(NamedTuple):
    """Detections and ground truth of one image, in float64; boxes are x, y, w, h in its pixels."""

    boxes: np.ndarray  # (k, 4)
    scores: np.ndarray  # (k,)
    labels: np.ndarray  # (k,)
    true_boxes: np.ndarray  # (n, 4)
    true_labels: np.ndarray  # (n,)
    areas: np.ndarray  # (n,)
    crowds: np.ndarray  # (n,)


@checked
class COCOAveragePrecision(Metric):
    """The 12 numbers of the COCO challenge for boxes, and AP per class.

    `ap` is the mean over IoU 0.50, 0.55 ... 0.95, classes and 101 recalls; `ap50` and `ap75` are at
    one IoU; `ar1`, `ar10`, `ar100` the largest recall with that many detections per image. Small
    is an area of up to 32^2 pixels, medium to 96^2, large beyond, where area is the annotation's
    (of the mask, in COCO); other `size_limits` suit images that are smaller than COCO's. At most
    100 detections per image and class count, the best scored. A crowd is not an object to find:
    detections on it count neither way. A number without ground truth is -1.

    An image counts once, by its `image_id`, even if a process repeats it; a process may have none.

    Args:
        class_names: name of each label, for `per_class`; numbers where none are given.
        category_ids: category of each label, for `per_class` where there are no names.
        engine: "pycocotools", or "faster_coco_eval" of the extra `speed`, about ten times as fast.
            Their numbers differ by rounding, 2e-16. None is the fastest that is installed.
        size_limits: sides in pixels of the squares up to which objects are small and medium.

    Raises InputError where the engine is not installed, or the limits do not ascend from above 0.
    """

    full_state_update = False
    __hash__ = object.__hash__  # torchmetrics hashes the states, which are arrays here

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        engine: str | None = None,
        size_limits: tuple[NonNegative, NonNegative] = COCO_SIZES,
    ):
        super().__init__()
        if not 0 < size_limits[0] < size_limits[1]:
            raise InputError(
                f"size_limits {tuple(size_limits)}: the first must be above 0, the second above it"
            )
        self.names = class_names if class_names is not None else category_ids
        if engine is None:
            engine = "faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools"
        load_engine(engine)  # a missing one is told now, not after the first epoch
        self.engine, self.size_limits = engine, (size_limits[0], size_limits[1])
        self.class_ap: dict[str, float] = {}
        self.gathered: dict[int, Image] = {}  # by id, of all processes, from `compute` to `reset`
        self.add_state("images", default=[], dist_reduce_fx=None)  # (image_id, Image) pairs

    def update(self, predictions: list[Detections], targets: list[dict[str, Any]]) -> None:
        """Adds images.

        Args:
            predictions: per image `boxes` (k, 4) xyxy in pixels of the file, `scores` (k,) and
                `labels` (k,).
            targets: per image `image_id`, `orig_size` (h, w), `boxes` (n, 4) cxcywh in 0..1,
                `labels`, `area` and `iscrowd`, all (n,), crowds included; none without `iscrowd`.

        Raises InputError for predictions that are not finite, which sort in no order.
        """
        for found, target in zip(predictions, targets, strict=True):
            image_id = int(target["image_id"])
            size = torch.as_tensor(target["orig_size"]).cpu().double()
            image = Image(
                _xywh(_array(found["boxes"])),
                _array(found["scores"]),
                _array(found["labels"]),
                _xywh(to_pixels(target["boxes"].detach().cpu().double(), size).numpy()),
                _array(target["labels"]),
                _array(target["area"]),
                _array(target.get("iscrowd", torch.zeros_like(target["labels"]))),
            )
            if not (np.isfinite(image.boxes).all() and np.isfinite(image.scores).all()):
                raise InputError(
                    f"a box or score predicted for image {image_id} is not finite: the network has"
                    " diverged, lower the learning rate or start from an earlier checkpoint"
                )
            self.images.append((image_id, image))

    def compute(self) -> dict[str, float]:
        """The 12 numbers by name, of all processes: all of them call it."""
        images = dict(reversed(self.images))  # the first of two with one id stays
        self.gathered = images = dict(sorted(images.items()))
        numbers, per_class = evaluate(*_coco_format(images), self.engine, self.size_limits)
        self.class_ap = {self._name(label): ap for label, ap in per_class.items()}
        return dict(zip(NUMBERS, numbers, strict=True))

    def per_class(self) -> dict[str, float]:
        """AP of each class that has ground truth, by name. Computes first if need be."""
        self.compute()
        return self.class_ap

    def reset(self) -> None:
        super().reset()
        self.gathered = {}

    def _name(self, label: int) -> str:
        return str(label if self.names is None else self.names[label])

    def _sync_dist(
        self, dist_sync_fn: Callable | None = None, process_group: Any | None = None
    ) -> None:
        """Gathers objects: as tensors, a process without images has shapes that fit no other's."""
        group = process_group or self.process_group
        parts: list[list] = [[] for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather_object(parts, self.images, group=group)
        self.images = [pair for part in parts for pair in part]

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = ()) -> torch.nn.Module:
        return super()._apply(fn, exclude_state=("images", *exclude_state))  # stays on the CPU


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _coco_format(images: dict[int, Image]) -> tuple[dict[str, list], dict[str, list]]:
    """Ground truths and detections as the engines read them; ids start at 1, since 0 is unmatched.

    Detections keep their order within an image: it decides between equal scores.
    """
    if not images:
        return {"annotations": []}, {"annotations": []}
    truths = _annotations(
        images,
        [image.true_labels for image in images.values()],
        bbox=[image.true_boxes for image in images.values()],
        area=[image.areas for image in images.values()],
        iscrowd=[image.crowds.astype(int) for image in images.values()],
    )
    detections = _annotations(
        images,
        [image.labels for image in images.values()],
        bbox=[image.boxes for image in images.values()],
        area=[image.boxes[:, 2] * image.boxes[:, 3] for image in images.values()],
        iscrowd=[np.zeros(len(image.boxes), int) for image in images.values()],
        score=[image.scores for image in images.values()],
    )
    labels = sorted({annotation["category_id"] for annotation in [*truths, *detections]})
    shared = {
        "images": [{"id": image_id} for image_id in images],
        "categories": [{"id": label} for label in labels],
    }
    return {**shared, "annotations": truths}, {**shared, "annotations": detections}


def _annotations(
    images: Iterable[int], labels: Sequence[np.ndarray], **columns: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Annotations of all images, whose columns are converted as one: by far the quickest way."""
    of_image = [np.full(len(one), id_) for id_, one in zip(images, labels, strict=True)]
    columns = {"image_id": of_image, "category_id": [one.astype(int) for one in labels]} | columns
    values = (np.concatenate(column).tolist() for column in columns.values())
    names = ("id", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(count(1), *values)]


def evaluate(
    truths: dict, detections: dict, engine: str, size_limits: tuple[float, float]
) -> tuple[list[float], dict[int, float]]:
    """Data sets in COCO format -> the 12 numbers, and AP by label of those with ground truth."""
    if not truths["annotations"]:
        return [-1.0] * len(NUMBERS), {}
    index, evaluation = load_engine(engine)
    with redirect_stdout(io.StringIO()):  # pycocotools prints at every step
        sides = []
        for dataset in (truths, detections):
            side = index()  # given results as a list, it would demand that there is one
            side.dataset = dataset
            side.createIndex()
            sides.append(side)
        evaluated = evaluation(*sides, "bbox")
        small, medium = (side**2 for side in size_limits)
        (_, huge), *_ = evaluated.params.areaRng  # of all, small, medium, large
        evaluated.params.areaRng = [[0, huge], [0, small], [small, medium], [medium, huge]]
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    numbers = [float(number) for number in evaluated.stats[: len(NUMBERS)]]
    # (IoU, recall, class, area, detections): all areas, 100 detections
    precision = evaluated.eval["precision"][:, :, :, 0, -1]
    labels = [category["id"] for category in truths["categories"]]
    by_label = {label: precision[:, :, index] for index, label in enumerate(labels)}
    return numbers, {
        label: float(values.mean()) for label, values in by_label.items() if values.max() > -1
    }


def load_engine(engine: str) -> tuple[type, type]:
    """The engine's index of a data set and its evaluation. Raises InputError without it."""
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if engine != "faster_coco_eval":
        raise InputError(f"no engine {engine}: pycocotools or faster_coco_eval")
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise InputError(
            'the engine faster_coco_eval is missing: pip install "attention-vision[speed]"'
        ) from None
    return COCO, COCOeval_faster
