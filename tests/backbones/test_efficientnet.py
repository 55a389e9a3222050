"""EfficientNet: its maps, its slot, its start, and the weights that it refuses."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from attention_vision.attention import CBAM, EfficientChannelAttention, SqueezeExcite
from attention_vision.backbones import EfficientNet
from attention_vision.checkpoints import load_official
from attention_vision.errors import InputError


def blocks(network: EfficientNet) -> list[nn.Module]:
    return [block.block for stage in network.stages for block in stage]


def test_maps_have_the_channels_and_strides_that_it_says():
    network = EfficientNet(num_classes=0).eval()
    images = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        maps = network.features(images)
        assert network(images).shape == (1, 1280)
    assert [m.shape[1] for m in maps] == list(network.channels) == [24, 40, 112, 1280]
    for stride, one in zip(network.strides, maps, strict=True):
        assert one.shape[2:] == (-(-97 // stride), 64 // stride)


@pytest.mark.parametrize("attention", [CBAM, EfficientChannelAttention, nn.Identity])
def test_any_feature_attention_stands_in_every_block_and_trains(attention):
    widths = []

    def factory(channels: int) -> nn.Module:
        widths.append(channels)
        return attention(channels)

    network = EfficientNet(num_classes=3, attention=factory)
    assert all(isinstance(block.attention, attention) for block in blocks(network))
    assert widths == [block.depthwise.out_channels for block in blocks(network)]
    nn.functional.cross_entropy(network(torch.randn(2, 3, 64, 64)), torch.tensor([0, 2])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_a_single_image_are_those_of_its_mean(training):
    """A pool over tokens must not hand a batch norm strides that it misreads."""
    network = EfficientNet(num_classes=3, stochastic_depth=0.0, dropout=0.0).train(training)
    image, weight = torch.randn(1, 3, 64, 64), network.stem[0].weight
    gradients = [
        torch.autograd.grad(logits[0, 0], weight)[0]
        for logits in (network(image), network.head(network.features(image)[-1].mean((2, 3))))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[1].abs().max().item())


def test_released_squeeze_follows_the_channels_at_the_input():
    network = EfficientNet()
    hidden = [block.attention.squeeze.out_channels for block in blocks(network)]
    assert hidden[:4] == [8, 4, 6, 6]  # a quarter of 32, 16, 24 and 24
    assert all(isinstance(block.attention.activation, nn.SiLU) for block in blocks(network))


@pytest.mark.parametrize("variant", ["b0", "b4"])
def test_rates_of_stochastic_depth_and_dropout_are_torchvisions(variant):
    peer = getattr(torchvision.models, f"efficientnet_{variant}")()
    ours = EfficientNet(variant)
    for network in (peer, ours):
        network.rates = [m.p for m in network.modules() if isinstance(m, StochasticDepth)]
    assert ours.rates == pytest.approx(peer.rates)
    assert ours.dropout.p == peer.classifier[0].p
    assert EfficientNet(variant, dropout=0.0).dropout.p == 0


def test_it_starts_as_released_and_what_is_put_in_starts_its_own_way():
    torch.manual_seed(0)
    block = blocks(EfficientNet())[10]
    assert block.depthwise[0].weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.1)
    assert block.project[0].weight.std().item() == pytest.approx((2 / 112) ** 0.5, rel=0.1)
    assert not block.attention.squeeze.bias.any()
    given = blocks(EfficientNet(attention=partial(SqueezeExcite, reduction=24)))[10]
    assert given.attention.squeeze.bias.any()


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: EfficientNet("b9"), "variant 'b9' is not one of b0, b1, b2, b3, b4"),
        (
            lambda: EfficientNet(attention=lambda channels: nn.Conv2d(channels, 5, 1)),
            r"EfficientNet: attention Conv2d does not map \(1, 32, 4, 4\) to itself: it gives",
        ),
        (
            lambda: load_official(EfficientNet("b1"), EfficientNet("b0").state_dict()),
            "stages.0.1.* is missing",
        ),
        (
            lambda: load_official(
                EfficientNet(attention=nn.Identity),
                torchvision.models.efficientnet_b0().state_dict(),
            ),
            "EfficientNet of torchvision.* is not in the model",
        ),
        (
            lambda: load_official(
                EfficientNet(), torchvision.models.efficientnet_v2_s().state_dict()
            ),
            "belong to no known layout",
        ),
    ],
)
def test_mistakes_are_one_line(build, line):
    with pytest.raises(InputError, match=line) as error:
        build()
    assert "\n" not in str(error.value)
