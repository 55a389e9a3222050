"""Image files on disk: one reader and one lister for the data of all tasks.

Every ending that Pillow reads is an image. Files and folders whose names begin with a dot,
`__MACOSX` and files of other kinds are no data: they are left out and counted.
"""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from attention_vision.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JUNK = "__MACOSX"  # the folder of companions in archives that macOS packed
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
# Endings of images that Pillow reads with a plug-in only, which registers itself when it is here.
PLUGINS = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".avif": "pillow-avif-plugin",
    ".jxl": "pillow-jxl-plugin",
}
RANGES = (255, 4095, 65535)  # of 8, 12 and 16 bits
DOCUMENTS = {
    ".pdf",
    ".ps",
    ".eps",
    ".mpg",
    ".mpeg",
    ".h5",
    ".hdf",
    ".grib",
    ".bufr",
    ".wmf",
    ".emf",
}
UNREADABLE = Exception  # a damaged file fails anywhere in its decoder
# Pixels of an image at most, as stored. A few bytes of PNG may stand for terabytes. Pillow's
# own limit warns from half as many on; here there is one.
MOST_PIXELS = 178_956_970
Image.MAX_IMAGE_PIXELS = None


@cache
def extensions() -> frozenset[str]:
    """Endings of files that Pillow reads here, in lower case and with their dot.

    Those of HEIC and AVIF are among them if their plug-in is installed.
    """
    for register in ("pillow_heif", "pillow_avif", "pillow_jxl"):
        try:
            plugin = __import__(register)
        except ImportError:
            continue
        if register == "pillow_heif":
            plugin.register_heif_opener()
    readable = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and ending not in DOCUMENTS
    }
    return frozenset(readable)


@cache
def kinds() -> tuple[str, ...]:
    """Pillow's names of the kinds of files that `extensions` are endings of, frequent ones first.

    Whatever its ending says, a file is opened as one of these only: a PostScript file named
    photo.png would be run by Ghostscript.
    """
    found = {Image.registered_extensions()[ending] for ending in extensions()}
    return tuple(
        sorted(found, key=lambda kind: (kind not in ("JPEG", "PNG"), Image.ID.index(kind)))
    )


