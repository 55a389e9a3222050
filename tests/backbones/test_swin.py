"""Swin equals torchvision's and timm's, keeps its windows apart, and fits where a backbone does."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from redraw import redraw

from attention_vision.attention import (
    AxialAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
    WindowAttention,
    record_attention,
)
from attention_vision.backbones import Swin
from attention_vision.checkpoints import load_official, start_from
from attention_vision.detection import DETR, AttentionRCNN, PlainBoxHead
from attention_vision.errors import InputError

timm = pytest.importorskip("timm")

# Parameters: num_params of torchvision's weight table (Swin_T_Weights ... Swin_B_Weights); 28 M,
# 50 M and 88 M in Table 1 of the paper.
SMALL = partial(Swin, depths=(2, 2, 18, 2))
SIZES = {
    "tiny": (Swin, 28_288_354),
    "small": (SMALL, 49_606_258),
    "base": (partial(SMALL, width=128, heads=(4, 8, 16, 32)), 87_768_224),
}
LIBRARIES = {
    "torchvision": lambda size: getattr(torchvision.models, f"swin_{size[0]}")(),
    "timm": lambda size: timm.create_model(f"swin_{size}_patch4_window7_224"),
}


def assert_close(ours: torch.Tensor, peers: torch.Tensor) -> None:
    torch.testing.assert_close(ours, peers, rtol=0, atol=1e-4 * peers.abs().max().item())


def assert_same_gradients(ours: torch.nn.Module, peer: torch.nn.Module) -> None:
    """Overwrites our weights: the gradients go through the same renaming."""
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    load_official(ours, gradients)
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - parameter).norm() / parameter.norm()
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_gradients_equal_the_peers(size, library):
    make, count = SIZES[size]
    ours, peer = make().eval(), LIBRARIES[library](size).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    # The backward pass of the larger two is the slowest part of the tests: once is enough.
    for seed in (1, 2):
        load_official(ours, redraw(peer, seed).state_dict())
        images = torch.randn(1, 3, 224, 224)
        with torch.set_grad_enabled(seed == 1 or size == "tiny"):
            logits = {"peer": peer(images), "ours": ours(images)}
        assert logits["peer"].std() > 0.1
        assert_close(logits["ours"], logits["peer"])
        if logits["ours"].requires_grad:
            ours.zero_grad()
            peer.zero_grad()
            for one in logits.values():
                F.cross_entropy(one, torch.tensor([700])).backward()
            assert_same_gradients(ours, peer)


# Three small stages, in torchvision's names and in ours.
SHAPE = {"depths": (2, 2, 2), "heads": (2, 4, 8), "num_classes": 5}
small = partial(Swin, width=16, window=4, **SHAPE)


def torchvisions(window: int = 4, seed: int = 1) -> torch.nn.Module:
    depths, heads = SHAPE["depths"], SHAPE["heads"]
    peer = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 16, depths, heads, [window, window], num_classes=5
    )
    return redraw(peer.eval(), seed)


@pytest.mark.parametrize("image", [(100, 76), (36, 132), (16, 16), (4, 64)])
def test_images_of_any_size_are_padded_as_in_torchvision(image):
    peer = torchvisions()
    ours = load_official(small().eval(), peer.state_dict())
    images = torch.randn(2, 3, *image)
    logits = {"peer": peer(images), "ours": ours(images)}
    assert_close(logits["ours"], logits["peer"])
    for one in logits.values():
        F.cross_entropy(one, torch.tensor([3, 1])).backward()
    assert_same_gradients(ours, peer)


def test_maps_no_larger_than_the_window_have_one_of_their_size():
    """The release and timm have smaller tables then; 64 pixels are 16, 8 and 4 tokens a side."""
    peer = timm.models.swin_transformer.SwinTransformer(
        64, 4, 3, 5, "avg", 16, SHAPE["depths"], SHAPE["heads"], window_size=8
    )
    ours = load_official(small(64, window=8).eval(), redraw(peer.eval(), 1).state_dict())
    sides = [stage.blocks[1].attention.window for stage in ours.stages]
    assert sides == [8, 8, 4]
    assert len(ours.stages[2].blocks[1].attention.position.table) == 7 * 7
    images = torch.randn(1, 3, 64, 64)
    assert_close(ours(images), peer(images))


def test_images_that_are_no_whole_patches_lose_no_pixel():
    network = redraw(small().eval(), 1)
    images = torch.randn(1, 3, 30, 33)
    padded = F.pad(images, (0, 3, 0, 2))
    assert torch.equal(network(images), network(padded))
    last = images.clone()
    last[..., -1, -1] += 1
    assert not torch.equal(network(images), network(last))


def test_the_release_and_old_timm_merge_at_the_end_of_a_stage():
    peer = redraw(timm.create_model("swin_tiny_patch4_window7_224").eval(), 1)
    state = {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    for key, value in peer.state_dict().items():
        if ".downsample." in key:
            _, stage, rest = key.split(".", 2)
            key = f"layers.{int(stage) - 1}.{rest}"
        state[key.replace("head.fc.", "head.")] = value
        if key.endswith(".qkv.bias"):
            index = torch.zeros(49, 49, dtype=torch.int64)
            state[key.replace("qkv.bias", "relative_position_index")] = index
    ours = load_official(Swin().eval(), {"model": state})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert_close(ours(images), peer(images))


@pytest.mark.parametrize(("theirs", "own"), [(4, 6), (6, 4)])
def test_tables_are_resized_to_other_windows_as_in_the_release(theirs, own):
    peer = torchvisions(theirs)
    ours = load_official(small(window=own), peer.state_dict())
    resize = timm.layers.pos_embed_rel.resize_rel_pos_bias_table_simple  # the release's formula
    for stage, layers in zip(ours.stages, peer.features[1::2], strict=True):
        for block, layer in zip(stage.blocks, layers, strict=True):
            table = layer.attn.relative_position_bias_table
            expected = resize(table, (own, own), ((2 * own - 1) ** 2, table.shape[1]))
            torch.testing.assert_close(block.attention.position.table, expected)
            assert torch.equal(block.attention.attention.qkv.weight, layer.attn.qkv.weight)
    again = load_official(small(window=own), ours.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_fine_tuning_with_other_windows_and_classes():
    network = small(window=6, num_classes=3)
    line = start_from(network, torchvisions().state_dict())
    assert "a head of 5 classes left out, the new one of 3 starts at zero" in line
    assert "stages.0.blocks.0.attention.position.table and 5 more resized" in line
    assert (network(torch.randn(1, 3, 64, 64)) == 0).all()


def seen(network: Swin, place: tuple[int, int]) -> torch.Tensor:
    """(8, 8) bool: the patches of a 32-pixel image that a place of the first map depends on."""
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    network.features(images)[0][0, :, *place].pow(2).sum().backward()
    return F.max_pool2d(images.grad.abs().sum(1), 4)[0] > 0


def corner(side: int) -> torch.Tensor:
    patches = torch.zeros(8, 8, dtype=torch.bool)
    patches[:side, :side] = True
    return patches


def test_a_shift_connects_windows_and_nothing_leaks_round_the_border():
    one_stage = partial(Swin, 32, width=8, depths=(2,), heads=(2,), window=4, num_classes=0)
    shifted, unshifted = redraw(one_stage(), 1), redraw(one_stage(shift=False), 1)
    assert torch.equal(seen(unshifted, (3, 3)), corner(4))
    # Rows 2 to 5 form a shifted window; each of them has looked at its own window before.
    assert torch.equal(seen(shifted, (3, 3)), corner(8))
    # Rows 0 and 1 share theirs with rows 6 and 7, which the roll brought there, behind a mask.
    assert torch.equal(seen(shifted, (0, 0)), corner(4))
    # One window for the whole map, and attention without windows.
    assert torch.equal(seen(redraw(one_stage(window=8), 1), (0, 0)), corner(8))
    everywhere = redraw(one_stage(attention=MultiHeadAttention), 1)
    assert torch.equal(seen(everywhere, (0, 0)), corner(8))


def test_padding_is_seen_as_released_or_masked():
    images = torch.randn(1, 3, 40, 56)  # maps of 10 x 14, 5 x 7 and 3 x 4 tokens
    outputs = []
    for mask_padding in (False, True):
        network = redraw(small(mask_padding=mask_padding).eval(), 1)
        outputs.append(network(images))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    whole = torch.randn(1, 3, 64, 64)
    outputs = [redraw(small(mask_padding=one).eval(), 1)(whole) for one in (False, True)]
    torch.testing.assert_close(*outputs)


def test_maps_are_those_that_detectors_and_pools_expect():
    network = redraw(small(num_classes=0).eval(), 1)
    images = torch.randn(2, 3, 70, 100)
    maps = network.features(images)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 18, 25), (2, 32, 9, 13), (2, 64, 5, 7)]
    assert (network.channels, network.strides) == ((16, 32, 64), (4, 8, 16))
    torch.testing.assert_close(network(images), maps[-1].mean((2, 3)))

    detr = DETR(5, 4, small(), width=16, heads=2, encoder_layers=1, decoder_layers=2, hidden=16)
    padding = torch.zeros(2, 70, 100, dtype=torch.bool)
    assert detr(images, padding)[-1]["boxes"].shape == (2, 4, 4)
    rcnn = AttentionRCNN(5, small(), PlainBoxHead).eval()
    assert len(rcnn(images, padding)) == 2


def test_layers_count_from_the_patches_to_the_head():
    layers = small().layers()
    assert len(layers) == 1 + 6 + 1
    assert layers[0] == ["patches.weight", "patches.bias", "patch_norm.weight", "patch_norm.bias"]
    assert "stages.1.merging.reduction.weight" in layers[3]
    assert layers[-1] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_recorded_rows_are_of_one_window():
    network = redraw(small(window=4).eval(), 1)
    images = torch.randn(2, 3, 32, 32)  # 8 x 8 tokens: 4 windows
    expected = network(images)
    with record_attention(network, layers=["stages.0"]) as maps:
        logits = network(images)
    assert_close(logits, expected)
    assert set(maps) == {f"stages.0.blocks.{i}.attention.attention" for i in (0, 1)}
    plain, shifted = maps.values()
    for rows in (plain, shifted):
        assert rows.shape == (2 * 4, 2, 16, 16)
        torch.testing.assert_close(rows.sum(-1), torch.ones(8, 2, 16))
    assert (plain > 0).all()
    visible = (shifted > 0).float().mean((1, 2, 3))
    # Of the shifted windows of an image one is whole, two are cut in halves, one in quarters.
    torch.testing.assert_close(visible[:4], torch.tensor([1, 1 / 2, 1 / 2, 1 / 4]))


@pytest.mark.parametrize("attention", [MultiHeadAttention, AxialAttention, LocalGlobalAttention])
def test_other_attention_takes_the_place_of_windows(attention):
    network = small(attention=attention)
    assert not any(isinstance(module, WindowAttention) for module in network.modules())
    network(torch.randn(2, 3, 36, 52)).sum().backward()  # maps that are not square
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_positions_can_be_left_out():
    network = small(position="none")
    assert not any("table" in name for name, _ in network.named_parameters())
    assert network(torch.randn(1, 3, 36, 52)).shape == (1, 5)


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(state.items())[: len(state) // 2])


MISTAKES = [
    (lambda: Swin(heads=(3, 6, 12, 25)), "25 does not divide 768, the width of stage 4"),
    (lambda: Swin(heads=(0, 6, 12, 24)), "heads\[0\] is 0: it has to be"),
    (lambda: Swin(window=0), "window is 0: it has to be"),
    (lambda: Swin(image_size=-1), "image_size is -1: it has to be"),
    (lambda: Swin(depths=(2, 2)), r"depths \(2, 2\) and heads \(3, 6, 12, 24\) must have one"),
    (lambda: Swin(depths=(), heads=()), "must have one"),
    (lambda: Swin(depths=(2, 0), heads=(3, 6)), r"depths\[1\] is 0: it has to be"),
    (lambda: Swin(position="absolute"), "position 'absolute'"),
    (lambda: small(attention=torch.nn.Linear), r"Linear does not map \(1, 16, 16\) to itself"),
    (lambda: load_official(small(depths=(2, 2, 4)), torchvisions().state_dict()), "is missing"),
    (lambda: load_official(small(), half(torchvisions().state_dict())), "is missing"),
    (lambda: load_official(small(), torchvision.models.resnet18().state_dict()), "ResNet of"),
    (lambda: load_official(small(heads=(4, 8, 16)), torchvisions().state_dict()), r"\(49, 2\)"),
]


@pytest.mark.parametrize(("build", "line"), MISTAKES)
def test_mistakes_are_one_line(build, line):
    with pytest.raises(InputError, match=line) as error:
        build()
    assert "\n" not in str(error.value)
