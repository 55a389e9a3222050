"""Parameters and multiply-adds of every network are those of its paper or of its release."""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from attention_vision.attention import CBAM, SqueezeExcite
from attention_vision.backbones import (
    CCT,
    Backbone,
    ClassToken,
    ConvTokenizer,
    DistilledToken,
    EfficientNet,
    PatchTokenizer,
    ResNet,
    Swin,
    ViT,
)
from attention_vision.profiling.cost import Workload, macs


class Published(NamedTuple):
    """Figures as they are printed: millions of parameters, 10⁹ multiply-adds, None where none is.

    `layer_norms`: they are counted too, 5 operations per number, as fvcore does.
    """

    make: Callable[[], Backbone]
    source: str
    parameters: str
    macs: str | None
    size: int = 224
    layer_norms: bool = False


def of_torchvision(make: Callable[[], Backbone], weights: WeightsEnum) -> Published:
    meta = weights.meta
    millions = str(Decimal(meta["num_params"]) / 10**6)  # exact
    size = weights.transforms.keywords["crop_size"]
    return Published(make, f"torchvision, {weights}", millions, str(meta["_ops"]), size)


def v1(depth: int, **arguments: Callable[[int], nn.Module]) -> ResNet:
    """ResNet as its paper, Caffe and both attention papers count it.

    Bottlenecks have their stride in the first 1x1 convolution, where torchvision has it in the 3x3:
    3.858 in place of 4.089 for ResNet-50. The released CBAM is torchvision's all the same.
    """
    network = ResNet(depth, **arguments)
    for block in (block for stage in network.stages for block in stage[:-1]):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return network


SE = {"attention": partial(SqueezeExcite, reduction=16)}
SMALL = {"stem": "cifar", "num_classes": 10}
SWIN_S = {"depths": (2, 2, 18, 2)}
SWIN_B = SWIN_S | {"width": 128, "heads": (4, 8, 16, 32)}
TINY, SMALL_VIT = {"width": 192, "heads": 3}, {"width": 384, "heads": 6}
LARGE = {"width": 1024, "depth": 24, "heads": 16}

SENET = "SENet, arXiv 1709.01507, Table 2"
CBAM4 = "CBAM, arXiv 1807.06521, Table 4"
TIMM = "timm, seresnet50 and seresnet101"
MMPRETRAIN = "open-mmlab/mmpretrain, configs/{}/README.md"
DEIT = "facebookresearch/deit, README_deit.md"
SWIN = "microsoft/Swin-Transformer, README.md"
CCT2 = "CCT, arXiv 2104.05704, Table 1"
OSMR = "osmr/imgclsmob, CIFAR-10"

