"""Networks choose the format of their maps in training on a CPU; results are those of the other."""

import pytest
import torch
from torch import nn

from attention_vision.backbones import ResNet
from attention_vision.backbones.memory_format import arranged
from attention_vision.generation.gan.sagan import Discriminator
from attention_vision.generation.image_to_image.unet import AttentionUNet

NETWORKS = {
    "ResNet": lambda: ResNet(depth=10, width=8, num_classes=2),
    "Discriminator": lambda: Discriminator(size=32, width=8),
    "AttentionUNet": lambda: AttentionUNet(num_classes=2, width=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_both_formats_are_equal(name, monkeypatch):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    inputs = (images,) if name != "Discriminator" else (images, torch.tensor([0, 1]))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    formats, gradients = [], []
    convolution = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    convolution.register_forward_pre_hook(
        lambda _, maps: formats.append(maps[0].is_contiguous(memory_format=torch.channels_last))
    )
    for _ in range(2):
        network.load_state_dict(state)
        network.zero_grad()
        network(*inputs).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
        for module in (type(network).__module__, "attention_vision.backbones.resnet"):
            monkeypatch.setattr(f"{module}.arranged", lambda network, maps: maps)
    assert formats == [True, False]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_evaluation_and_volumes_keep_theirs():
    images, volumes = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 8, 8)
    network = nn.Identity()
    assert arranged(network, images).is_contiguous(memory_format=torch.channels_last)
    assert arranged(network, volumes) is volumes
    assert arranged(network.eval(), images) is images
