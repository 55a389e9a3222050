"""Where a generator looks, and where an image-to-image network's gates are open.

For `attention-vision explain`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.figures import rgb, sheet
from attention_vision.generation.figures import attention_sheet
from attention_vision.generation.image_to_image import ImageToImage
from attention_vision.generation.module import SAGAN
from attention_vision.generation.pair_figures import panel
from attention_vision.layer_maps import (
    Layer,
    Page,
    Wish,
    drawn,
    last_of_each,
    looked,
    panels,
    stacked,
)


class GANExplanation:
    """Generated images, and where the averaged generator looked from some points of each.

    A sample is (indices, labels), both (B,): which noise, and the class.

    Args:
        names: of the classes; without any, their numbers are written.
    """

    def __init__(self, module: SAGAN, names: Sequence[str], wish: Wish):
        self.module, self.names, self.wish = module, names, wish

    def layers(self, sample: tuple[Tensor, Tensor]) -> dict[str, Layer]:
        return self.look(sample, None)[1]

    def usual(self, layers: dict[str, Layer]) -> list[str]:
        return [name for name, layer in layers.items() if layer.shown]

    def look(
        self, sample: tuple[Tensor, Tensor], names: Sequence[str] | None
    ) -> tuple[Tensor, dict[str, Layer]]:
        generator, (indices, labels) = self.module.average, sample
        images = torch.empty(len(labels), 3, generator.size, generator.size)
        z = self.module.noise(indices)
        return looked(generator, lambda: generator(z, labels), images, names, self.wish.point)

    def page(self, sample: tuple[Tensor, Tensor], names: list[str]) -> Page:
        images, layers = self.look(sample, names)
        layers = {name: layers[name] for name in names}
        indices, labels = sample
        points = [self.wish.point] if self.wish.point else self.module.attention_points
        titles = [str(self.names[label]) if self.names else str(label) for label in labels.tolist()]
        titles = titles if self.module.average.num_classes else []
        rows = [name for name, layer in layers.items() if layer.point]
        z = self.module.noise(indices)
        top = attention_sheet(self.module.average, z, labels, points, titles, rows)
        pictures = [] if top is None else [top]
        if others := [one for name, one in layers.items() if one.shown and name not in rows]:
            cells = [
                [drawn(layer.of_image(place), images[place : place + 1]) for place in range(len(z))]
                for layer in others
            ]
            row_titles = [[title for _, title in row] for row in cells]
            rows_of = [[picture for picture, _ in row] for row in cells]
            pictures.append(
                sheet([rgb(images), *rows_of], [titles, *row_titles], [""] * (1 + len(others)), 2.0)
            )
        arrays = {"images": images.cpu().numpy(), "labels": labels.cpu().numpy()}
        for layer in layers.values():
            arrays |= layer.arrays()
        return Page(stacked(pictures), arrays, f"{len(z)} images")


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
