"""An image as its file has it, decoded whole, or one region of it at reduced size."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from attention_vision.data.image_files import UNREADABLE, open_image, read_image, unreadable


def jpeg_decoder() -> Callable[[bytes], Tensor] | None:
    """The fastest decoder at hand, of an RGB or gray JPEG to (3, H, W) uint8; None for Pillow's.

    All of them are libjpeg-turbo, with the same bits. To a tensor, simplejpeg takes 0.55 of
    Pillow's time, torchvision 0.6 (which announces in 0.29 that it will leave decoding to others).
    They raise ValueError and RuntimeError at a damaged file.
    """
    with suppress(ImportError):
        decode: Any = import_module("simplejpeg").decode_jpeg  # of the extra `speed`
        return lambda content: torch.from_numpy(decode(content)).permute(2, 0, 1)
    with suppress(ImportError):
        from torchvision.io import decode_jpeg

        def decoded(content: bytes) -> Tensor:
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return cast(Tensor, decode_jpeg(encoded, cast(Any, "RGB")))

        return decoded
    return None


DECODE_JPEG = jpeg_decoder()
REDUCTIONS = (8, 4, 2)  # of the sides, by which libjpeg decodes to less than is stored


class EncodedImage:
    """An image that is not decoded yet: the transform knows which part it needs, and how large.

    Pixels are those of `read_image`, with its messages; see `jpeg_decoder`.

    Args:
        path: of the file; see `read_image`.
        content: of the file, where it is not on disk.

    Raises:
        InputError: the file cannot be opened; by the methods, it does not decode.
    """

    def __init__(self, path: str | Path, content: bytes | None = None):
        self.path, self.content = path, content
        if content is None:
            with suppress(OSError):  # a page of a TIFF, or Pillow says what is wrong
                self.content = Path(path).read_bytes()
        opened = self.path if self.content is None else io.BytesIO(self.content)
        try:
            with open_image(opened) as image:
                self.is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
                exif = Image.Image.getexif(image)
                self.orientation = exif.get(ExifTags.Base.Orientation, 1)
                self.stored = image.height, image.width
        except UNREADABLE as error:
            raise unreadable(self.path, error) from None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        height, width = self.stored
        return (height, width) if self.orientation < 5 else (width, height)

    def pillow(self) -> Image.Image:
        """The whole image, upright, RGB."""
        return read_image(self.path, content=self.content)

    def tensor(self) -> Tensor:
        """The whole image, upright, (3, H, W) uint8; a JPEG is channels-last in memory."""
        plain = self.is_jpeg and self.orientation == 1
        if plain and self.content is not None and DECODE_JPEG is not None:
            with suppress(RuntimeError, ValueError):  # damaged: Pillow has the words for it
                return DECODE_JPEG(self.content)
        return functional.pil_to_tensor(self.pillow())

    def region(
        self,
        top: int,
        left: int,
        height: int,
        width: int,
        size: Sequence[int],
        filter: InterpolationMode,
    ) -> Tensor:
        """A rectangle in pixels of the upright image, resized: (3, *size) uint8.

        A JPEG is decoded at 1/8, 1/4 or 1/2 of its sides, the least at which the region still has
        `size` pixels; nothing is ever enlarged that was reduced. Below that factor, and of other
        kinds of files, the region is cut from the whole image.

        Args:
            top, left, height, width: of the region.
            size: (height, width) of the result.
            filter: torchvision's `InterpolationMode` of the resize, with antialiasing.
        """
        factor = reduction(height / size[0], width / size[1]) if self.is_jpeg else 1
        if factor == 1:
            whole = self.tensor()
            return functional.resized_crop_image(
                whole, top, left, height, width, list(size), filter, antialias=True
            )
        reduced = read_image(self.path, content=self.content, reduction=factor)
        # Sides are rounded up, and what that adds lies right and below in the image as stored.
        right = down = 0.0
        if self.orientation in (2, 3, 6, 7):
            right = reduced.width - self.size[1] / factor
        if self.orientation in (3, 4, 7, 8):
            down = reduced.height - self.size[0] / factor
        box = (
            left / factor + right,
            top / factor + down,
            min((left + width) / factor + right, reduced.width),
            min((top + height) / factor + down, reduced.height),
        )
        return functional.pil_to_tensor(
            reduced.resize((size[1], size[0]), Image.Resampling[filter.name], box)
        )


def reduction(*factors: float) -> int:
    """The greatest of 8, 4 and 2 by which sides may shrink that shrink by `factors`; or 1."""
    least = math.floor(min(factors))
    return next((factor for factor in REDUCTIONS if factor <= least), 1)
