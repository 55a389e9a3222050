"""Data in YOLO format: data.yaml, and a text file of boxes per image."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from attention_vision.data.formats import hint
from attention_vision.data.image_files import extensions, image_size, list_images
from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SPLIT_NAMES, SplitShares, split_folder
from attention_vision.detection.annotated_files import DETR_RECIPE, AnnotatedFiles, read_lines
from attention_vision.detection.instances import (
    ImageEntry,
    Instances,
    ObjectEntry,
    Repairs,
    fitted_box,
)
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Seed, Workers, checked
from attention_vision.yaml_json import read_yaml


@checked
class YOLOFolder(AnnotatedFiles):
    """YOLO: ROOT/data.yaml, images, and NAME.txt of each in `labels` in the place of `images`.

    As ultralytics, Roboflow, CVAT and Label Studio write it. data.yaml has `names`, and the images
    of each split as a folder, several, or a file that lists them; a path that is not there, as in
    Roboflow's exports, is looked for by its folder's name. Without data.yaml there may be
    classes.txt or obj.names, a name per line. Where the images are not divided, `split` does.
    Categories are numbered from 0 as in the files.

    A line is a class and either center, width and height in shares of the image, or the corners of
    a polygon or a turned box, whose extent is taken. An image without a file has no objects.

    Args:
        root: the folder, or its data.yaml.
        recipe, group_by_shape: see `DetectionData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        root: str,
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: Count = 2,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            recipe, batch_size, num_workers, seed, images, group_by_shape, split, on_bad_image
        )
        self.given = Path(root)
        self.root = self.given.parent if self.given.suffix in (".yaml", ".yml") else self.given

    def has_own(self, split: str) -> bool:
        return self._places(split) is not None

    def folder(self, split: str) -> Path:
        return self.root

    @cached_property
    def categories(self) -> dict[int, str]:
        return self._names

    def reference(self) -> str:
        return str(self._file or self.root)

    def instances(self, split: str) -> Instances:
        places = self._places(split)
        if places is None:
            inner = self.root / "images"
            places = [inner if inner.is_dir() else self.root]
        files = [file for place in places for file in images_at(place)]
        if split == "train" and self._places("train") is None:  # all that is not held out
            held_out = {
                file
                for other in ("val", "test")
                for place in self._places(other) or ()
                for file in images_at(place)
            }
            files = [file for file in files if file not in held_out]
        files = list(dict.fromkeys(files))  # a list may name one twice
        if not files:
            raise InputError(
                f"no images in {', '.join(map(str, places))}, which"
                f" {self._file or self.root} names for {split}"
            )
        pose, skip = self._config.get("kpt_shape") is not None, self.on_bad_image == "skip"
        return read_yolo(files, self.root, self._names, Path(self.reference()), pose, skip)

    @cached_property
    def _file(self) -> Path | None:
        if self.given != self.root:
            return self.given
        found = sorted([*self.root.glob("*.yaml"), *self.root.glob("*.yml")])
        named = [file for file in found if file.stem in ("data", "dataset")]
        return next(iter(named or found), None)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_yaml(self._file) if self._file else {}

    @cached_property
    def _names(self) -> dict[int, str]:
        names = self._config.get("names")
        if isinstance(names, list):
            names = dict(enumerate(names))
        if isinstance(names, dict) and names:
            try:
                named = {int(number): str(name) for number, name in sorted(names.items())}
            except (TypeError, ValueError):
                named = {}
            if len(named) == len(names):
                return self._checked_names(named)
        if names is None:
            for file in ("classes.txt", "obj.names"):
                if (path := self.root / file).is_file():
                    lines = read_lines(path)
                    return dict(enumerate(line.strip() for line in lines if line.strip()))
            raise InputError(
                f"no names of classes in {self.root}: set data.root to a folder with data.yaml"
                f"{hint(self.root, 'YOLOFolder')}"
            )
        raise InputError(f"{self._file}: names {names!r} are not names of classes by number")

    def _checked_names(self, names: dict[int, str]) -> dict[int, str]:
        """Names of which none stands twice, as many as data.yaml says."""
        if len(set(names.values())) < len(names):
            raise InputError(f"{self._file}: classes have the same name: {list(names.values())}")
        count = self._config.get("nc", len(names))
        if count != len(names):
            raise InputError(f"{self._file}: nc is {count}, and there are {len(names)} names")
        return names

    def _places(self, split: str) -> list[Path] | None:
        """Folders and lists of the images of a split; None where nothing says."""
        given = next((self._config[k] for k in SPLIT_NAMES[split] if self._config.get(k)), None)
        if given is not None:
            entries = given if isinstance(given, list) else [given]
            places = [self._found(str(entry)) for entry in entries]
            if all(places):
                return [place for place in places if place]
        for folder in (self.root, self.root / "images"):
            if (place := split_folder(folder, split)) is not None:
                inner = place / "images"
                return [inner if inner.is_dir() else place]
        if given is not None and split == "train":
            raise InputError(f"{self._file}: {split} names {given}, which is not in {self.root}")
        return None

    def _found(self, entry: str) -> Path | None:
        """The folder or file that an entry of data.yaml means."""
        plain = Path(entry.replace("\\", "/"))
        base = Path(str(self._config.get("path") or ""))
        inside = Path(*[part for part in plain.parts if part not in ("..", ".", "/")])
        candidates = (self.root / base / plain, base / plain, self.root / plain, self.root / inside)
        return next((place for place in candidates if place.exists()), None)


def images_at(place: Path) -> list[str]:
    """Images of a folder, or of a file that lists them, a path per line."""
    if place.is_dir():
        return list_images(place).files
    if place.suffix.lower() in extensions():
        return [str(place)]
    lines = [line.strip() for line in read_lines(place)]
    return [listed_image(place.parent, line) for line in lines if line]


def listed_image(folder: Path, line: str) -> str:
    """The image that a line of a list means: below the folder, else of the longest part that is.

    A list that another machine wrote begins its paths with folders that are not here.
    """
    path = Path(line.replace("\\", "/"))
    if path.is_absolute() and path.exists():
        return str(path)
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    ends = (folder / path, *(folder.joinpath(*parts[n:]) for n in range(len(parts))))
    return str(next((end for end in ends if end.exists()), path))


def label_file(image: str) -> Path:
    """The file of the boxes: `labels` for the last `images` of its path, else beside it."""
    path = Path(image)
    parts, beside = list(path.parts), path.with_suffix(".txt")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            apart = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
            return apart if apart.is_file() or not beside.is_file() else beside
    return beside


def read_yolo(
    files: list[str],
    root: Path,
    names: dict[int, str],
    path: Path,
    pose: bool = False,
    skip: bool = False,
) -> Instances:
    """Read the boxes of images in YOLO format.

    Args:
        files: the images.
        root: what their names are relative to, as far as they are below: a division by names is
            the same wherever the folder lies.
        names: of the classes.
        path: that names the classes, for messages.
        pose: key points follow each box; they are left out.
        skip: an image that cannot be read is taken for an empty one, which is left out later.

    Raises:
        InputError: an image that cannot be read, or a line that is no box; it names the line.
    """
    repairs = Repairs(path)
    common = Path(os.path.commonpath([Path(file).parent for file in files]))
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        sizes = list(pool.map(image_size, files))
    images, objects, without = [], [], []
    for index, (file, size) in enumerate(zip(files, sizes, strict=True)):
        if size is None and not skip:
            raise InputError(f"cannot read the image {file}: repair or remove it")
        base = root if root in Path(file).parents else common
        below = Path(file).relative_to(base)
        image = ImageEntry(index + 1, below.as_posix(), *(size or (1, 1)))
        images.append(image)
        if size is None:
            continue
        text = label_file(file)
        if not text.is_file():
            without.append(text)
            continue
        objects += yolo_objects(text, index, image, names, path, repairs, pose)
    if len(without) == len(files):
        raise InputError(
            f"none of the {len(files)} images has a file of boxes, such as {without[0]}"
        )
    for text in without:
        repairs.add("images without a file of boxes, taken for empty", str(text))
    return Instances.build(path, names, images, objects, repairs)


def yolo_objects(
    file: Path,
    index: int,
    image: ImageEntry,
    names: dict[int, str],
    path: Path,
    repairs: Repairs,
    pose: bool = False,
) -> Iterable[ObjectEntry]:
    """The objects of a file of boxes."""
    seen = set()
    for place, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        if line in seen:
            repairs.add("lines that stand there twice dropped", f"{file}, line {place}")
            continue
        seen.add(line)
        where = f"{file}, line {place}"
        try:
            number, *values = (float(word) for word in line.split())
        except ValueError:
            raise InputError(f"{where}: {line[:60]!r} is not a class and numbers") from None
        if number not in names:
            raise InputError(
                f"{where}: class {number:g} is not among the {len(names)} names of {path}"
            )
        if pose:
            values = values[:4]
        if len(values) == 5:
            repairs.add("confidences of boxes left out", where)
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise InputError(
                f"{where}: {len(values)} numbers behind the class; a box has 4, a polygon pairs"
            )
        if not all(-0.5 <= value <= 1.5 for value in values):  # rounding, and a little outside
            raise InputError(f"{where}: {line[:60]!r} is not in shares of the image, 0..1")
        box = extent(values, image)
        fitted = fitted_box(box, image, f"{where}: {line[:60]}", repairs)
        if fitted is not None:
            area = (fitted[2] - fitted[0]) * (fitted[3] - fitted[1])
            yield ObjectEntry(index, fitted, int(number), area, 0)


def extent(values: list[float], image: ImageEntry) -> tuple[float, float, float, float]:
    """Box xyxy in pixels, of center and size or of the corners of a polygon, in shares."""
    if len(values) == 4:
        x, y, width, height = values
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        left, right = min(values[::2]), max(values[::2])
        top, bottom = min(values[1::2]), max(values[1::2])
    wide, high = image.width, image.height
    return left * wide, top * high, right * wide, bottom * high
