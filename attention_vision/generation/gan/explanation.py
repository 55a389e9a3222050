"""Attention of a generator over the images that it makes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.generation.gan.figures import attention_sheet
from attention_vision.generation.gan.module import SAGAN
from attention_vision.visualization.drawing import rgb, sheet
from attention_vision.visualization.layer_figures import Page, Wish, drawn, stacked
from attention_vision.visualization.layers import Layer, looked


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
