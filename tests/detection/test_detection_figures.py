"""Pictures of detection, on images and attention whose answer is known."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import Tensor, nn

from attention_vision.attention.recording import capture
from attention_vision.backbones import ResNet
from attention_vision.detection.attention_figures import (
    attention_on_image,
    attention_sheet,
    cross_attention,
)
from attention_vision.detection.data import DigitScenes, collate
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import class_color, draw_detections, unpadded_size
from attention_vision.detection.panel import DetectionPanel
from attention_vision.training.metrics_csv import MetricsCSV

TINY = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "hidden": 16}


def detr(**options: object) -> DETR:
    return DETR(10, 7, ResNet(10, width=8, num_classes=0), **TINY, **options).eval()


def detections(*boxes: list[float], score: float = 0.9) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.full((len(boxes),), score),
        "labels": torch.arange(len(boxes)),
    }


def padded(images: Tensor, *sizes: tuple[int, int]) -> Tensor:
    mask = torch.ones(len(sizes), *images.shape[2:], dtype=torch.bool)
    for row, (height, width) in zip(mask, sizes, strict=True):
        row[:height, :width] = False
    return mask


def query_attention(network: DETR, images: Tensor, padding_mask: Tensor) -> Tensor:
    """(B, Q, H, W) in 0..1: maps of the last decoder layer, mean of the heads; 0 where padded."""
    _, layers = cross_attention(network, images, padding_mask)
    (weights,) = (rows.mean(1) for rows in layers.values())
    maps = weights.new_zeros(*weights.shape[:2], *images.shape[2:])
    for one, rows, mask in zip(maps, weights, padding_mask, strict=True):
        height, width = unpadded_size(mask)
        one[:, :height, :width] = attention_on_image(rows, network, mask)
    return maps


class Fixed(nn.Module):
    """A cross-attention that looks where it is told, (h, Q, N)."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = weights

    def forward(self, query: Tensor, *_: Tensor, key_padding_mask: Tensor) -> Tensor:
        capture(self.weights.expand(len(query), -1, -1, -1))
        return query


