"""`Backbone.grid`: the size of the last map, which pictures of attention are drawn by."""

import pytest
import torch

from attention_vision.backbones import CCT, Backbone, CompactResNet, EfficientNet, ResNet, Swin, ViT
from attention_vision.classification.figures import saliency_maps

NETWORKS = {
    "CCT": lambda: CCT(image_size=32, width=16, depth=1, heads=2, num_classes=3),
    "CompactResNet": lambda: CompactResNet(widths=(8, 8, 8), num_classes=3),
    "EfficientNet": lambda: EfficientNet("b0", num_classes=3),
    "ResNet": lambda: ResNet(8, width=8, num_classes=3),
    "ResNet, dilated": lambda: ResNet(8, width=8, stem="cifar", dilation=True, num_classes=3),
    "Swin": lambda: Swin(32, 4, 8, (1, 1), (1, 2), window=4, num_classes=3),
    "ViT": lambda: ViT(32, 8, 16, 1, 2, num_classes=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_grid_and_maps_on_images(name):
    network: Backbone = NETWORKS[name]().eval()
    sizes = [(32, 32)] if name in ("CCT", "ViT", "Swin") else [(32, 32), (28, 33), (47, 65)]
    for size in sizes:
        images = torch.rand(2, 3, *size)
        assert network.grid(*size) == tuple(network.features(images)[-1].shape[2:])
        maps, _ = saliency_maps(network, images)
        assert maps.shape == (2, *size)
