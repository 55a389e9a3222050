"""The explainer of each module of generation."""

from collections.abc import Sequence

from attention_vision.errors import InputError
from attention_vision.generation.gan.explanation import GANExplainer
from attention_vision.generation.gan.module import SAGAN
from attention_vision.generation.image_to_image.explanation import ImageToImageExplainer
from attention_vision.generation.image_to_image.module import ImageToImage
from attention_vision.generation.module import GenerationModule
from attention_vision.visualization.explainer import DrawOptions, Explainer


def explainer(module: GenerationModule, names: Sequence[str], options: DrawOptions) -> Explainer:
    """Raises InputError for a class of module that is not known."""
    match module:
        case SAGAN():
            return GANExplainer(module, names, options)
        case ImageToImage():
            return ImageToImageExplainer(module, names, options)
    raise InputError(f"explain does not know {type(module).__name__}, only SAGAN and ImageToImage")
