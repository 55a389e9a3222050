"""Official weights: read the state dicts of the peers' libraries into this package's networks.

A layout is a list of renamings from their keys to ours. The first layout that has a key of its own
in the state dict is taken, so that nobody has to say where a file comes from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from attention_vision.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """How one library names the parameters of one network.

    Attributes:
        name: for messages.
        signature: keys that only this layout has, all of them.
        renames: (pattern, replacement) pairs, applied in turn to the start of every key.
    """

    name: str
    signature: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.rename(key): value for key, value in state.items()}

    def rename(self, key: str) -> str:
        for pattern, replacement in self.renames:
            key = re.sub(f"^{pattern}", replacement, key)
        return key


RESNET = (
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    # Stages count from 1 there and from 0 here.
    *((rf"layer{stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"(stages\.\d+\.\d+)\.bn(\d)\.", r"\1.norm\2."),
    (r"(stages\.\d+\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"(stages\.\d+\.\d+)\.se\.fc1\.", r"\1.attention.squeeze."),
    (r"(stages\.\d+\.\d+)\.se\.fc2\.", r"\1.attention.excite."),
    (r"fc\.", "head."),
)

LAYOUTS = (
    Layout("ResNet of torchvision or timm", ("conv1.weight", "layer1.0.conv1.weight"), RESNET),
    Layout(
        "ViT or DeiT of timm",
        ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        (
            (r"cls_token$", "pool.token"),
            (r"pos_embed$", "position.table"),
            (r"patch_embed\.proj\.", "patches."),
            (r"(blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
            (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
            (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.expand."),
            (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.reduce."),
        ),
    ),
    Layout(
        "ViT of torchvision",
        ("class_token", "conv_proj.weight", "encoder.pos_embedding"),
        (
            (r"class_token$", "pool.token"),
            (r"encoder\.pos_embedding$", "position.table"),
            (r"conv_proj\.", "patches."),
            (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"encoder\.ln\.", "norm."),
            (r"(blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
            (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attention.qkv."),
            (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attention.out."),
            # linear_1 and linear_2 before torchvision 0.13, places in a Sequential since.
            (r"(blocks\.\d+)\.mlp\.(0|linear_1)\.", r"\1.mlp.expand."),
            (r"(blocks\.\d+)\.mlp\.(3|linear_2)\.", r"\1.mlp.reduce."),
            (r"heads\.head\.", "head."),
        ),
    ),
)


def load_official(model: Model, source: str | Path | Mapping[str, Tensor]) -> Model:
    """Load the weights that another library or a paper's authors released.

    Recognised by their keys: ResNet of torchvision and timm, SE-ResNet of timm, ViT of torchvision,
    ViT and DeiT of timm. The model's own state dict is taken as it is.

    Args:
        model: a network of this package with the shapes of the weights.
        source: a state dict, or a file that `torch.load(weights_only=True)` or safetensors reads;
            a dict that holds one under "state_dict" or "model" is opened, and the prefix "module."
            of a parallel wrapper is cut off.

    Returns:
        the same model, all of its weights loaded.

    Raises:
        InputError: the file cannot be read, the keys belong to no known layout, or something does
            not fit. The model is then unchanged.
    """
    state = read(source) if isinstance(source, str | Path) else source
    where = str(source) if isinstance(source, str | Path) else "state dict"
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    state = {key.removeprefix("module."): value for key, value in state.items()}

    own = model.state_dict()
    layout = next((one for one in LAYOUTS if state.keys() >= set(one.signature)), None)
    if layout is not None:
        state = layout.translate(state)
    elif not state.keys() & own.keys():
        raise InputError(
            f"{where}: the keys ({', '.join(list(state)[:3])}, ...) belong to no known layout; "
            f"known are {'; '.join(one.name for one in LAYOUTS)}"
        )

    problems = [f"{key} is missing" for key in own.keys() - state.keys()]
    problems += [f"{key} has no place" for key in state.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        name = layout.name if layout else "this package's own"
        raise InputError(f"{where} ({name}) does not fit the model: {shown}{more}")
    model.load_state_dict(state)
    return model


def read(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict from a file of torch (tensors only) or safetensors."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a downloaded state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not readable as a state dict ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
