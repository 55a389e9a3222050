"""Attention that is added to a trained network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention_vision.attention.axial import AxialAttention2d
from attention_vision.attention.cross_attention2d import CrossAttention2d
from attention_vision.attention.deformable import DeformableSelfAttention2d
from attention_vision.attention.local_global import LocalGlobalAttention2d
from attention_vision.attention.self_attention2d import SelfAttention2d
from attention_vision.ranges import Finite, Size, checked

RESIDUAL = (  # x + gamma y, gamma = 0 at the start
    AxialAttention2d,
    CrossAttention2d,
    DeformableSelfAttention2d,
    LocalGlobalAttention2d,
    SelfAttention2d,
)


@checked
class FadeIn(nn.Module):
    """Any attention of a feature map, faded in by a learned gate: x + gamma · (A(x) - x).

    Shape: (B, C, H, W) -> (B, C, H, W)

    With gamma = 0 at the start, as in ReZero (Bachlechner et al., arXiv 2003.04887), a network with
    released weights computes what it computed before; `load_official` therefore accepts weights
    that lack this module. SE, ECA and CBAM put into such a network as they are scale its maps down,
    which a comparison then measures in place of the attention.

    Args:
        channels: C.
        attention: A, a feature attention: the factory `channels -> module`.
        gamma: at the start; 1 is the attention as it is.

    Raises:
        ValueError: gamma is 0 and the attention has a gamma of its own that is 0: neither would
            ever be trained, since the gradient of each is a multiple of the other.
    """

    def __init__(self, channels: Size, attention: Callable[[int], nn.Module], gamma: Finite = 0.0):
        super().__init__()
        self.attention = attention(channels)
        if gamma == 0 and starts_as_identity(self.attention):
            raise ValueError(
                f"FadeIn: {type(self.attention).__name__} starts as the identity by itself, and"
                " would never train in it: use it as it is"
            )
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.attention(x).to(x.dtype), self.gamma.to(x.dtype))


def added_to(network: nn.Module) -> list[str]:
    """Names of the modules that may be new in a trained network, the outermost ones.

    These are `FadeIn`, and mechanisms of this package that start as the identity.
    """
    names: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{one}.") for one in names)
        if name and not inside and (isinstance(module, FadeIn) or starts_as_identity(module)):
            names.append(name)
    return names


def starts_as_identity(module: nn.Module) -> bool:
    """Whether it is a residual mechanism of this package whose gamma is 0."""
    gamma = getattr(module, "gamma", None)
    return type(module) in RESIDUAL and isinstance(gamma, Tensor) and not gamma.any()
