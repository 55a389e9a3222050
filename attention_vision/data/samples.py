"""Samples of a data set to show, and their titles."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attention_vision.data.image_files import path_below

Sample = TypeVar("Sample", covariant=True)


class MapDataset(Protocol[Sample]):
    """A map-style data set that has a length."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


def evenly_spaced(source: MapDataset[Sample], count: int) -> list[Sample]:
    """Up to `count` samples at equal distances of a data set that may be sorted by class."""
    count = min(count, len(source))
    return [source[number * len(source) // count] for number in range(count)]


def titled_samples(data: Any, images: str | None, count: int) -> dict[str, Any]:
    """Title -> sample of a task's data: up to `count`, evenly spaced.

    Args:
        data: a LightningDataModule whose `setup` sets `val_images`, or `predict_images` with
            their `files`.
        images: a folder of images or one image; the validation images where none is given.
        count: samples, at most.

    Raises:
        InputError: there are no images.
    """
    if images is None:
        data.setup("validate")
        source = data.val_images
        titles = [f"val_{number:05}" for number in range(len(source))]
    else:
        data.images = images
        data.setup("predict")
        source = data.predict_images
        names = output_names(source.files, images)
        titles = [names[file].as_posix() for file in source.files]
    return {titles[number]: source[number] for number in evenly_spaced(range(len(source)), count)}


def output_names(files: Sequence[str], folder: str) -> dict[str, Path]:
    """File -> name of what is written for it: its path below the folder, without the suffix.

    The suffix stays where two files differ in it alone, or where the rest is the name of another
    file: two files never share a name, whatever is appended to all of them.
    """
    paths = {file: path_below(file, folder) for file in files}
    counts = Counter(path.with_suffix("") for path in paths.values())
    whole = set(paths.values())

    def name(path: Path) -> Path:
        stem = path.with_suffix("")
        return stem if counts[stem] == 1 and stem not in whole else path

    return {file: name(path) for file, path in paths.items()}
