"""Attention of a generator over the images that it generates, for `attention-vision explain`."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from attention_vision.errors import InputError
from attention_vision.generation.gan.figures import attention_sheet, shown_classes
from attention_vision.generation.gan.module import SAGAN
from attention_vision.visualization.drawing import rgb, sheet
from attention_vision.visualization.explainer import DrawOptions, ExplainedImage
from attention_vision.visualization.layer_figures import layer_picture, stack_pictures
from attention_vision.visualization.layers import Layer, record_layers

Sample = tuple[Tensor, Tensor]  # indices and labels, both (B,): which noise, and the class


class GANExplainer:
    """Draws generated images, and what the averaged generator attended to from points of each.

    Args:
        names: of the classes; without any, their numbers are written.
    """

    def __init__(self, module: SAGAN, names: Sequence[str], options: DrawOptions):
        self.module, self.names, self.options = module, names, options

    def samples(
        self, data: LightningDataModule, images: str | None, count: int
    ) -> dict[str, Sample]:
        """One sample of `count` images, of different classes. Raises InputError for `images`."""
        if images is not None:
            raise InputError("--images: a GAN generates its images from noise, leave it out")
        labels = shown_classes(self.module.average.num_classes, count)
        return {"generated": (torch.arange(len(labels)), labels)}

    def layers(self, sample: Sample) -> dict[str, Layer]:
        return self.generate(sample, None)[1]

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        return [name for name, layer in layers.items() if layer.can_be_drawn]

    def explain(self, sample: Sample, names: list[str]) -> ExplainedImage:
        images, layers = self.generate(sample, names)
        layers = {name: layers[name] for name in names}
        indices, labels = sample
        points = [self.options.point] if self.options.point else self.module.attention_points
        titles = [str(self.names[label]) if self.names else str(label) for label in labels.tolist()]
        titles = titles if self.module.average.num_classes else []
        from_points = [name for name, layer in layers.items() if layer.point]
        z = self.module.noise(indices)
        top = attention_sheet(self.module.average, z, labels, points, titles, from_points)
        pictures = [] if top is None else [top]
        drawable = [name for name, layer in layers.items() if layer.can_be_drawn]
        others = [layers[name] for name in drawable if name not in from_points]
        if others:
            cells = [
                [layer_picture(layer.of_image(n), images[n : n + 1]) for n in range(len(z))]
                for layer in others
            ]
            row_titles = [[title for _, title in row] for row in cells]
            rows = [rgb(images), *([picture for picture, _ in row] for row in cells)]
            pictures.append(sheet(rows, [titles, *row_titles], [""] * len(rows), 2.0))
        arrays = {"images": images.cpu().numpy(), "labels": labels.cpu().numpy()}
        for layer in layers.values():
            arrays |= layer.arrays()
        return ExplainedImage(stack_pictures(pictures), arrays, f"{len(z)} images")

    def generate(
        self, sample: Sample, names: Sequence[str] | None
    ) -> tuple[Tensor, dict[str, Layer]]:
        """Images (B, 3, H, W), and the named layers that generated them; None is all."""
        generator, (indices, labels) = self.module.average, sample
        images = torch.empty(len(labels), 3, generator.size, generator.size)
        z, point = self.module.noise(indices), self.options.point
        return record_layers(generator, lambda: generator(z, labels), images, names, point)
