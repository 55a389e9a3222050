"""Pictures of a GAN, and the files that predict leaves."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tiny_gan import few_digits, gan

from attention_vision.attention import SpatialGate, SqueezeExcite, record_attention
from attention_vision.generation import Generator
from attention_vision.generation.gan.figures import (
    attention_from_points,
    attention_sheet,
    grid,
    interpolate,
    to_pixel_arrays,
)
from attention_vision.generation.gan.predictions import file_name
from attention_vision.training.logging import WithoutPictures


def generator(**arguments: object) -> Generator:
    shape = {"size": 16, "latent": 4, "width": 8, "attention_at": (8,)}
    return Generator(**(shape | arguments)).eval()


def test_grid_places_images_row_by_row() -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(-1, 3, 96, 96)
    page = grid(images, 3)
    assert page.shape == (2 * 98 + 2, 3 * 98 + 2, 3)
    assert page[2 + 48, 2 + 48, 0] == 0
    assert page[98 + 2 + 48, 98 + 2 + 48, 0] == 255
    assert (page[98 + 2 :, 2 * 98 + 2 :] == 255).all()  # no sixth image


def test_small_images_are_enlarged_by_whole_factors_and_large_ones_shrunk() -> None:
    assert grid(torch.zeros(1, 3, 16, 16), 1).shape == (96 + 4, 96 + 4, 3)
    assert grid(torch.zeros(1, 3, 48, 48), 1).shape == (96 + 4, 96 + 4, 3)
    assert grid(torch.zeros(1, 3, 256, 256), 1).shape == (128 + 4, 128 + 4, 3)
    named = grid(torch.zeros(2, 3, 48, 48), 1, ["eight", "a long name"])
    assert named.shape[0] == 2 * 98 + 2
    assert (named[:98, : named.shape[1] - 100] < 128).any()  # the first row's name


def test_looks_are_the_rows_of_the_chosen_points() -> None:
    network = generator()
    with torch.no_grad():
        network.blocks[0].attention.gamma.fill_(1.0)
        network.blocks[0].attention.query.weight.mul_(20)  # sharp, and so unlike each other
    z, labels = torch.randn(2, 4), torch.tensor([1, 7])
    points = [(0.0, 0.0), (1.0, 0.5)]
    images, maps = attention_from_points(network, z, labels, points)
    assert torch.allclose(images, network(z, labels), atol=1e-4)  # the eager path rounds otherwise
    assert {name: map.shape for name, map in maps.items()} == {"blocks.0.attention": (2, 2, 16, 16)}
    with torch.no_grad(), record_attention(network) as weights:
        network(z, labels)
    row = weights["blocks.0.attention"][1, 0, 4 * 8 + 7].unflatten(0, (4, 4))  # of (1, 0.5)
    shown = maps["blocks.0.attention"][1, 1].unflatten(0, (4, 4)).unflatten(2, (4, 4)).mean((1, 3))
    assert shown.argmax() == row.argmax()


def test_without_attention_there_is_no_sheet() -> None:
    z, labels = torch.randn(2, 4), torch.tensor([1, 7])
    for attention in (torch.nn.Identity, SpatialGate, SqueezeExcite):
        network = generator(attention=attention, attention_at=(16,))
        assert attention_sheet(network, z, labels, [(0.5, 0.5)]) is None
    assert attention_sheet(generator(), z, labels, [(0.5, 0.5)]).ndim == 3


def test_interpolation_ends_where_it_should() -> None:
    network, ends, labels = generator(), torch.randn(2, 3, 4), torch.tensor([0, 4, 9])
    with torch.no_grad():
        way = interpolate(network, ends, labels, 5).unflatten(0, (3, 5))
        for place, end in ((0, ends[0]), (4, ends[1])):
            assert torch.allclose(way[:, place], network(end, labels), atol=1e-4)


def test_predict_leaves_images_and_pictures(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    module = gan()
    trainer.predict(module, few_digits(), return_predictions=False)
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == [f"{number:06}_{number % 10}.png" for number in range(20)]
    index = torch.tensor([13])
    with torch.no_grad():
        expected = to_pixel_arrays(module.eval().draw(index, index % 10))[0]
    written = np.asarray(Image.open(tmp_path / "samples" / "000013_3.png"))
    assert np.abs(written.astype(int) - expected).max() <= 1
    names = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert names == {"samples", "interpolation", "attention", *(f"class_{n}" for n in range(10))}
    assert file_name(SimpleNamespace(datamodule=few_digits()), 3) == "3"
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path / "alone")
    (alone, *_) = trainer.predict(module, few_digits().predict_dataloader())
    assert alone.shape == (6, 3, 16, 16)
    assert not (tmp_path / "alone").exists()


def test_classes_of_one_plain_name_have_files_of_their_own() -> None:
    names = ["a b", "a-b", "c", "C", "d"]
    trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=names))
    found = [file_name(trainer, label) for label in range(5)]
    assert found == ["a-b_0", "a-b_1", "c_2", "C_3", "d"]


def test_without_pictures_there_are_samples_only(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
        callbacks=[WithoutPictures()],
    )  # fmt: skip
    trainer.predict(gan(), few_digits(count=2), return_predictions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
