"""Attention U-Net: the release's parameter counts, shapes of any size, the slot, what gates do."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from redraw import redraw
from torch import nn

from attention_vision.attention import CBAM, AttentionGate, CrossAttention2d, record_attention
from attention_vision.errors import InputError
from attention_vision.generation import AttentionUNet, GatingSignal, MultiGate, SkipAttention
from attention_vision.generation.image_to_image.figures import gate_maps


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small(**arguments) -> AttentionUNet:
    return AttentionUNet(**{"width": 4, "depth": 2, "gated_levels": (1, 2)} | arguments)


IN_3D = {"dims": 3}
WIDE_GATE = lambda channels, gating: AttentionGate(channels, gating, channels, 3)  # noqa: E731


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"attention": nn.Identity}, 5_887_028),  # the paper's 5.88 M
        ({"attention": nn.Identity, "deep_supervision": True}, 5_888_004),  # unet_CT_dsv_3D
        ({"attention": WIDE_GATE}, 6_124_695),
        ({"attention": partial(MultiGate, dims=3)}, 6_406_042),  # 6.40 M
        ({"attention": partial(MultiGate, dims=3), "deep_supervision": True}, 6_407_018),
        (  # unet_CT_multi_att_dsv_3D
            {
                "attention": partial(MultiGate, dims=3),
                "gating": partial(GatingSignal, dims=3),
                "deep_supervision": True,
            },
            6_473_322,
        ),
    ],
)
def test_parameters_of_the_release(arguments, count):
    """Counts of the release were added up from its layers, see the docstring of unet.py."""
    network = AttentionUNet(in_channels=1, num_classes=4, dimensions=3, **arguments)
    assert parameters(network) == count


@pytest.mark.parametrize(("data", "classes"), [("denoise", 0), ("chase_db1", 2)])
def test_the_control_of_the_studies_has_more_parameters_than_the_gated(data, classes):
    study = Path(__file__).parents[2] / f"experiments/ablations/attention_unet_{data}.yaml"
    comment = study.read_text()
    counts = {}
    for cell, base in yaml.safe_load(comment)["base"].items():
        given = yaml.safe_load((study.parent / base).read_text())["model"]["init_args"]["network"]
        arguments = given["init_args"]
        plain = {"attention": nn.Identity} if "Identity" in arguments.pop("attention") else {}
        counts[cell] = parameters(AttentionUNet(num_classes=classes, **arguments, **plain))
        assert f"{counts[cell]:,}" in comment
    assert counts["unet"] < counts["attention_unet"] < counts["unet_wider"]


def naive(network: AttentionUNet, x: torch.Tensor) -> torch.Tensor:
    """Two levels, gated, for sizes that 4 divides; written layer by layer."""
    F = nn.functional
    first = network.encoder[0](x)
    second = network.encoder[1](F.max_pool2d(first, 2))
    lowest = network.encoder[2](F.max_pool2d(second, 2))
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    second = network.gates[1](second, lowest)
    below = network.decoder[1](torch.cat((second, up(lowest)), 1))
    first = network.gates[0](first, below)
    finest = network.decoder[0](torch.cat((first, up(below)), 1))
    heads = network.head.levels
    return network.head.last(torch.cat((heads[0](finest), up(heads[1](below))), 1))


def test_equals_the_layers_one_by_one():
    network = redraw(small(deep_supervision=True, num_classes=3), 0).eval()
    x = torch.randn(2, 3, 16, 8)
    torch.testing.assert_close(network(x), naive(network, x), rtol=1e-5, atol=1e-5)


SLOTS = {
    "gate": AttentionGate,
    "multi-gate": MultiGate,
    "identity": nn.Identity,
    "cbam": partial(SkipAttention, attention=partial(CBAM, reduction=2)),
    "cross": partial(CrossAttention2d, heads=1),
}


@pytest.mark.parametrize("attention", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_shapes_and_gradients(attention, deep_supervision):
    network = redraw(
        small(attention=attention, deep_supervision=deep_supervision, num_classes=2), 0
    )
    images = torch.randn(2, 3, 13, 6, requires_grad=True)  # 4 divides neither
    output = network(images)
    assert output.shape == (2, 2, 13, 6)
    output.square().sum().backward()
    for name, tensor in [*network.named_parameters(), ("images", images)]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_volumes(deep_supervision):
    network = redraw(
        small(
            in_channels=1, num_classes=3, dimensions=3, attention=partial(MultiGate, dims=3),
            gating=partial(GatingSignal, dims=3), deep_supervision=deep_supervision,
        ),
        0,
    )  # fmt: skip
    output = network(torch.randn(1, 1, 5, 8, 7))
    assert output.shape == (1, 3, 5, 8, 7)
    output.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (16, 16), (17, 31)])
def test_any_size(size):
    assert small().eval()(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_padding_is_the_border_continued():
    network = redraw(small(), 0).eval()
    x = torch.rand(1, 3, 10, 12)
    continued = torch.cat((x, x[:, :, -1:], x[:, :, -1:]), 2)
    assert torch.equal(network(x), network(continued)[:, :, :10])


def test_an_empty_slot_is_the_plain_unet():
    """Weights without gates load, and the skips pass as they are."""
    gated, plain = small(), small(attention=nn.Identity)
    assert not any(name.startswith("gat") for name in plain.state_dict())
    without = {k: v for k, v in gated.state_dict().items() if not k.startswith("gates.")}
    plain.load_state_dict(without)  # strict

    class Open(nn.Module):
        def forward(self, skip, gating):
            return skip

    gated.gates = nn.ModuleList([Open(), Open()])
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(gated.eval()(x), plain.eval()(x))


def test_networks_that_differ_in_gates_start_from_the_same_weights():
    torch.manual_seed(1)
    gated = small(num_classes=2)
    torch.manual_seed(1)
    plain = small(num_classes=2, attention=nn.Identity)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, gated.state_dict()[name]), name


def test_only_the_named_levels_are_gated():
    network = AttentionUNet(width=2)
    gated = [isinstance(gate, AttentionGate) for gate in network.gates]
    assert gated == [False, True, True, True]  # the paper leaves level 1 ungated


def test_residual_starts_as_the_identity():
    x = torch.rand(2, 4, 9, 9)
    for deep_supervision in (False, True):
        network = small(in_channels=4, residual=True, deep_supervision=deep_supervision)
        assert torch.equal(network(x), x[:, :3])


@pytest.mark.parametrize("attention", [AttentionGate, MultiGate])
def test_gates_are_recorded_and_shown_at_the_images_size(attention):
    network = redraw(small(attention=attention), 0).eval()
    x = torch.rand(2, 3, 13, 10)
    output, maps = gate_maps(network, x)
    assert torch.equal(output, network(x))
    assert list(maps) == [1, 2]
    for gate in maps.values():
        assert gate.shape == (2, 13, 10)
        assert ((gate >= 0) & (gate <= 1)).all()
        assert gate.std() > 0
    with record_attention(network, ["gates.1"]) as recorded:
        network(x)
    grids = {tuple(weights.shape) for weights in recorded.values()}
    assert grids == {(2, 1, 8, 6)}  # level 2 of 16 x 12


def test_a_closed_gate_shuts_the_skip_off():
    """With psi's bias at -inf nothing of the skip passes: changes above the lowest map are lost."""
    network = redraw(small(gated_levels=(1,)), 0).eval()
    with torch.no_grad():
        network.gates[0].psi.bias.fill_(-torch.inf)
    skip, gating = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
    assert torch.equal(network.gates[0](skip, gating), network.gates[0](0 * skip, gating))


def test_gates_without_maps_are_not_shown():
    network = redraw(small(attention=SLOTS["cross"]), 0).eval()
    assert gate_maps(network, torch.rand(1, 3, 8, 8))[1] == {}
    assert gate_maps(small(attention=nn.Identity), torch.rand(1, 3, 8, 8))[1] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dimensions": 4}, "dimensions 4"),
        ({"depth": 0}, "depth is 0: it has to be"),
        ({"depth": 2, "gated_levels": (2, 3)}, "gated level 3 is not in 1..2"),
        ({"dimensions": 3}, "attention.init_args.dims to 3"),
        ({"attention": partial(MultiGate, dims=3)}, "attention.init_args.dims to 2"),
        ({"gating": partial(GatingSignal, dims=3)}, "gating.init_args.dims to 2"),
        ({"residual": True, "num_classes": 2}, "residual"),
        ({"residual": True, "in_channels": 1}, "residual"),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    with pytest.raises(InputError, match=words) as error:
        AttentionUNet(**arguments)
    assert "\n" not in str(error.value)
