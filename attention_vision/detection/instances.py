"""A checked table of the objects of a data set, whatever format they were read from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

ROUNDING = 0.5  # pixels by which a box may leave its image without a word: files are rounded
MANY_CROWDS = 0.2  # share of the objects; COCO has 1.2 %


class ImageEntry(NamedTuple):
    """An image that is annotated; its file is relative to the folder of the images."""

    number: int
    file: str
    width: int
    height: int


class ObjectEntry(NamedTuple):
    """An object of one of the images."""

    image: int  # index of its image
    box: tuple[float, float, float, float]  # xyxy in pixels
    category: int
    area: float
    crowd: int


@dataclass(frozen=True)
class Instances:
    """Annotated images and their objects, checked; objects in the order of the images.

    Flat arrays, which worker processes share without copies.
    """

    path: Path
    categories: dict[int, str]
    files: list[str]
    image_ids: np.ndarray  # (images,)
    sizes: np.ndarray  # (images, 2): heights and widths
    first: np.ndarray  # (images + 1,): where an image's objects begin
    boxes: np.ndarray  # (objects, 4) float64, xyxy in pixels
    category_ids: np.ndarray  # (objects,)
    area: np.ndarray  # (objects,)
    iscrowd: np.ndarray  # (objects,)
    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        path: Path,
        categories: dict[int, str],
        images: Sequence[ImageEntry],
        objects: Iterable[ObjectEntry],
        repairs: "Repairs",
    ) -> "Instances":
        """The table of some images and objects; warns once of what was repaired."""
        ordered = sorted(objects, key=lambda found: found.image)  # stable: as in the file
        indices, boxes, category_ids, area, iscrowd = (
            zip(*ordered, strict=True) if ordered else [()] * 5
        )
        repairs.warn()
        return cls(
            path=path,
            categories=categories,
            files=[image.file for image in images],
            image_ids=np.array([image.number for image in images], dtype=np.int64),
            sizes=np.array([(h, w) for *_, w, h in images], dtype=np.int64).reshape(-1, 2),
            first=np.searchsorted(np.array(indices, dtype=np.int64), np.arange(len(images) + 1)),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            category_ids=np.array(category_ids, dtype=np.int64),
            area=np.array(area, dtype=np.float64),
            iscrowd=np.array(iscrowd, dtype=np.int64),
            repaired=repairs.lines(),
            warnings=repairs.warnings,
        )

    def chosen(self, images: Sequence[int]) -> "Instances":
        """The table of some of the images, in the order given."""
        if list(images) == list(range(len(self.files))):
            return self
        spans = [np.arange(*self.first[index : index + 2]) for index in images]
        objects = np.concatenate(spans).astype(int) if spans else np.arange(0)
        lengths = [len(span) for span in spans]
        return replace(
            self,
            files=[self.files[index] for index in images],
            image_ids=self.image_ids[list(images)],
            sizes=self.sizes[list(images)],
            first=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            boxes=self.boxes[objects],
            category_ids=self.category_ids[objects],
            area=self.area[objects],
            iscrowd=self.iscrowd[objects],
        )

    def rarest(self) -> list[int]:
        """The category of each image that the fewest images have; -1 without objects."""
        here = [
            set(self.category_ids[slice(*self.first[index : index + 2])].tolist())
            for index in range(len(self.files))
        ]
        counts: dict[int, int] = {}
        for categories in here:
            for category in categories:
                counts[category] = counts.get(category, 0) + 1
        return [min(one, key=lambda k: (counts[k], k)) if one else -1 for one in here]


def crowds_in_words(crowds: int, objects: int) -> str:
    return (
        f"{crowds} of the {objects} objects are crowds (iscrowd 1), which are not trained on:"
        " annotation tools mark single objects so that were drawn with a brush, whose masks are"
        " RLE; set iscrowd to 0 for those"
    )


class Repairs:
    """Counts what was repaired in a file, with the first example of each kind."""

    def __init__(self, path: str | Path):
        self.path = path
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.warnings: list[str] = []

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, example)

    def parts(self) -> list[str]:
        """Each kind, counted, with its first example."""
        return [f"{n} {kind} (first: {self.first[kind]})" for kind, n in self.counts.items()]

    def lines(self) -> list[str]:
        return [f"{self.path}: {part}" for part in self.parts()]

    def warn(self) -> None:
        """One warning that counts all repairs, and one per line on what looks wrong."""
        if self.counts:
            rank_zero_warn(f"{self.path}: {'; '.join(self.parts())}")
        for line in self.warnings:
            rank_zero_warn(line)


def fitted_box(
    box: tuple[float, float, float, float], image: ImageEntry, example: str, repairs: Repairs
) -> tuple[float, float, float, float] | None:
    """A box xyxy, clipped to its image where it leaves it by more than rounding; None if empty."""
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        repairs.add("boxes without area dropped", example)
        return None
    clipped = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        repairs.add("boxes wholly outside their image dropped", example)
        return None
    if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > ROUNDING:
        repairs.add("boxes clipped to their image", example)
        return clipped
    return box