def read_image(
    path: str | Path, turn: bool = True, content: bytes | None = None, reduction: int = 1
) -> Image.Image:
    """Read an RGB image, turned upright as its EXIF orientation says.

    Palettes are resolved and CMYK is converted; transparent pixels keep the color that lies under
    them. Gray images of more than 8 bits are scaled: the least of 255, 4,095 and 65,535 that is
    not exceeded becomes white, 1 becomes white in an image of floats in 0..1. Of a file with
    several frames the first is read.

    Args:
        path: of the file; FILE.tif/3 is the page 3 of a TIFF, counted from 0.
        turn: apply the EXIF orientation; without, the image is as it is stored.
        content: of the file, where it is not on disk.
        reduction: 2, 4 or 8 decodes a JPEG to sides of 1/2, 1/4 or 1/8, rounded up, which needs
            less time; images of other kinds stay as they are.

    Raises:
        InputError: the file cannot be read, or is gray with negative or not finite values.
    """
    try:
        with open_image(path if content is None else io.BytesIO(content)) as image:
            if reduction > 1:  # rounded down: Pillow takes a factor that leaves at least this
                sides = max(1, image.width // reduction), max(1, image.height // reduction)
                image.draft("RGB", sides)
            upright = eight_bits(ImageOps.exif_transpose(image) if turn else image, path)
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")  # else Pillow warns of the step to RGB
            return upright.convert("RGB")
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def read_levels(path: str | Path) -> np.ndarray:
    """Read a mask with its numbers as they are, upright: (H, W), or (H, W, 3) uint8 if colored.

    Of a palette image the palette's indices, whatever their colors; of GIF the gray levels.

    Raises:
        InputError: the file cannot be read, or holds fractions.
    """
    try:
        with open_image(path) as image:
            upright = ImageOps.exif_transpose(image)
            numbered = upright.mode == "P" and image.format != "GIF"  # GIF numbers as it likes
            if upright.mode == "L" or numbered or upright.mode.startswith("I"):
                return np.array(upright)
            if upright.mode == "F":
                levels = np.array(upright)
                if not np.isfinite(levels).all() or (levels % 1).any():
                    raise InputError(f"{path}: a mask of fractions: classes are whole numbers")
                return levels.astype(np.int64)
            gray = upright.convert("L")
            colored = upright.convert("RGB")
            return np.array(gray if colored == gray.convert("RGB") else colored)
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(path, error, "mask") from None


@contextmanager
def open_image(path: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image, the content of its file, or a page of a TIFF.

    Raises:
        ValueError: it has more than `MOST_PIXELS`.
    """
    page = 0
    if not isinstance(path, io.BytesIO):
        file = Path(path)
        if file.name.isdecimal() and file.parent.is_file():
            path, page = file.parent, int(file.name)
    with Image.open(path, formats=kinds()) as image:
        if page:
            image.seek(page)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
        yield image


def eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Scale gray images of integers of more than 8 bits, or of floats; leave others alone."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.float64)
    low, high = (levels.min(), levels.max()) if levels.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise InputError(
            f"{path}: gray values from {low:g} to {high:g} (mode {image.mode}) are no brightness:"
            " convert it to 8 or 16 bits"
        )
    white = white_of(float(high), image.mode == "F")
    return Image.fromarray((levels * (255 / white)).round().astype(np.uint8))


def white_of(high: float, fractions: bool) -> float:
    """The value that becomes white, of a gray image with the largest value `high`."""
    ranges = (1, *RANGES) if fractions else RANGES
    return next((top for top in ranges if high <= top), high)


def unreadable(path: str | Path, error: BaseException, kind: str = "image") -> InputError:
    """One line on a file that Pillow does not read."""
    if isinstance(error, InputError):
        return error
    ending = Path(path).suffix.lower()
    if ending in PLUGINS and ending not in extensions():
        return InputError(f"cannot read the {kind} {path}: pip install {PLUGINS[ending]}")
    reason = str(error).partition(" <_io.")[0]  # Pillow's name of bytes in memory
    return InputError(f"cannot read the {kind} {path}: repair or remove it ({reason})")


@dataclass
class Listing:
    """Images below a folder.

    Attributes:
        files: their paths, in order.
        left_out: kind of what was left out -> the paths, without what lies in folders left out.
    """

    files: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def below(self, folder: str | Path) -> list[str]:
        """Paths of the files below the folder that was listed, with forward slashes."""
        start = len(str(folder).rstrip(os.sep)) + 1
        return [path[start:].replace(os.sep, "/") for path in self.files]

    def leave_out(self, kind: str, path: str) -> None:
        self.left_out.setdefault(kind, []).append(path)


def list_images(folder: str | Path) -> Listing:
    """List the images below a folder in the order of their paths, through links and subfolders.

    A folder that links lead to twice on one path is entered once. Empty if there is no such folder.
    """
    found = Listing()
    for path, ending in walk(str(folder), found):
        if ending in extensions():
            found.files.append(path)
        elif ending in PLUGINS:
            found.leave_out(f"*{ending} (pip install {PLUGINS[ending]})", path)
        else:
            found.leave_out(f"*{ending}" if ending else "files without an ending", path)
    found.files.sort()
    return found


def walk(
    folder: str, found: Listing, entered: set[tuple[int, int]] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (path, ending in lower case) of all files below a folder that may be data.

    Args:
        folder: through links and subfolders; a folder that links lead to again is entered once.
        found: counts what is left out.
        entered: folders to stay out of.
    """
    entered = set() if entered is None else entered
    try:
        status = os.stat(folder)
        here = status.st_dev, status.st_ino
        if here in entered:
            found.leave_out("linked folders that were read already", folder)
            return
        entered.add(here)
        entries = os.scandir(folder)
    except OSError:
        return
    with entries:
        for entry in entries:
            if is_junk(entry.name):
                found.leave_out("hidden or of the system", entry.path)
            elif entry.is_dir():
                yield from walk(entry.path, found, entered)
            elif not entry.is_file():  # a pipe would be waited for
                found.leave_out("no files, or links to nothing", entry.path)
            else:
                yield entry.path, os.path.splitext(entry.name)[1].lower()


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is never data."""
    return name.startswith(".") or name == JUNK or name.lower() in SYSTEM_FILES


def class_folders(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders that contain images, and of those that do not, sorted; no junk."""
    if not Path(folder).is_dir():
        return [], []
    names = sorted(one.name for one in Path(folder).iterdir() if one.is_dir())
    full = [name for name in names if not is_junk(name) and holds_image(Path(folder, name))]
    return full, [name for name in names if name not in full and not is_junk(name)]


def holds_image(folder: str | Path) -> bool:
    return any(ending in extensions() for _, ending in walk(str(folder), Listing()))


def image_files(folder: str) -> list[str]:
    """All images below a folder, in the order of their paths, or the one file that it is.

    A TIFF of several pages stands for a folder of them, FILE.tif/00, FILE.tif/01 and so on.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if Path(folder).is_file():
        return pages(folder)
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}: set data.images to a folder of images")
    found = list_images(folder)
    if not found.files:
        raise no_images(folder, found)
    return found.files


def pages(file: str) -> list[str]:
    """The pages of a TIFF that has several, or the file itself."""
    try:
        with open_image(file) as image:
            count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    except UNREADABLE:  # whoever reads it says so
        count = 1
    digits = len(str(count - 1))
    return [file] if count == 1 else [f"{file}/{page:0{digits}}" for page in range(count)]


def no_images(folder: str | Path, found: Listing) -> InputError:
    """One line on a folder without an image, and on what is there."""
    there = ", ".join(f"{len(paths)} {kind}" for kind, paths in found.left_out.items())
    return InputError(f"no images in {folder}: it has " + (there or "no files"))


def broken_images(files: Iterable[str]) -> dict[str, str]:
    """File -> reason, of those that do not decode to their last pixel."""
    files = list(files)
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        return {f: why for f, why in zip(files, pool.map(reason_broken, files), strict=True) if why}


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Width and height of an image, upright, from its header; None if Pillow cannot read it."""
    if (found := header(path)) is None:
        return None
    (width, height), orientation = found
    return (height, width) if orientation >= 5 else (width, height)


def header(path: str | Path) -> tuple[tuple[int, int], int] | None:
    """Width and height of an image as stored, and its EXIF orientation; None if unreadable."""
    try:
        with open_image(path) as image:
            # PNG's own method would decode the image, to look for EXIF behind its pixels.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
            return image.size, orientation
    except UNREADABLE:
        return None


def reason_broken(file: str | io.BytesIO) -> str | None:
    """Why an image does not decode to its last pixel; None if it does."""
    try:
        with open_image(file) as image:
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            eight_bits(image, str(file))
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    return None


def leaves_folder(name: str) -> bool:
    """Whether a file name, read below a folder, means a file outside of it."""
    plain = os.path.normpath(name.replace("\\", "/"))
    return os.path.isabs(plain) or plain.split("/")[0] == ".." or PureWindowsPath(name).drive != ""


def path_below(file: str, folder: str) -> Path:
    """The path of one of the `image_files` of a folder, below it; its name where it is the one."""
    return Path(file).relative_to(Path(file).parent if file == folder else folder)


def largest_values(files: Iterable[str]) -> Counter[float]:
    """Value that becomes white -> number of files, of those that are gray with more than 8 bits."""
    found: Counter[float] = Counter()
    for path in files:
        try:
            with open_image(path) as image:
                if image.mode == "F" or image.mode.startswith("I"):
                    found[white_of(float(np.asarray(image).max()), image.mode == "F")] += 1
        except UNREADABLE:
            continue
    return found
