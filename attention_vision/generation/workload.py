"""Networks of generation on random images, for `profile`: which file knows which module."""

from collections.abc import Sequence

from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan import workload as gan
from attention_vision.generation.gan.module import SAGAN
from attention_vision.generation.image_to_image import workload as image_to_image
from attention_vision.generation.image_to_image.data import ImageToImageData
from attention_vision.generation.image_to_image.module import ImageToImage
from attention_vision.generation.module import GenerationModule
from attention_vision.profiling.cost import Workload


def image_size(data: GenerationData) -> tuple[int, ...]:
    """Sides of a training image or volume."""
    if isinstance(data, ImageToImageData):
        return image_to_image.image_size(data)
    return data.size, data.size


def workloads(
    name: str, module: GenerationModule, size: Sequence[int], batch_size: int
) -> list[Workload]:
    """The networks of a GAN, each by itself, or the one from image to image.

    Raises:
        InputError: images of `size` do not fit, or the class of module is not known.
    """
    match module:
        case SAGAN():
            return gan.workloads(name, module, size, batch_size)
        case ImageToImage():
            return image_to_image.workloads(name, module, size, batch_size)
    kind = type(module).__name__
    raise InputError(f"{name}: profile does not know {kind}, only SAGAN and ImageToImage")
