"""How a library names the parameters of a network, and the way from its names to ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How one library names the parameters of one network.

    Attributes:
        name: for messages.
        signature: keys that only this layout has, all of them.
        renames: (pattern, replacement) pairs, applied in turn to the start of every key.
        backbone: pattern of what stands before the keys of a backbone ...
        backbone_renames: ... and the renames of what follows.
        buffers: pattern of keys that hold no weights and are passed over.
    """

    name: str
    signature: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    backbone: str = ""
    backbone_renames: tuple[tuple[str, str], ...] = ()
    buffers: str = ""

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {
            self.rename(key): value
            for key, value in state.items()
            if not (self.buffers and re.fullmatch(self.buffers, key))
        }
        return stack_projections(weights)

    def rename(self, key: str) -> str:
        prefix = re.match(self.backbone, key) if self.backbone else None
        if prefix:
            return "backbone." + renamed(key[prefix.end() :], self.backbone_renames)
        return renamed(key, self.renames)


def renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(f"^{pattern}", replacement, key)
    return key


def stack_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values that have a matrix each, `qkv.0` to `qkv.2`, share one here."""
    for key in [key for key in state if ".qkv.0." in key]:
        parts = [key.replace(".qkv.0.", f".qkv.{part}.") for part in range(3)]
        if state.keys() >= set(parts):
            state[key.replace(".qkv.0.", ".qkv.")] = torch.cat([state.pop(one) for one in parts])
    return state
