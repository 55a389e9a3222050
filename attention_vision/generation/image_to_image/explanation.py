"""Gates of Attention U-Net over its input and output images."""

from collections.abc import Sequence

from torch import Tensor

from attention_vision.generation.image_to_image.figures import panel
from attention_vision.generation.image_to_image.module import ImageToImage
from attention_vision.visualization.layer_figures import Page, Wish, panels, stacked
from attention_vision.visualization.layers import Layer, last_of_each, looked


class PairExplanation:
    """Input, result, target if there is one, and the gates of an image-to-image network.

    A sample is (input (C, *size), target), or without a target (input, path, size).
    """

    def __init__(self, module: ImageToImage, names: Sequence[str], wish: Wish):
        self.module, self.wish = module, wish

    def layers(self, sample: tuple) -> dict[str, Layer]:
        inputs = sample[0][None]
        network, point = self.module.network, self.wish.point
        return looked(network, lambda: network(inputs), inputs, None, point)[1]

    def usual(self, layers: dict[str, Layer]) -> list[str]:
        """All gates of the skip connections, else the last of each mechanism."""
        return [name for name, layer in layers.items() if of_skip(layer)] or last_of_each(layers)

    def page(self, sample: tuple, names: list[str]) -> Page:
        inputs, network = sample[0][None], self.module.network
        targets = sample[1][None] if isinstance(sample[1], Tensor) else None
        gates = [name for name in names if name.startswith("gates.")]
        picture, layers = looked(
            network,
            lambda: panel(network, self.module.objective, inputs, targets, gates),
            inputs,
            names,
            self.wish.point,
        )
        pictures, arrays = [picture], {}
        others = [layers[name] for name in names if not of_skip(layers[name])]
        if inputs.ndim == 4 and any(one.shown for one in others):
            image = sample[0][:3] if len(sample[0]) >= 3 else sample[0][:1].expand(3, -1, -1)
            pictures.append(panels(image, "input", others, self.wish.heads))
        for layer in layers.values():
            arrays |= layer.arrays()
        opened = [x.weights.float().mean() for x in layers.values() if of_skip(x)]
        line = ", ".join(f"{mean:.2f}" for mean in opened)
        return Page(stacked(pictures), arrays, f"mean of gates {line}" if line else "")


def of_skip(layer: Layer) -> bool:
    """Whether `panel` draws it: a gate of places on a skip connection."""
    places = layer.kind in ("gate of places", "gate of a volume")
    return layer.name.startswith("gates.") and places
