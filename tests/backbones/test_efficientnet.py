"""EfficientNet: its maps, its slot, its start, and the weights that it refuses."""

import json
from functools import partial

import pytest
import torch
import torchvision
from redraw import redraw
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
    assert widths == [block.depthwise[0].out_channels for block in blocks(network)]
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
    ("name", "arguments"),
    [
        ("tf_efficientnet_b0", {"padding": "same"}),
        ("tf_efficientnet_lite0", {"variant": "lite0", "padding": "same"}),
        ("efficientnet_lite2", {"variant": "lite2"}),
    ],
)
@pytest.mark.parametrize("size", [64, 75])  # TensorFlow pads even and odd maps in other ways
def test_variants_compute_timms_function(name, arguments, size):
    timm = pytest.importorskip("timm")
    theirs = redraw(timm.create_model(name, num_classes=10), 1).eval()
    ours = load_official(EfficientNet(num_classes=10, **arguments), theirs.state_dict()).eval()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def in_the_names_of_efficientnet_pytorch(network: EfficientNet) -> dict[str, torch.Tensor]:
    outer = {"stem.0": "_conv_stem", "stem.1": "_bn0", "last.0": "_conv_head", "last.1": "_bn1"}
    inner = {
        "expand.0": "_expand_conv", "expand.1": "_bn0", "depthwise.0": "_depthwise_conv",
        "depthwise.1": "_bn1", "attention.squeeze": "_se_reduce",
        "attention.excite": "_se_expand", "project.0": "_project_conv", "project.1": "_bn2",
    }  # fmt: skip
    names = {**outer, "head": "_fc"}
    for number, block in enumerate(block for stage in network.stages for block in stage):
        start = next(name for name, module in network.named_modules() if module is block)
        for ours, theirs in inner.items():
            names[f"{start}.block.{ours}"] = f"_blocks.{number}.{theirs}"
    return {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("variant", ["b2", "lite1"])
def test_blocks_numbered_through_are_put_into_their_stages(variant):
    theirs = redraw(EfficientNet(variant, num_classes=3, padding="same"), 1)
    ours = EfficientNet(variant, num_classes=3, padding="same")
    load_official(ours, in_the_names_of_efficientnet_pytorch(theirs))
    for key, value in theirs.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(ours.state_dict()[key], value), key


def test_weights_of_another_function_are_refused(tmp_path, capsys):
    """Shapes are the same: names, the config beside a file and squeeze-and-excite tell."""
    timm = pytest.importorskip("timm")
    plain, same = EfficientNet(num_classes=3), EfficientNet(num_classes=3, padding="same")
    state = timm.create_model("efficientnet_b0", num_classes=3).state_dict()
    lite = timm.create_model("efficientnet_lite0", num_classes=3).state_dict()
    named, file = tmp_path / "tf_efficientnet_b0_ns-c0e6a31c.pth", tmp_path / "pytorch_model.bin"
    for path in (named, file):
        torch.save(state, path)
    config = tmp_path / "config.json"
    for network, source, architecture, line in (
        (plain, named, None, "trained with padding same, the network has symmetric .* to same"),
        (plain, file, "tf_efficientnet_b0", "set its padding to same"),
        (same, file, "efficientnet_b0", "set its padding to symmetric"),
        (same, torchvision.models.efficientnet_b0(num_classes=3).state_dict(), None, "symmetric"),
        (plain, in_the_names_of_efficientnet_pytorch(plain), None, "padding to same"),
        (plain, lite, None, "has no squeeze-and-excite, b0 has: .* variant to lite0"),
        (EfficientNet("lite0", 3), state, None, "has squeeze-and-excite, .* variant to b0"),
    ):
        config.write_text(json.dumps({"architecture": architecture}) if architecture else "{}")
        with pytest.raises(InputError, match=line):
            load_official(network, source)
    load_official(same, file)  # nothing is known
    assert "padding same assumed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: EfficientNet("b9"), "variant 'b9' is not one of b0, b1, b2, b3, b4, lite0"),
        (lambda: EfficientNet(padding="valid"), "padding 'valid' is neither symmetric nor same"),
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
