"""What the slots of the backbones accept, asked once when a network is built."""

from functools import partial

import pytest
import torch
from redraw import redraw
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.attention import (
    CBAM,
    AxialAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
    WindowAttention,
)
from attention_vision.backbones import MeanPool, ResNet, ViT
from attention_vision.backbones.backbone import shape_error
from attention_vision.backbones.resnet import SubsampledConv2d, conv
from attention_vision.errors import InputError

small_vit = partial(ViT, 16, 4, width=16, depth=2, heads=2, num_classes=3)
small_resnet = partial(ResNet, 10, width=8, num_classes=3)

WRONG = [
    (
        lambda: small_vit(attention=WindowAttention),
        r"ViT: attention WindowAttention does not map \(1, 17, 16\) to itself: WindowAttention: 17 "
        r".*; pool: MeanPool leaves out the class token$",
    ),
    (lambda: small_vit(attention=CBAM), r"ViT: attention CBAM does not map \(1, 17, 16\)"),
    (
        lambda: small_vit(attention=WindowAttention, pool=MeanPool, position="relative"),
        "unexpected keyword argument 'bias'",
    ),
    (
        lambda: small_vit(alternate=AxialAttention),
        r"ViT: attention AxialAttention does not map .*; pool: MeanPool leaves out the class token",
    ),
    (lambda: small_vit(position="rel"), "position 'rel'"),
    (lambda: ViT(16, 4, width=10, heads=3), "width 10 is not a multiple of heads 3"),
    (lambda: small_vit(depth=0), "depth is 0: it has to be"),
    (lambda: small_vit(heads=0), "heads is 0: it has to be"),
    (
        lambda: small_resnet(attention=lambda channels: MultiHeadAttention(channels, 2)),
        r"ResNet: attention MultiHeadAttention does not map \(1, 8, 4, 4\) to itself",
    ),
    (
        lambda: small_resnet(
            attention=lambda channels: torch.nn.Conv2d(channels, 5, 1),
            attention_at="stages",
            attention_stages=(3,),
        ),
        r"does not map \(1, 32, 4, 4\) to itself: it gives \(1, 5, 4, 4\)",
    ),
    (lambda: small_resnet(attention_at="stage"), "attention_at 'stage'"),
    (lambda: small_resnet(stem="small"), "stem 'small'"),
]


@pytest.mark.parametrize(("build", "line"), WRONG)
def test_mistakes_are_one_line(build, line):
    with pytest.raises(InputError, match=line) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        partial(small_vit, attention=WindowAttention, pool=MeanPool),
        partial(small_vit, position="none"),
        partial(small_vit, position="relative"),
        partial(small_resnet, attention=CBAM),
    ],
)
def test_what_fits_is_built(build):  # all that fits: tests/test_every_slot.py
    network = build().eval()
    assert network(torch.randn(1, 3, 16, 16)).shape == (1, 3)
    assert build().training


def test_asking_changes_nothing():
    attention = CBAM(8)
    attention.spatial.norm.eval()  # a mode of its own
    modes = {name: module.training for name, module in attention.named_modules()}
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    random = torch.get_rng_state()
    assert shape_error(attention, torch.zeros(1, 8, 4, 4)) is None
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == {name: module.training for name, module in attention.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in attention.state_dict().items())


@pytest.mark.parametrize("kind", [WindowAttention, AxialAttention, LocalGlobalAttention])
def test_a_vit_tells_its_attention_the_grid(kind):
    # 4 x 9 tokens would also be a square of 6 x 6
    network = redraw(small_vit(attention=kind, pool=MeanPool, position="none"), 0).eval()
    images = torch.randn(1, 3, 16, 36)
    block, x = network.blocks[0], network.patches(images).flatten(2).mT
    y = block.attention(block.norm1(x), (4, 9))
    heard = []
    block.attention.register_forward_hook(lambda module, given, output: heard.append(output))
    network(images)
    torch.testing.assert_close(heard[0], y)
    assert not torch.allclose(y, block.attention(block.norm1(x), (6, 6)))


def test_every_second_block_takes_the_alternate():
    shifted = partial(WindowAttention, window=2, shift=1)
    network = small_vit(
        depth=3, attention=partial(WindowAttention, window=2), alternate=shifted, pool=MeanPool
    )
    assert [block.attention.shift for block in network.blocks] == [0, 1, 0]


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_narrow_projections_convolve_the_positions_that_they_keep(size):
    """oneDNN's own gradient of them ends the process on two threads with channels last."""
    layer = conv(8, 20, 1, stride=2)
    x = torch.randn(2, 8, *size).double()
    weight = layer.double().weight
    wanted = torch.nn.functional.conv2d(x, weight, stride=2)
    torch.testing.assert_close(layer(x), wanted)
    assert type(layer) is SubsampledConv2d
    assert type(conv(16, 20, 1, stride=2)) is torch.nn.Conv2d


def test_a_narrow_network_trains_on_two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for norm in (torch.nn.BatchNorm2d, FrozenBatchNorm2d):
            network = ResNet(8, stem="cifar", width=8, num_classes=3, norm=norm)
            network(torch.randn(3, 3, 32, 32)).square().mean().backward()
            assert all(weight.grad.isfinite().all() for weight in network.parameters())
    finally:
        torch.set_num_threads(threads)
