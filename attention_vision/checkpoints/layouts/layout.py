"""Translation of the parameter names of another library into this package's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Parameter names of one network in one library.

    Attributes:
        name: for messages.
        signature: keys that identify the layout if all of them are present.
        renames: (pattern, replacement) pairs, applied in turn to the start of every key.
        backbone: pattern of the key prefix of a backbone ...
        backbone_renames: ... and the renames of the rest of these keys.
        buffers: pattern of keys that are not weights and are skipped.
    """

    name: str
    signature: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    backbone: str = ""
    backbone_renames: tuple[tuple[str, str], ...] = ()
    buffers: str = ""

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a state dict, and join separate query, key and value matrices."""
        weights = {
            self.rename(key): value
            for key, value in state.items()
            if not (self.buffers and re.fullmatch(self.buffers, key))
        }
        return stack_projections(weights)

    def rename(self, key: str) -> str:
        prefix = re.match(self.backbone, key) if self.backbone else None
        if prefix:
            return "backbone." + rename_key(key[prefix.end() :], self.backbone_renames)
        return rename_key(key, self.renames)


def rename_key(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(f"^{pattern}", replacement, key)
    return key


def stack_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the matrices of queries, keys and values, `qkv.0` to `qkv.2`, into one, `qkv`."""
    for key in [key for key in state if ".qkv.0." in key]:
        parts = [key.replace(".qkv.0.", f".qkv.{part}.") for part in range(3)]
        if state.keys() >= set(parts):
            state[key.replace(".qkv.0.", ".qkv.")] = torch.cat([state.pop(one) for one in parts])
    return state
