"""Attention that is added to a trained network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention_vision.ranges import Finite, Size, checked


@checked
class FadeIn(nn.Module):
    """Any attention of a feature map, faded in by a learned gate: x + gamma · (A(x) - x).

    Shape: (B, C, H, W) -> (B, C, H, W)

    With gamma = 0 at the start, as in ReZero (Bachlechner et al., arXiv 2003.04887), a network with
    released weights computes what it computed before; `load_official` therefore accepts weights
    that lack this module. SE, ECA and CBAM put into such a network as they are halve its maps,
    which a comparison then measures in place of the attention. Softmax mechanisms start as
    the identity by themselves.

    Args:
        channels: C.
        attention: A, a feature attention: the factory `channels -> module`.
        gamma: at the start; 1 is the attention as it is.
    """

    def __init__(self, channels: Size, attention: Callable[[int], nn.Module], gamma: Finite = 0.0):
        super().__init__()
        self.attention = attention(channels)
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.attention(x), self.gamma.to(x.dtype))


def added_to(network: nn.Module) -> list[str]:
    """Names of the modules that may be new in a trained network: `FadeIn`, and gamma = 0."""
    names: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{one}.") for one in names)
        if not inside and (isinstance(module, FadeIn) or starts_as_identity(module)):
            names.append(name)
    return names


def starts_as_identity(module: nn.Module) -> bool:
    """Whether a residual mechanism has the factor gamma, and it is 0."""
    gamma = getattr(module, "gamma", None)
    return isinstance(gamma, Tensor) and gamma.ndim == 0 and not gamma.is_meta and not gamma.any()
