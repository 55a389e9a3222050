"""Gates of Attention U-Net over its input and output, for `attention-vision explain`."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from attention_vision.data.samples import titled_samples
from attention_vision.generation.image_to_image.figures import panel
from attention_vision.generation.image_to_image.module import ImageToImage
from attention_vision.visualization.explainer import DrawOptions, ExplainedImage
from attention_vision.visualization.layer_figures import layer_sheet, stack_pictures
from attention_vision.visualization.layers import Layer, last_of_each, record_layers

Sample = tuple[Any, ...]  # input (C, *size) and target, or without a target input, path and size


class ImageToImageExplainer:
    """Draws input, result, target if there is one, and the gates of an image-to-image network."""

    def __init__(self, module: ImageToImage, names: Sequence[str], options: DrawOptions):
        self.module, self.class_names, self.options = module, names, options

    def samples(self, data: LightningDataModule, images: str | None, count: int) -> dict[str, Any]:
        return titled_samples(data, images, count)

    def layers(self, sample: Sample) -> dict[str, Layer]:
        inputs, network = sample[0][None], self.module.network
        point = self.options.point
        return record_layers(network, lambda: network(inputs), inputs, None, point)[1]

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        """All gates of the skip connections, or the last layer of each mechanism."""
        return [name for name, layer in layers.items() if gates_skip(layer)] or last_of_each(layers)

    def explain(self, sample: Sample, names: list[str]) -> ExplainedImage:
        inputs, network = sample[0][None], self.module.network
        targets = sample[1][None] if isinstance(sample[1], Tensor) else None
        gates = [name for name in names if name.startswith("gates.")]
        picture, layers = record_layers(
            network,
            lambda: panel(network, self.module.objective, inputs, targets, gates, self.class_names),
            inputs,
            names,
            self.options.point,
        )
        pictures, arrays = [picture], {}
        others = [layers[name] for name in names if not gates_skip(layers[name])]
        if inputs.ndim == 4 and any(one.can_be_drawn for one in others):
            image = sample[0][:3] if len(sample[0]) >= 3 else sample[0][:1].expand(3, -1, -1)
            pictures.append(layer_sheet(image, "input", others, self.options.heads))
        for layer in layers.values():
            arrays |= layer.arrays()
        means = [layer.weights.float().mean() for layer in layers.values() if gates_skip(layer)]
        line = ", ".join(f"{mean:.2f}" for mean in means)
        return ExplainedImage(
            stack_pictures(pictures), arrays, f"mean of gates {line}" if line else ""
        )


def gates_skip(layer: Layer) -> bool:
    """Whether a layer is a spatial gate of a skip connection, which `panel` draws."""
    return layer.name.startswith("gates.") and layer.kind == "spatial gate"
