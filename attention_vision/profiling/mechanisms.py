"""Every mechanism of the attention package on a random map, for measurement."""

from collections.abc import Iterator, Sequence
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from attention_vision import attention
from attention_vision.attention.deformable import pixel_centers
from attention_vision.profiling.cost import Workload


def mechanisms() -> dict[str, type[nn.Module]]:
    """Name -> every mechanism of the attention package, without positions and `FadeIn`."""
    return {
        name: kind
        for name, kind in vars(attention).items()
        if name in attention.__all__
        and isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and not kind.__module__.endswith(("positions", "fade_in"))
    }


def contract(kind: type[nn.Module]) -> str:
    """`feature`, `token`, `pool` or `cross`, by the required arguments of the constructor."""
    required = [
        parameter.name
        for parameter in signature(kind).parameters.values()
        if parameter.default is Parameter.empty
    ]
    contracts = {("channels",): "feature", ("width", "heads"): "token", ("width",): "pool"}
    return contracts.get(tuple(required), "cross")


def contract_order(item: tuple[str, type[nn.Module]]) -> int:
    """Sort key of a (name, mechanism) in a table: by contract."""
    return ("feature", "token", "pool", "cross").index(contract(item[1]))


def mechanism_workloads(
    sizes: Sequence[tuple[int, int, int]], batch_size: int, device: torch.device
) -> Iterator[Workload]:
    """Every mechanism at each (C, H, W), with its defaults; heads have 64 channels, or C if fewer.

    Inputs require their gradient, as inside a network. `CrossAttention2d` attends to a map of the
    same shape; the gating signal of `AttentionGate` has 2 C channels and half the side. The queries
    of `DeformableAttention` are the pixels of its one map.
    """
    build = Workload.of_network
    for channels, height, width in sizes:
        shape = (batch_size, channels, height, width)
        for name, kind in sorted(mechanisms().items(), key=contract_order):
            x = torch.randn(shape, device=device, requires_grad=True)
            tokens = x.detach().flatten(2).mT.contiguous().requires_grad_()
            match contract(kind), name:
                case "feature", _:
                    yield build(name, kind(channels).to(device), x)
                case "token", _:
                    module = kind(channels, max(1, channels // 64)).to(device)
                    if "grid" in signature(kind.forward).parameters:
                        module = OnGrid(module, (height, width))
                    yield build(name, module, tokens)
                case "pool", _:
                    yield build(name, kind(channels).to(device), tokens)
                case _, "CrossAttention2d":
                    yield build(name, kind(channels, channels).to(device), x, torch.randn_like(x))
                case _, "AttentionGate":
                    coarse = torch.randn(batch_size, 2 * channels, -(-height // 2), -(-width // 2))
                    yield build(name, kind(channels, 2 * channels).to(device), x, coarse.to(device))
                case _, "DeformableAttention":
                    module = kind(channels, max(1, channels // 64), 1).to(device)
                    centers = pixel_centers([(height, width)], x).expand(batch_size, -1, -1)
                    yield build(name, OnOneMap(module, (height, width)), tokens, centers)
                case _:
                    raise NotImplementedError(f"mechanism_workloads: add a case for {name}")


class OnGrid(nn.Module):
    """A token mechanism with the size of its map, which need not be square."""

    def __init__(self, attention: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, grid=self.grid)


class OnOneMap(nn.Module):
    """Deformable attention of the tokens of a map among themselves."""

    def __init__(self, attention: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, tokens: Tensor, centers: Tensor) -> Tensor:
        return self.attention(tokens, centers[:, :, None], tokens, [self.grid])
