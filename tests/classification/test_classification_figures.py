"""Where a network looks, on networks whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attention_vision.attention import CBAM, AttentionPool
from attention_vision.backbones import MeanPool, ResNet, ViT
from attention_vision.classification import figures
from attention_vision.classification.figures import ImagePanel, panel, saliency_maps
from attention_vision.visualization.drawing import scaled

NETWORKS = {
    "class token's attention": lambda: ViT(32, 8, 24, 2, 2, num_classes=3),
    "attention pool": lambda: ViT(32, 8, 24, 2, 2, num_classes=3, pool=AttentionPool),
    "Grad-CAM": lambda: ViT(32, 8, 24, 2, 2, num_classes=3, pool=MeanPool),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_maps_have_the_images_size_and_range(kind, size):
    maps, said = saliency_maps(NETWORKS[kind]().eval(), torch.randn(2, 3, *size))
    assert said == kind
    assert maps.shape == (2, *size)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_resnets_of_odd_sizes_and_in_inference_mode():
    network = ResNet(10, CBAM, 3, width=8).eval()
    with torch.inference_mode():
        images = torch.randn(2, 3, 33, 50)
        maps, said = saliency_maps(network, images)
    assert said == "Grad-CAM"
    assert maps.shape == (2, 33, 50)
    pooled = ResNet(10, num_classes=3, width=8, pool=AttentionPool).eval()
    assert saliency_maps(pooled, images.clone())[1] == "attention pool"


def test_grad_cam_finds_the_pixels_that_decide():
    """A network that says class 1 where the image is red points at the red corner."""
    network = ResNet(10, num_classes=2, stem="cifar", width=3).eval()
    network.features = lambda images: [nn.functional.avg_pool2d(images, 4)]
    network.strides = (4,)
    network.head = nn.Linear(3, 2)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
        network.head.bias.zero_()
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0, :4, 12:] = 1.0
    (hot,) = saliency_maps(network, images)[0]
    row, column = divmod(int(hot.argmax()), 16)
    assert row < 4
    assert column >= 12
    assert hot[8:, :8].max() < 0.1


def test_a_uniform_map_is_not_stretched(monkeypatch):
    network = NETWORKS["attention pool"]().eval()  # its query starts at 0: equal weights
    images = torch.randn(2, 3, 32, 32)
    assert not saliency_maps(network, images)[0].any()
    titles, page = [], np.zeros((9, 9, 3), np.uint8)
    monkeypatch.setattr(figures, "sheet", lambda _, given, names: titles.extend(given[1]) or page)
    panel(network, images, torch.tensor([0, 1]), [])
    assert len(titles) == 2
    assert all("(uniform)" in title for title in titles)
    noise = torch.ones(1, 4, 4) + 1e-7 * torch.rand(1, 4, 4)
    assert not scaled(noise).any()
    assert scaled(torch.rand(1, 4, 4) * 1e-9).max() == 1


def test_the_panels_images_are_spread_over_the_validation_set():
    source = [(torch.full((3, 8, 8), float(place)), place // 10) for place in range(100)]
    batch = torch.zeros(4, 3, 8, 8, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)
    data = SimpleNamespace(val_images=source)
    images, labels = ImagePanel(5).chosen(SimpleNamespace(datamodule=data), batch)
    assert images.dtype == torch.bfloat16
    assert labels.tolist() == [0, 2, 4, 6, 8]
    assert ImagePanel(200).chosen(SimpleNamespace(datamodule=data), batch)[1].shape == (100,)
    first, _ = ImagePanel(3).chosen(SimpleNamespace(datamodule=None), batch)
    assert torch.equal(first, batch[0][:3])


def test_the_panel_is_a_picture():
    network = NETWORKS["class token's attention"]().eval()
    picture = panel(network, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), ["a", "b", "c"])
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.dtype.name == "uint8"
    assert picture.std() > 10