V1 = "IMAGENET1K_V1"
TABLE = {
    **{
        f"ResNet-{depth}": of_torchvision(
            partial(ResNet, depth), getattr(models, f"ResNet{depth}_Weights")[V1]
        )
        for depth in (18, 34, 50, 101, 152)
    },
    "ResNet-50, SENet": Published(partial(v1, 50), SENET, "25.6", "3.86"),
    "SE-ResNet-50, SENet": Published(partial(v1, 50, **SE), SENET, "28.1", "3.87"),
    "ResNet-101, SENet": Published(partial(v1, 101), SENET, "44.5", "7.58"),
    "SE-ResNet-101, SENet": Published(partial(v1, 101, **SE), SENET, "49.3", "7.60"),
    "SE-ResNet-50": Published(partial(ResNet, 50, **SE), TIMM, "28.088024", None),
    "SE-ResNet-101": Published(partial(ResNet, 101, **SE), TIMM, "49.326872", None),
    "SE-ResNet-18, CBAM": Published(partial(ResNet, 18, **SE), CBAM4, "11.78", None),
    "SE-ResNet-34, CBAM": Published(partial(ResNet, 34, **SE), CBAM4, "21.96", None),
    "CBAM-ResNet-18": Published(partial(ResNet, 18, attention=CBAM), CBAM4, "11.78", None),
    "CBAM-ResNet-34": Published(partial(ResNet, 34, attention=CBAM), CBAM4, "21.96", None),
    "ResNet-50, CBAM": Published(partial(v1, 50), CBAM4, "25.56", "3.858"),
    "SE-ResNet-50, CBAM": Published(partial(v1, 50, **SE), CBAM4, "28.09", "3.860"),
    "CBAM-ResNet-50": Published(partial(v1, 50, attention=CBAM), CBAM4, "28.09", "3.864"),
    "ResNet-101, CBAM": Published(partial(v1, 101), CBAM4, "44.55", "7.570"),
    "SE-ResNet-101, CBAM": Published(partial(v1, 101, **SE), CBAM4, "49.33", "7.575"),
    "CBAM-ResNet-101": Published(partial(v1, 101, attention=CBAM), CBAM4, "49.33", "7.581"),
    **{
        f"EfficientNet-{variant}": of_torchvision(
            partial(EfficientNet, variant),
            getattr(models, f"EfficientNet_{variant.upper()}_Weights")[V1],
        )
        for variant in ("b0", "b1", "b2", "b3", "b4")
    },
    "ViT-B/16": of_torchvision(ViT, models.ViT_B_16_Weights[V1]),
    "ViT-L/16": of_torchvision(partial(ViT, **LARGE), models.ViT_L_16_Weights[V1]),
    **{
        f"DeiT-{name}": Published(
            partial(ViT, **size), MMPRETRAIN.format("deit"), *figures, layer_norms=True
        )
        for name, size, figures in (
            ("Ti", TINY, ("5.72", "1.26")),
            ("S", SMALL_VIT, ("22.05", "4.61")),
            ("B", {}, ("86.57", "17.58")),
        )
    },
    **{
        f"DeiT-{name}, distilled": Published(
            partial(ViT, pool=DistilledToken, **size), DEIT, parameters, None
        )
        for name, size, parameters in (
            ("Ti", TINY, "5.91"), ("S", SMALL_VIT, "22.44"), ("B", {}, "87.34")
        )
    },
    "Swin-T": of_torchvision(Swin, models.Swin_T_Weights[V1]),
    "Swin-S": of_torchvision(partial(Swin, **SWIN_S), models.Swin_S_Weights[V1]),
    "Swin-B": of_torchvision(partial(Swin, **SWIN_B), models.Swin_B_Weights[V1]),
    "Swin-B, 384": Published(partial(Swin, 384, window=12, **SWIN_B), SWIN, "88", "47.1", 384),
    "CCT-7/3x1": Published(CCT, CCT2, "3.76", "1.19", 32, layer_norms=True),
    "CCT-7/3x2": Published(
        partial(CCT, tokenizer=partial(ConvTokenizer, layers=2)), CCT2, "3.85", "0.29", 32
    ),
    "CVT-7/4": Published(partial(CCT, tokenizer=PatchTokenizer), CCT2, "3.72", "0.25", 32),
    "ViT-Lite-7/4": Published(
        partial(CCT, tokenizer=PatchTokenizer, pool=ClassToken),
        CCT2, "3.72", "0.26", 32, layer_norms=True,
    ),
    "ResNet-18, CIFAR": Published(
        partial(ResNet, 18, **SMALL), MMPRETRAIN.format("resnet"), "11.17", "0.56", 32
    ),
    "ResNet-20": Published(partial(ResNet, 20, width=16, **SMALL), OSMR, "0.272", "0.041", 32),
    "SE-ResNet-20": Published(
        partial(ResNet, 20, width=16, **SE, **SMALL), OSMR, "0.275", "0.041", 32
    ),
    "ResNet-56": Published(partial(ResNet, 56, width=16, **SMALL), OSMR, "0.856", None, 32),
    "SE-ResNet-56": Published(
        partial(ResNet, 56, width=16, **SE, **SMALL), OSMR, "0.863", None, 32
    ),
    "ResNet-110": Published(partial(ResNet, 110, width=16, **SMALL), OSMR, "1.73", None, 32),
}  # fmt: skip


def agrees(ours: float, printed: str) -> bool:
    """Within 0.5 %, or as near as the printed digits tell."""
    figure = Decimal(printed)
    rounding = Decimal((0, (5,), figure.as_tuple().exponent - 1))
    return abs(Decimal(ours) - figure) <= max(figure * Decimal("0.005"), rounding)


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_parameters_and_multiply_adds_are_the_published_ones(row):
    with torch.device("meta"):  # shapes are all that counts
        network, images = row.make(), torch.zeros(1, 3, row.size, row.size)
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert agrees(parameters, row.parameters), (parameters, row.parameters, row.source)
    if "torchvision" in row.source or row.source == TIMM:
        assert Decimal(round(parameters * 1e6)) == Decimal(row.parameters) * 10**6
    if row.macs is None:
        return
    normed = watch_layer_norms(network) if row.layer_norms else []
    count = macs(Workload.of_network("", network, images))
    giga = (count + 5 * sum(normed)) / 1e9
    assert agrees(giga, row.macs), (giga, row.macs, row.source)


def watch_layer_norms(network: nn.Module) -> list[int]:
    """A list that fills, when the network runs, with how many numbers each layer norm sees."""
    seen: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.numel())

    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize(
    ("ours", "printed", "agreed"),
    [
        (25.557, "25.6", True),
        (25.4, "25.6", False),
        (0.2557, "0.26", True),
        (0.2545, "0.26", False),
    ],
)
def test_what_agrees(ours, printed, agreed):
    assert agrees(ours, printed) is agreed
