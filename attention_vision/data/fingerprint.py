"""Fingerprint of a data set: names and sizes of its files, and its labels, without contents."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from attention_vision.errors import InputError
from attention_vision.identity import digest


def innermost(images: Any, name: str) -> Any:
    """Find the first data set with an attribute, along `source` of those that wrap another."""
    while images is not None and not hasattr(images, name):
        images = getattr(images, "source", None)
    return images


def file_columns(images: Any) -> list[list[str]]:
    """Return the image files of a data set, and then, where each has a mask, the masks.

    Data sets and sources that read files have them as `files`: of each the path, or a tuple of
    paths, or of a path and a label.
    """
    reader = innermost(images, "files")
    entries = [] if reader is None else reader.files
    if not len(entries):
        return [[]]
    if not isinstance(entries[0], tuple):
        return [[str(path) for path in entries]]
    kept = [number for number, part in enumerate(entries[0]) if not isinstance(part, int)]
    return [[str(entry[number]) for entry in entries] for number in kept]


def file_sizes(files: Sequence[str]) -> np.ndarray:
    """Return the bytes of each file, (n,) int64; -1 for a missing one."""
    return np.fromiter(map(size_of, files), np.int64, len(files))


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def fingerprint(images: Any, columns: Sequence[Sequence[str]], sizes: np.ndarray) -> dict[str, Any]:
    """Return the number of samples, and digests of names, sizes and annotations.

    Names are those below the folder that all files share: neither absolute paths nor dates count.

    Args:
        images: the data set; labels are its `targets`, other annotations `annotations`, bytes.
        columns: its files, see `file_columns`.
        sizes: of all of them, in their order.
    """
    found: dict[str, Any] = {"samples": len(columns[0]) or len(images)}
    if columns[0]:
        found["files"] = digest(names_below(files) for files in columns)
        found["sizes"] = digest([sizes.tobytes()])
    if (annotated := innermost(images, "annotations")) is not None:
        found["labels"] = digest(annotated.annotations)
    elif (labeled := innermost(images, "targets")) is not None:
        found["labels"] = digest([class_numbers(labeled).tobytes()])
    return found


def class_numbers(labeled: Any) -> np.ndarray:
    """The `targets` of a data set, (n,) int64. Raises InputError for names in their place."""
    try:
        return np.asarray(labeled.targets, dtype=np.int64)
    except (TypeError, ValueError):
        one = next((one for one in labeled.targets if not isinstance(one, int)), labeled.targets)
        raise InputError(
            f"{type(labeled).__name__}.targets has {one!r}: give the number of each image's class,"
            " from 0"
        ) from None


def names_below(files: Sequence[str]) -> bytes:
    """Return a line for each file: its path below the folder that all of them share."""
    ends = min(files), max(files)  # what these two share, all share
    start = os.path.commonprefix(ends).rfind(os.sep) + 1  # noqa: RUF071 (cut at a separator)
    return as_lines(file[start:] for file in files).replace(os.sep.encode(), b"/")


def as_lines(names: Iterable[str]) -> bytes:
    """Encode names as lines; systems differ in how they store accents."""
    return unicodedata.normalize("NFC", "\n".join(names)).encode(errors="surrogateescape")
