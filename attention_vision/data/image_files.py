"""Image files on disk, for the data of all tasks."""

from pathlib import Path

import torchvision
from PIL import Image, ImageOps

from attention_vision.errors import InputError

EXTENSIONS = torchvision.datasets.folder.IMG_EXTENSIONS
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_image(path: str, upright: bool = False) -> Image.Image:
    """An RGB image. Raises InputError that names a file which cannot be read.

    Args:
        path: of the file; grey, palette and transparent images become RGB.
        upright: turn the image as its EXIF orientation says.
    """
    try:
        with Image.open(path) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: repair or remove it ({error})") from None


def image_files(folder: str) -> list[str]:
    """All images below a folder, in the order of their paths, or the one file that it is.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if Path(folder).is_file():
        return [folder]
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}: set data.images to a folder of images")
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
    found = sorted(str(path) for path in files)
    if not found:
        raise InputError(f"no images in {folder}: looked for {', '.join(EXTENSIONS)}")
    return found


def path_below(file: str, folder: str) -> Path:
    """The path of one of the `image_files` of a folder, below it; its name where it is the one."""
    return Path(file).relative_to(Path(file).parent if file == folder else folder)
