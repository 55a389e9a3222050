"""Swin: torchvision, timm and the authors' release."""

from collections.abc import Mapping
from math import isqrt

import torch.nn.functional as F
from torch import Tensor

from attention_vision.checkpoints.layouts.layout import Layout

BLOCK = r"(stages\.\d\.blocks\.\d+)"
IN_BLOCKS = (
    (BLOCK + r"\.attn\.qkv\.", r"\1.attention.attention.qkv."),
    (BLOCK + r"\.attn\.proj\.", r"\1.attention.attention.out."),
    (BLOCK + r"\.attn\.relative_position_bias_table$", r"\1.attention.position.table"),
    # fc1 and fc2 in the release and timm, places in a Sequential in torchvision.
    (BLOCK + r"\.mlp\.(fc1|0)\.", r"\1.mlp.expand."),
    (BLOCK + r"\.mlp\.(fc2|3)\.", r"\1.mlp.reduce."),
)
BUFFERS = r".*(relative_position_index|attn_mask)$"  # follow from the size of the window

# Merging belongs to the stage before it in the release, and in timm before 0.9.
RELEASE = Layout(
    "Swin of the official release",
    (
        "patch_embed.proj.weight",
        "layers.0.downsample.reduction.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
    ),
    (
        (r"patch_embed\.proj\.", "patches."),
        (r"patch_embed\.norm\.", "patch_norm."),
        *((rf"layers\.{i}\.downsample\.", f"stages.{i + 1}.merging.") for i in range(3)),
        (r"layers\.", "stages."),
        *IN_BLOCKS,
    ),
    buffers=BUFFERS,
)

TIMM = Layout(
    "Swin of timm",
    (
        "patch_embed.proj.weight",
        "layers.1.downsample.reduction.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
    ),
    (
        (r"patch_embed\.proj\.", "patches."),
        (r"patch_embed\.norm\.", "patch_norm."),
        (r"layers\.(\d)\.downsample\.", r"stages.\1.merging."),
        (r"layers\.", "stages."),
        *IN_BLOCKS,
        (r"head\.fc\.", "head."),
    ),
    buffers=BUFFERS,
)

TORCHVISION = Layout(
    "Swin of torchvision",
    ("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"),
    (
        (r"features\.0\.0\.", "patches."),
        (r"features\.0\.2\.", "patch_norm."),
        # Patches, then stages and mergings in turn.
        *((rf"features\.{2 * i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"features\.{2 * i}\.", f"stages.{i}.merging.") for i in range(1, 4)),
        *IN_BLOCKS,
    ),
    buffers=BUFFERS,
)


def resize_biases(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Relative position biases, resized to the windows of a model that has others.

    Bicubic, each head's (2M - 1) x (2M - 1) offsets being a picture, as `load_pretrained` of the
    release does (utils.py of microsoft/Swin-Transformer).

    Args:
        state: a state dict with this package's keys, of which tables of offsets have two
            dimensions, ((2M - 1)², h).
        own: the model's own.
    """
    resized = {}
    for key, table in state.items():
        if not key.endswith("table") or key not in own or table.ndim != 2:
            continue
        length, heads = table.shape
        side, own_side = isqrt(length), isqrt(len(own[key]))
        square = (side**2, own_side**2) == (length, len(own[key]))
        if square and side != own_side and own[key].shape[1:] == (heads,):
            picture = table.float().mT.reshape(1, heads, side, side)
            picture = F.interpolate(picture, (own_side, own_side), mode="bicubic")
            resized[key] = picture[0].flatten(1).mT.to(table.dtype)
    return {**state, **resized}
