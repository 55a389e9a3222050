"""SE inside ResNets: hidden widths, the naive bottleneck, where the stride is."""

from functools import partial

import pytest
import torch
import torchvision
from redraw import redraw
from torch import nn

from attention_vision.attention import SelfAttention2d, SqueezeExcite
from attention_vision.attention.controls import PlainBottleneck
from attention_vision.backbones import ResNet
from attention_vision.backbones.resnet import Bottleneck
from attention_vision.checkpoints import load_official


@pytest.mark.parametrize(
    ("channels", "divisor", "hidden"),
    [
        (64, 1, 4), (2048, 1, 128), (40, 1, 2), (8, 1, 1),  # C // 16, and never 0
        (64, 8, 8), (128, 8, 8), (256, 8, 16), (8, 8, 8), (192, 8, 16), (176, 8, 8),
    ],
)  # fmt: skip
def test_hidden_widths(channels, divisor, hidden):
    assert SqueezeExcite(channels, 16, divisor=divisor).squeeze.out_channels == hidden


def test_hidden_widths_round_as_timms_do():
    layers = pytest.importorskip("timm.layers")
    for channels in range(8, 1024, 24):
        theirs = layers.SEModule(channels, rd_ratio=1 / 16).fc1.out_channels
        assert SqueezeExcite(channels, 16, divisor=8).squeeze.out_channels == theirs, channels


@pytest.mark.parametrize("values", [{"reduction": 0}, {"divisor": 0}])
def test_numbers_that_are_not_positive_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is 0: it has to be"):
        SqueezeExcite(16, **values)


class ConvolutionalChannelAttention(nn.Module):
    """The bottleneck as tutorials write it: pool, two 1x1 convolutions, sigmoid, times the map."""

    def __init__(self, inputs: int, width: int, stride: int, reduction: int = 16):
        super().__init__()
        channels = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out * self.attention(out)
        return torch.relu(out + self.downsample(x))


@pytest.mark.parametrize("training", [False, True])
def test_the_bottleneck_with_convolutional_channel_attention(training):
    naive = redraw(ConvolutionalChannelAttention(32, 16, stride=2), 1).train(training)
    ours = Bottleneck(
        32, 16, 2, 1, nn.BatchNorm2d, partial(SqueezeExcite, reduction=16), drop=0.0
    ).train(training)
    # The same parts in the same order: convolutions, attention, shortcut.
    pairs = zip(ours.state_dict().items(), naive.state_dict().values(), strict=True)
    ours.load_state_dict({key: theirs for (key, _), theirs in pairs})

    x = torch.randn(3, 32, 9, 7, requires_grad=True)
    results = [module(x) for module in (ours, naive)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_stride_first_moves_the_stride_of_torchvisions_bottlenecks():
    peer = redraw(torchvision.models.resnet50(), 1).eval()
    for stage in (peer.layer2, peer.layer3, peer.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    ours = load_official(ResNet(50, stride_first=True).eval(), peer.state_dict())
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        logits = peer(images)
        torch.testing.assert_close(
            ours(images), logits, rtol=0, atol=1e-4 * logits.abs().max().item()
        )


def test_stride_first_maps_do_not_depend_on_the_padding():
    network = redraw(ResNet(50, num_classes=0, width=8, stride_first=True), 1).eval()
    image, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 128, 96, dtype=torch.bool)
    mask[:, 64:], mask[:, :, 64:] = True, True
    padded = torch.randn(1, 3, 128, 96)
    padded[..., :64, :64] = image
    with torch.no_grad():
        maps = zip(network.features(image), network.features(padded, mask), strict=True)
        for alone, among in maps:
            high, wide = alone.shape[2:]
            torch.testing.assert_close(among[..., :high, :wide], alone, rtol=1e-4, atol=1e-4)


def test_the_plain_bottleneck_fits_the_slot_and_costs_about_what_self_attention_does():
    network = ResNet(8, PlainBottleneck, 3, attention_at="stages", attention_stages=(3,), width=16)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    block = network.stages[-1].attention
    counts = [sum(p.numel() for p in m.parameters()) for m in (block, SelfAttention2d(64))]
    assert counts == [4_544, 5_121]