@pytest.mark.parametrize("size", [(1, 1), (33, 20), (640, 481), (3, 900)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_any_image_is_drawn_on(size, mode):
    image = Image.new(mode, size)
    width, height = size
    outside = [-5.0, -5.0, width + 9.0, height + 9.0]
    picture = draw_detections(image, detections([0.0, 0, width, height], outside), ["a", "b"])
    assert picture.mode == "RGB"
    factor = picture.width // width
    assert picture.size == (width * factor, height * factor)
    assert max(picture.size) >= 320
    assert factor == 1 or max(size) < 320
    assert image.mode == mode
    assert np.array(picture).any()


def test_boxes_lie_where_they_should():
    image = Image.new("L", (400, 400))
    boxes = detections([50.0, 100, 150, 200], [250.0, 250, 350, 300])
    pixels = np.array(draw_detections(image, boxes, (), truth=torch.tensor([[60.0, 300, 90, 320]])))
    for left, top, right, bottom, ink in (
        (50, 100, 150, 200, class_color(0)),
        (250, 250, 350, 300, class_color(1)),
        (60, 300, 90, 320, (255, 255, 255)),
    ):
        across, down = (left + right) // 2, (top + bottom) // 2
        edges = [(top, across), (bottom, across), (down, left), (down, right)]
        assert all(tuple(pixels[place]) == ink for place in edges)
        assert not pixels[down, across].any()
    faint = detections([50.0, 100, 150, 200], score=0.4)
    assert not np.array(draw_detections(image, faint, ())).any()
    assert np.array(draw_detections(image, faint, (), 0.3)).any()
    assert not np.array(draw_detections(image, detections(), ())).any()


@pytest.mark.parametrize("mask_padding", [False, True])
def test_attention_lands_where_the_query_looks(mask_padding):
    network = detr(mask_padding=mask_padding)
    grid = torch.zeros(2, 7, 3, 5)  # of 70 x 130 pixels, strides of 32
    grid[0, 1, 0, 0], grid[1, 1, 0, 0] = 1, 1
    grid[0, 2, 1, 3] = 1  # in the first image only: the second is 40 x 60
    grid[:, 3, 1, 1] = 1
    network.transformer.decoder[-1].cross_attention = Fixed(grid.flatten(2))
    images = torch.randn(2, 3, 70, 130)
    maps = query_attention(network, images, padded(images, (70, 130), (40, 60)))
    assert maps.shape == (2, 7, 70, 130)
    assert maps.min() >= 0
    assert (maps[0, 1:4].amax((1, 2)) == 1).all()
    assert peak(maps[0, 1]) == pytest.approx([7.5, 7.5], abs=8.5)
    assert peak(maps[0, 2]) == pytest.approx([48, 112], abs=2)
    assert peak(maps[1, 3]) == pytest.approx([37.5, 53.5], abs=8)  # the cell's part inside
    assert not maps[1, :, 40:].any()
    assert not maps[1, :, :, 60:].any()
    assert maps[1, 3, 39, 59] == 1  # no zeros of the padding blended in
    assert not maps[1, 2].any()


def peak(heat: Tensor) -> list[float]:
    return (heat == heat.max()).nonzero().float().mean(0).tolist()


def test_real_attention_in_inference_mode_and_alone():
    network = detr(mask_padding=True)
    images = torch.randn(2, 3, 64, 96)
    mask = padded(images, (64, 96), (40, 50))
    images[1].masked_fill_(mask[1], 0)
    with torch.inference_mode():
        maps = query_attention(network, images, mask)
        alone = query_attention(network, images[1:, :, :40, :50], mask[1:, :40, :50])
        page = attention_sheet(network, images[1], mask[1], [], count=20)
    assert maps.amax((2, 3)).eq(1).all()
    torch.testing.assert_close(maps[1:, :, :40, :50], alone, atol=1e-3, rtol=0)
    assert page.dtype == np.uint8
    assert page.shape[2] == 3
    assert page.shape[1] > 7 * 200  # seven queries, not twenty


class Interactive(WandbLogger):
    """Keeps what it is given, and checks it as wandb does."""

    def __init__(self):
        self.given: dict[str, dict] = {}

    def log_image(self, key: str, images: list, step: None = None, **parts: list) -> None:
        assert step is None
        self.given[key] = {"images": images, **parts}
        for place, image in enumerate(images):
            wandb.Image(image, **{part: values[place] for part, values in parts.items()})


class Other(nn.Module):
    """A detector that is no DETR."""

    num_classes = 10


class Module:
    """A module as far as the panel knows it."""

    def __init__(self, network: nn.Module):
        self.network = network

    def detect(self, images: Tensor, padding_mask: Tensor) -> list[dict[str, Tensor]]:
        return [detections([0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 1.0, 0.8]) for _ in images]


def test_the_panels_images_are_spread_over_the_validation_set():
    data = DigitScenes(1, 30, size=48)
    data.setup("validate")
    batch = collate([data.val_images[place] for place in range(4)])
    panel, trainer = DetectionPanel(5), SimpleNamespace(datamodule=data)
    (images, _, _), *_ = samples = panel.chosen(trainer, (batch[0].bfloat16(), *batch[1:]))
    assert images.dtype == torch.bfloat16
    assert images.shape == (1, 3, 48, 48)
    assert [target["image_id"] for _, _, (target,) in samples] == [1, 7, 13, 19, 25]
    assert len(DetectionPanel(50).chosen(trainer, batch)) == 30
    trainer.datamodule = None
    for place, (images, padding_mask, (target,)) in enumerate(panel.chosen(trainer, batch)):
        assert torch.equal(images, batch[0][place : place + 1])
        assert padding_mask.shape == (1, 48, 48)
        assert target is batch[2][place]


@pytest.mark.parametrize("network", [detr, Other])
def test_the_panel_reaches_the_loggers(tmp_path: Path, network):
    data = DigitScenes(1, 9, size=48, batch_size=8)
    data.setup("validate")
    batch = collate([data.val_images[place] for place in range(8)])
    logger, folder = Interactive(), MetricsCSV(str(tmp_path))
    trainer = SimpleNamespace(
        loggers=[folder, logger, DummyLogger()],
        sanity_checking=True,
        is_global_zero=True,
        datamodule=data,
    )
    module, callback = Module(network()), DetectionPanel()
    streams = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    with torch.inference_mode():
        callback.on_validation_batch_end(trainer, module, None, batch, 0)
        assert not logger.given
        trainer.sanity_checking = False
        callback.on_validation_batch_end(trainer, module, None, batch, 1)
        assert not logger.given
        callback.on_validation_batch_end(trainer, module, None, batch, 0)
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002

    keys = {"val/panel", "val/boxes"} | ({"val/attention"} if network is detr else set())
    assert set(logger.given) == keys
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    pages = sorted(keys - {"val/boxes"})
    assert files == [f"{key.replace('/', '_')}_000000.png" for key in pages]
    (page,) = logger.given["val/panel"]["images"]
    # Six; 48 pixels seven times, and gaps; the legend below.
    assert page.shape[1:] == (3 * 340, 3)
    assert 2 * 340 < page.shape[0] < 2 * 340 + 60
    shown = logger.given["val/boxes"]
    assert len(shown["images"]) == len(shown["boxes"]) == 6
    targets = [data.val_images[place][1] for place in (0, 1, 3, 4, 6, 7)]  # six of nine
    for kinds, target in zip(shown["boxes"], targets, strict=True):
        found, truth = kinds["predictions"], kinds["ground_truth"]
        assert found["class_labels"] == truth["class_labels"] == dict(enumerate(data.class_names))
        corner = {"minX": 0.1, "minY": 0.2, "maxX": 0.5, "maxY": 0.6}
        assert found["box_data"][0]["position"] == pytest.approx(corner)
        assert [box["class_id"] for box in truth["box_data"]] == target["labels"].tolist()
