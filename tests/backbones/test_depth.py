"""Layers from the stem to the head: whose parameters are how deep."""

from functools import partial

import pytest
from torch import nn
from torchvision.ops import StochasticDepth

from attention_vision.attention import AttentionPool, SqueezeExcite
from attention_vision.backbones import CCT, Backbone, ConvTokenizer, EfficientNet, ResNet, Swin, ViT
from attention_vision.backbones.layer_groups import layers_by_depth


def depths(network: nn.Module) -> dict[str, int]:
    layers = network.layers() if isinstance(network, Backbone) else layers_by_depth(network)
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    return {name: depth for depth, layer in enumerate(layers) for name in layer}


def of_beit(name: str, depth: int) -> int:
    """BEiT's rule (arXiv 2106.08254, microsoft/unilm, beit/optim_factory.py) in our names."""
    if name.startswith(("patches.", "pool.token", "position.")):
        return 0
    if name.startswith(("blocks.", "biases.")):
        return int(name.split(".")[1]) + 1
    return depth + 1


@pytest.mark.parametrize("position", ["absolute", "relative"])
def test_vit_is_ordered_as_in_beit(position: str) -> None:
    network = ViT(16, 8, width=16, depth=11, heads=2, num_classes=10, position=position)
    assert depths(network) == {name: of_beit(name, 11) for name in depths(network)}


def test_a_pool_that_attends_is_as_deep_as_the_head() -> None:
    network = ViT(16, 8, width=16, depth=2, heads=2, num_classes=10, pool=AttentionPool)
    assert depths(network)["pool.query"] == depths(network)["head.weight"] == 3


@pytest.mark.parametrize("place", ["blocks", "stages"])
def test_resnet_counts_its_blocks(place: str) -> None:
    network = ResNet(34, SqueezeExcite, 10, place, width=16, stem="cifar")
    found, before = depths(network), (0, 3, 7, 13)
    for name, depth in found.items():
        part, stage, block, *_ = [*name.split("."), ""]
        if part == "stages" and block == "attention":  # of the stage: with its last block
            assert depth == before[int(stage)] + (3, 4, 6, 3)[int(stage)], name
        elif part == "stages":
            assert depth == before[int(stage)] + int(block) + 1, name
        else:
            assert depth == {"stem": 0, "head": 17}[part], name


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.convolutions = nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.ReLU())


class Stage(nn.Module):
    def __init__(self, count: int):
        super().__init__()
        self.merge = nn.Linear(1, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.norm = nn.LayerNorm(1)


def test_stages_with_parts_between_their_blocks() -> None:
    network = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1)),
            "stages": nn.ModuleList([Stage(2), Stage(11)]),
            "head": nn.Linear(1, 1),
        }
    )
    found = depths(network)
    assert found["stem.1.weight"] == 0
    assert found["stages.0.blocks.1.convolutions.0.0.weight"] == 2
    assert found["stages.1.merge.bias"] == found["stages.1.blocks.0.linear.bias"] == 3
    assert found["stages.1.blocks.10.linear.weight"] == found["stages.1.norm.weight"] == 13
    assert found["head.weight"] == 14


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (Swin(image_size=64, width=24, num_classes=10), 12),
        (EfficientNet("b0", num_classes=10), 16),
        (CCT(width=16, depth=3, heads=2, tokenizer=partial(ConvTokenizer, layers=3)), 3),
    ],
    ids=["Swin", "EfficientNet", "CCT"],
)
def test_stem_blocks_and_head_of_further_backbones(network: Backbone, count: int) -> None:
    found = depths(network)
    assert min(found.values()) == 0
    assert found["head.weight"] == max(found.values()) == count + 1
    for depth, block in enumerate(blocks(network), start=1):
        own = {depth for name, depth in found.items() if name.startswith(f"{block}.")}
        assert own == {depth}
    assert depth == count


def blocks(network: Backbone) -> list[str]:
    """Names of the modules that stochastic depth can drop."""
    drops = [name for name, m in network.named_modules() if isinstance(m, StochasticDepth)]
    return [name.rpartition(".")[0] for name in drops]
