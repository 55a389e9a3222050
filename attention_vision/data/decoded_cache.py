"""A cache on disk of decoded images, resized to a short side: the second epoch decodes nothing."""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode

from attention_vision.data.encoded_image import EncodedImage
from attention_vision.data.fingerprint import file_columns, names_below
from attention_vision.data.image_files import image_size
from attention_vision.errors import InputError
from attention_vision.identity import digest

LAYOUT = 1  # of the file; another number is another fingerprint
HEAD = 4096  # bytes of the JSON before the arrays
SAMPLED = 1024  # bytes, of which one goes into a checksum
THREADS = 8  # that read headers of images


class CachedImages:
    """A source whose image files are kept decoded, with their short side at most `side` pixels.

    FOLDER/NAME_SIDE.pixels has them as uint8, each filled when it is first read, by any worker or
    process; all epochs see these pixels, the first as well. It belongs to files of these names,
    sizes and dates, and is made anew for others. Its space is reserved when it is made. An image
    counts as filled by a checksum that is written behind it: a run that is killed, or a machine
    that fails, leaves none that is half written.

    Args:
        source: (image, label) by index, and its `files`.
        folder: of the cache.
        name: of the split.
        side: short side in pixels; smaller images keep their size.
    """

    def __init__(self, source: Any, folder: str | Path, name: str, side: int):
        self.source, self.side = source, side
        self.file = Path(folder) / f"{name}_{side}.pixels"
        self.targets, self.class_names = source.targets, getattr(source, "class_names", ())
        self._opened: Pixels | None = None

    def open(self) -> None:
        """Open the file, or make it: at the first reading otherwise, in each process.

        Raises:
            InputError: the folder cannot be written, or the disk has no space for it.
        """
        if self._opened is None:
            (paths, *_) = file_columns(self.source)
            self._opened = open_pixels(self.file, paths, self.side)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.open()
        pixels = self._opened
        assert pixels is not None
        image = pixels.read(index)
        if image is None:
            encoded, _ = self.source[index]
            image = pixels.fill(index, encoded)
        return image, int(self.targets[index])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}


class Pixels:
    """The file of `CachedImages`, mapped into memory: head, sizes, checksums, images.

    Args:
        file: of this layout.
        head: its bytes of JSON, parsed.
    """

    def __init__(self, file: Path, head: dict[str, Any]):
        count = head["images"]
        self.sizes = np.fromfile(file, np.int32, 2 * count, offset=HEAD).reshape(count, 2)
        self.checked = HEAD + self.sizes.nbytes
        self.start, self.ends = places(self.sizes)
        # Private: a transform that writes to an image would write to the file.
        self.map = np.asarray(np.memmap(file, np.uint8, mode="c"))
        self.checksums = self.map[self.checked : self.checked + 4 * count].view(np.uint32)
        self.file, self.descriptor = file, os.open(file, os.O_RDWR)

    def read(self, index: int) -> Tensor | None:
        """An image, (3, H, W) uint8, channels-last in memory; None where it is not filled."""
        expected = self.checksums[index]
        if not expected:
            return None
        height, width = self.sizes[index].tolist()
        end = self.start + int(self.ends[index])
        pixels = self.map[end - 3 * height * width : end]
        if checksum(pixels) != expected:
            return None
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def fill(self, index: int, image: EncodedImage) -> Tensor:
        """Decode an image, write it and return it."""
        height, width = self.sizes[index].tolist()
        whole = (0, 0, *image.size)
        resized = image.region(*whole, (height, width), InterpolationMode.BILINEAR)
        pixels = resized.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        start = self.start + int(self.ends[index]) - pixels.size
        written = np.uint32(checksum(pixels)).tobytes()
        try:
            os.pwrite(self.descriptor, pixels.data, start)
            os.pwrite(self.descriptor, written, self.checked + 4 * index)
        except OSError as error:
            raise unwritable(self.file, error) from error
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.descriptor)


def checksum(pixels: np.ndarray) -> int:
    """A checksum of some of the bytes, never 0: a page that a failing machine lost is told."""
    return zlib.crc32(pixels[::SAMPLED].tobytes()) or 1


def places(sizes: np.ndarray) -> tuple[int, np.ndarray]:
    """Where the pixels begin in the file, and the end of each image behind that, in bytes."""
    ends = np.cumsum(3 * sizes.astype(np.int64).prod(1))
    return -(-(HEAD + 12 * len(sizes)) // HEAD) * HEAD, ends


def open_pixels(file: Path, paths: Sequence[str], side: int) -> Pixels:
    """Open the cache of some files; make it where there is none of them.

    Raises:
        InputError: the folder cannot be written, or the disk has no space for it.
    """
    fingerprint = fingerprint_of(paths, side)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".lock")):
            head = read_head(file)
            if head is None or head["fingerprint"] != fingerprint:
                if head is not None:
                    print(f"data.cache: {file} is of other files, and is made anew", flush=True)
                head = make(file, fingerprint, resized_sizes(paths, side))
        return Pixels(file, head)
    except OSError as error:
        raise unwritable(file, error) from error


def unwritable(file: Path, error: OSError) -> InputError:
    """One line on a cache that the disk does not take."""
    return InputError(f"data.cache: {file} cannot be written: {error.strerror}")


def fingerprint_of(paths: Sequence[str], side: int) -> str:
    """Digest of names below the common folder, bytes and dates of files, and of the size."""
    stats = [os.stat(path) if os.path.exists(path) else None for path in paths]
    numbers = [(-1, -1) if one is None else (one.st_size, one.st_mtime_ns) for one in stats]
    parts = f"{LAYOUT} {side}".encode(), names_below(paths), np.array(numbers, np.int64).tobytes()
    return digest(parts)


def resized_sizes(paths: Sequence[str], side: int) -> np.ndarray:
    """(n, 2) int32 heights and widths, with short sides of at most `side`, from the headers."""

    def resized(path: str) -> tuple[int, int]:
        width, height = image_size(path) or (1, 1)  # whoever reads it says so
        factor = min(1.0, side / min(width, height))
        return max(1, round(height * factor)), max(1, round(width * factor))

    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(list(pool.map(resized, paths)), np.int32)


def make(file: Path, fingerprint: str, sizes: np.ndarray) -> dict[str, Any]:
    """Write a cache in which no image is filled, aside, then rename it; say how large it is.

    Returns its head.
    """
    start, ends = places(sizes)
    size, free = start + int(ends[-1]), shutil.disk_usage(file.parent).free
    gib, head = size / 2**30, {"fingerprint": fingerprint, "images": len(sizes), "bytes": size}
    if size > free:
        raise InputError(
            f"data.cache: {file} needs {gib:.1f} GiB, and {free / 2**30:.1f} GiB are free: name a"
            " folder on another disk, or leave data.cache out"
        )
    print(f"data.cache: {file} takes {gib:.2f} GiB for {len(sizes)} images", flush=True)
    part = file.with_suffix(".part")  # of this process: it has the lock
    with part.open("wb") as stream:
        stream.write(json.dumps(head).encode().ljust(HEAD))
        stream.write(sizes.tobytes())
        stream.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
        os.fsync(stream.fileno())
    os.replace(part, file)
    return head


def read_head(file: Path) -> dict[str, Any] | None:
    """The head of a cache; None where there is none, or not all of it."""
    try:
        with file.open("rb") as stream:
            head = json.loads(stream.read(HEAD))
        return head if head["bytes"] == file.stat().st_size else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock inside; processes of any kind wait for each other."""
    with file.open("a") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        yield
