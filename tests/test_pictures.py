"""Pictures of all tasks: legends, sizes, names of files, and that drawing changes nothing."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor

from attention_vision.backbones import ResNet
from attention_vision.classification.figures import ImagePanel
from attention_vision.data.samples import output_names
from attention_vision.generation import AttentionUNet, Generator
from attention_vision.generation.gan.figures import SampleGrid
from attention_vision.generation.image_to_image.figures import (
    ImageToImagePanel,
    class_colors,
    to_pictures,
)
from attention_vision.generation.image_to_image.module import Segmentation
from attention_vision.training.logging import WithoutPictures
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.visualization.drawing import sheet, with_legend


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.png", "b/a.png"], ["a", "b/a"]),
        (["a/b_c.png", "a_b/c.png"], ["a/b_c", "a_b/c"]),
        (["a.png", "a.jpg", "b.jpg"], ["a.png", "a.jpg", "b"]),
        (["a.png", "a.jpg", "a.png.bmp"], ["a.png", "a.jpg", "a.png.bmp"]),
    ],
)
def test_two_files_never_share_a_name(files, names):
    found = output_names([f"photos/{file}" for file in files], "photos")
    assert [name.as_posix() for name in found.values()] == names
    assert list(output_names(["photos/a.png"], "photos/a.png").values()) == [Path("a")]


def test_a_legend_shows_its_colors_below_the_picture():
    picture = np.full((50, 60, 3), 7, np.uint8)
    page = with_legend(picture, [((255, 0, 0), "a class"), ((0, 255, 0), "another one " * 9)])
    assert (page[:50, :60] == 7).all()
    assert page.shape[1] > 300  # as wide as its widest entry
    for color in ((255, 0, 0), (0, 255, 0)):
        assert (page[50:] == color).all(-1).sum() > 100
    wrapped = with_legend(picture.repeat(6, 1), [(None, f"words {n}") for n in range(30)])
    assert wrapped.shape[1] == 360
    assert wrapped.shape[0] > 50 + 5 * 20


@pytest.mark.parametrize(("side", "width"), [(32, 160), (200, 200), (900, 256)])
def test_pictures_of_a_sheet_have_a_size_one_can_see(side, width):
    page = sheet([torch.zeros(1, side, side, 3)], [[]], ["black"])
    black = (page == 0).all(-1)
    assert 0.8 * width < black.sum(1).max() < 1.15 * width
    assert 0.8 * width < black.sum(0).max() < 1.15 * width


def test_a_class_has_the_same_color_in_every_picture():
    whole, part = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 1, 1, 255]]])
    colors = class_colors(4)
    assert torch.equal(to_pictures(whole, 4)[0, 0], colors)
    assert torch.equal(to_pictures(part, 4)[0, 0, :3], colors[[0, 1, 1]])
    assert (to_pictures(part, 4)[0, 0, 3] == 0.5).all()  # no class, such as what is ignored
    assert to_pictures(whole.clamp(max=1), 2)[0, 0].tolist() == [[0.0] * 3, *[[1.0] * 3] * 3]


class Drawing(torch.nn.Module):
    """A SAGAN as far as its pictures know it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.average = Generator(size=16, latent=4, width=8, num_classes=3, attention_at=(8,))

    def draw(self, indices: Tensor, labels: Tensor) -> Tensor:
        return self.average(torch.ones(len(labels), 4) * indices[:, None], labels)


def classifier() -> tuple[Callback, Any, Any]:
    network = ResNet(10, num_classes=3, width=8, stem="cifar")
    batch = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    return ImagePanel(), SimpleNamespace(network=network.eval()), batch


def segmenter() -> tuple[Callback, Any, Any]:
    network = AttentionUNet(3, 3, width=2, depth=2, gated_levels=(2,)).eval()
    module = SimpleNamespace(network=network, objective=Segmentation())
    return ImageToImagePanel(), module, (torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16).long())


def generator() -> tuple[Callback, Any, Any]:
    return SampleGrid(4), Drawing().eval(), None


@pytest.mark.parametrize("make", [classifier, segmenter, generator])
def test_panels_are_drawn_by_one_process_and_change_nothing(
    make: Callable[[], tuple[Callback, Any, Any]], tmp_path: Path
) -> None:
    callback, module, batch = make()
    trainer = SimpleNamespace(
        loggers=[MetricsCSV(str(tmp_path))],
        callbacks=[WithoutPictures()],
        sanity_checking=False,
        is_global_zero=True,
        datamodule=SimpleNamespace(class_names=["cat", "dog", "eel"]),
    )

    def draw() -> list[Path]:
        with torch.inference_mode():
            if isinstance(callback, SampleGrid):
                callback.on_validation_end(trainer, module)
            else:
                callback.on_validation_batch_end(trainer, module, None, batch, 0)
        return list(tmp_path.glob("pictures/*"))

    streams = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert not draw()
    trainer.callbacks, trainer.is_global_zero = [], False
    assert not draw()
    trainer.is_global_zero = True
    (file,) = draw()
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002
    with Image.open(file) as picture:
        assert np.asarray(picture).std() > 20
        assert picture.width > 300
