"""Weights that are not those of a network: what differs, and what to set."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from attention_vision.attention import LearnedPosition, MultiHeadAttention
from attention_vision.backbones import CCT, Backbone, EfficientNet, ResNet, ViT
from attention_vision.backbones.efficientnet import LITE_VARIANTS, Padding
from attention_vision.backbones.resnet import DEPTHS, BasicBlock, Bottleneck
from attention_vision.checkpoints.layouts import Layout
from attention_vision.checkpoints.layouts.efficientnet import (
    EFFICIENTNET_PYTORCH,
    TORCHVISION,
)
from attention_vision.errors import InputError

# Weights of DETR as their authors name them, in files and on the hub.
DETR_FILE = re.compile(r"^detr-(?:r|resnet-)(?:50|101)(?P<dc5>-dc5)?")


def other_heads(model: nn.Module, layout: Layout) -> str | None:
    """A warning where attention has other heads than in releases, which weights do not show.

    A head has 64 channels in ViT, DeiT and CCT, and 80 in ViT-H; DETRs have 8 heads.
    """
    for module in model.modules():
        if not isinstance(module, MultiHeadAttention):
            continue
        width, usual = module.qkv.in_features, None
        if isinstance(model, ViT | CCT):
            usual = width // (64 if width < 1280 else 80)
        elif "DETR" in layout.name:
            usual = 8
        if usual and module.heads != usual:
            return (
                f"WARNING: the model has {module.heads} heads, releases of width {width} have"
                f" {usual}: set its heads to {usual} unless these weights were trained otherwise"
            )
    return None


def check_dilation(model: nn.Module, where: str) -> None:
    """Raises InputError where the name of a DETR's weights tells of another stride than its own."""
    backbone, named = getattr(model, "backbone", None), DETR_FILE.search(Path(where).name)
    if named and isinstance(backbone, ResNet):
        trained, dilated = bool(named["dc5"]), backbone.strides[-1] < 32
        if trained != dilated:
            raise InputError(
                f"{where} was trained with{'' if trained else 'out'} dilation (DC5), the model is"
                f" {'' if dilated else 'not '}dilated: set its backbone's dilation to"
                f" {str(trained).lower()}"
            )


def check_variant(network: EfficientNet, state: Mapping[str, Tensor], where: str) -> None:
    """Raises InputError where one is of EfficientNet-Lite, which has no SE, and the other not."""
    lite = network.variant in LITE_VARIANTS
    if any(".attention." in key for key in state) == lite:
        ours = network.variant
        raise InputError(
            f"{where} has {'' if lite else 'no '}squeeze-and-excite, {ours}"
            f" {'none' if lite else 'has'}: set the network's variant to"
            f" {ours.replace('lite', 'b') if lite else ours.replace('b', 'lite')}"
        )


def padding_of(layout: Layout, name: str) -> Padding | None:
    """How an EfficientNet was trained to pad; None where neither layout nor name tells."""
    if layout is EFFICIENTNET_PYTORCH or "tf_efficientnet" in name.lower():
        return "same"
    return "symmetric" if layout is TORCHVISION or name.startswith("efficientnet") else None


def tables_of_other_grids(
    state: Mapping[str, Tensor], model: nn.Module
) -> list[tuple[str, LearnedPosition, tuple[int, int]]]:
    """Position tables whose grids differ: key, module of the model, grid in the state dict."""
    found = []
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, LearnedPosition) and key in state:
            grid = module.grid_of(state[key])
            if grid is not None and grid != module.grid:
                found.append((key, module, grid))
    return found


def suggest_arguments(
    state: Mapping[str, Tensor], model: nn.Module, problems: set[str]
) -> str | None:
    """Suggest arguments if classes and grids are all that does not fit; else return None."""
    suggestions, explained = [], set()
    own = model.state_dict()
    heads = {key for key in problems if key.startswith("head.") and key in own and key in state}
    if heads:
        theirs, ours = (len(one[min(heads)]) for one in (state, own))
        explained |= heads
        suggestions.append(
            f"has {theirs} classes, the model {ours}: set num_classes to {theirs}, or leave out"
            ' "head." to fine-tune'
        )
    for key, position, (side, _) in tables_of_other_grids(state, model):
        explained.add(key)
        size = f", image_size={side * model.strides[0]}" if isinstance(model, Backbone) else ""
        suggestions.append(
            f"has {key} for {side} x {side} patches, the model for"
            f" {position.grid[0]} x {position.grid[1]}: build the model for the same images{size},"
            " or pass resize=True"
        )
    lacking = {key for key in problems - explained if ".attention." in key and key not in state}
    if lacking and lacking == problems:
        name = min(lacking).partition(".attention.")[0] + ".attention"
        if not any(key.startswith(f"{name}.") for key in state):
            return (
                f"has no weights of {name}: attention that is added to a trained network starts as"
                " the identity, as FadeIn(attention) does"
            )
    if problems - explained:
        return None
    return "; ".join(suggestions) + "; `classification fit --weights` does both by itself"


def other_network(state: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Name the network of a state dict if it is a backbone alone, or one of another size."""
    own = model.state_dict()
    whole = any(key.startswith("backbone.") for key in state)
    if not whole and any(f"backbone.{key}" in own for key in state):
        return "of a backbone alone: give it as model.backbone_weights, or to load_backbone"
    for name, module in model.named_modules():
        size = next((size for kind, size in SIZES.items() if isinstance(module, kind)), None)
        if size is not None:
            prefix = f"{name}." if name else ""
            theirs, ours = (size(one, prefix) for one in (state, own))
            if theirs and theirs != ours:
                return f"a {type(module).__name__} of {theirs}, the model's has {ours}"
    return None


def resnet_size(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """Depth and width of the ResNet below a prefix, in words; None if there is none that is known.

    A bottleneck has a third convolution.
    """
    stem = state.get(f"{prefix}stem.conv.weight")
    below = re.compile(re.escape(prefix) + r"stages\.(\d+)\.(\d+)\.")
    blocks = {(int(found[1]), int(found[2])) for key in state if (found := below.match(key))}
    stages = Counter(stage for stage, _ in blocks)
    kind = Bottleneck if f"{prefix}stages.0.0.conv3.weight" in state else BasicBlock
    for depth, (block, counts) in DEPTHS.items():
        if stem is not None and block is kind and dict(enumerate(counts)) == stages:
            return f"depth {depth} and width {len(stem)}"
    return None


def transformer_size(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """Depth and width of the ViT or CCT below a prefix, in words; None if there is none."""
    norm = state.get(f"{prefix}norm.weight")
    below = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    blocks = {found[1] for key in state if (found := below.match(key))}
    return f"depth {len(blocks)} and width {len(norm)}" if blocks and norm is not None else None


SIZES = {ResNet: resnet_size, ViT: transformer_size, CCT: transformer_size}
