"""Weights of every attention layer of a network as maps over images and as gates."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_vision.attention import (
    AxialAttention,
    LocalGlobalAttention,
    SpatialGate,
    WindowAttention,
    record_attention,
)
from attention_vision.attention.recording import layers_under
from attention_vision.attention.token_grid import grid_of
from attention_vision.backbones.backbone import Backbone
from attention_vision.errors import InputError
from attention_vision.text_table import aligned
from attention_vision.visualization.maps import line_map, query_row, window_map

CENTRE = (0.5, 0.5)


Grid = tuple[int, int]


Output = TypeVar("Output")


@dataclass(frozen=True)
class Layer:
    """What one attention layer did with B images.

    Attributes:
        name: as in `model.named_modules()`.
        kind: what is shown; of a layer that has no map over the image, why.
        weights: as `record_attention` gives them.
        maps: (B, h, H, W) at the layer's resolution, a gate having one head; None without a map.
        gates: (B, C) of a channel gate, else None.
        mechanism: the class of the module; None of what is no layer, such as rollout.
        point: of the image, whose query is shown; None where it is another.
    """

    name: str
    kind: str
    weights: Tensor
    maps: Tensor | None = None
    gates: Tensor | None = None
    mechanism: type[nn.Module] | None = None
    point: tuple[float, float] | None = None

    @property
    def shown(self) -> bool:
        return self.maps is not None or self.gates is not None

    def arrays(self) -> dict[str, np.ndarray]:
        """NAME, the weights of a layer, and NAME/map, what is drawn."""
        found = {self.name: self.weights} if self.mechanism else {}
        if self.maps is not None:
            found[f"{self.name}/map"] = self.maps
        return {name: x.float().cpu().numpy() for name, x in found.items()}

    def of_image(self, index: int) -> "Layer":
        """The same of one of the B images; the weights stay those of all."""
        maps, gates = (x if x is None else x[index : index + 1] for x in (self.maps, self.gates))
        return replace(self, maps=maps, gates=gates)


class Call(NamedTuple):
    """The maps that a layer was given in its last forward: its own, and another one's."""

    grid: Grid | None
    source: Grid | None


@contextmanager
def record_calls(network: nn.Module) -> Iterator[dict[nn.Module, Call]]:
    """Module -> the (H, W) of the maps in its forward; of tokens, what `grid=` says."""
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        grids = [tuple(x.shape[2:]) for x in given if isinstance(x, Tensor) and x.ndim == 4]
        own, source = [*grids, None, None][:2]
        calls[module] = Call(own or named.get("grid"), source)

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True) for module in network.modules()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def looked(
    network: nn.Module,
    forward: Callable[[], Output],
    images: Tensor,
    names: Sequence[str] | None = None,
    point: tuple[float, float] | None = None,
) -> tuple[Output, dict[str, Layer]]:
    """The output of a forward pass, and its attention layers by name.

    Args:
        network: whose layers are meant.
        forward: calls it once.
        images: (B, C, H, W) that it sees or makes: what the maps lie over.
        names: of modules; `None` is all.
        point: see `Wish`.
    """
    with (
        torch.no_grad(),
        record_calls(network) as calls,
        record_attention(network, names, kinds=["weights"]) as rows,
        record_attention(network, names, kinds=["gates"]) as gates,
    ):
        output = forward()
    layers = {}
    for name, module in network.named_modules():
        if name in gates:
            layers[name] = gate_layer(name, module, gates[name])
        elif name in rows:
            layers[name] = row_layer(network, name, rows[name], calls, images, point)
    return output, layers


def gate_layer(name: str, module: nn.Module, weights: Tensor) -> Layer:
    """Of weights (B, C, 1, 1) or (B, 1, H, W)."""
    kind = type(module)
    if weights.ndim != 4:
        return Layer(name, "gate of a volume", weights, mechanism=kind)
    if weights.shape[1] == 1 and (weights.shape[2:] != (1, 1) or kind is SpatialGate):
        return Layer(name, "gate of places", weights, weights.float(), mechanism=kind)
    gates = weights.flatten(1).float()
    return Layer(name, f"gates of {gates.shape[1]} channels", weights, gates=gates, mechanism=kind)


def row_layer(
    network: nn.Module,
    name: str,
    rows: Tensor,
    calls: dict[nn.Module, Call],
    images: Tensor,
    point: tuple[float, float] | None,
) -> Layer:
    """Of softmax attention (B, h, Q, K), or with windows or lines in the place of B."""
    module, batch, size = network.get_submodule(name), len(images), tuple(images.shape[2:])
    parent, _, part = name.rpartition(".")
    around = network.get_submodule(parent)
    weights = rows.float()
    if isinstance(around, WindowAttention):
        grid = calls[around].grid or grid_of(tokens_of(rows, batch), size)
        maps = window_map(weights, grid, around.window, around.shift)
        return Layer(name, "mean query, by window", rows, maps, mechanism=type(around))
    if isinstance(around, AxialAttention):
        maps = line_map(weights, ("row", "column").index(part), batch)
        return Layer(name, f"mean query, by {part}", rows, maps, mechanism=type(around))
    kind, maps, start = "", None, None
    if isinstance(around, LocalGlobalAttention):
        kind = "windows beside tokens of the whole: no map over the image"
    elif len(rows) != batch:
        kind = f"rows of {len(rows)} parts: no map over the image"
    else:
        kind, maps, start = rows_over_image(network, name, weights, calls[module], size, point)
    return Layer(name, kind, rows, maps, mechanism=type(module), point=start)


def rows_over_image(
    network: nn.Module,
    name: str,
    rows: Tensor,
    call: Call,
    size: Grid,
    point: tuple[float, float] | None,
) -> tuple[str, Tensor | None, tuple[float, float] | None]:
    """What is shown of rows (B, h, Q, K), as a map (B, h, H, W), and from which point."""
    queries, keys = rows.shape[2:]
    if call.grid is None:  # of tokens, some of which may stand in front of the map
        prefix = prefix_of(network, name)
        try:
            grid = grid_of(keys - prefix, size)
        except ValueError:
            return f"{keys} keys are no map in the proportions of the image", None, None
        of_query = grid if queries == keys else None
    else:
        prefix, of_query = 0, call.grid
        halves = tuple(ceil(length / 2) for length in call.grid)
        grids = [grid for grid in (call.source, call.grid, halves) if grid]
        grid = next((grid for grid in grids if prod(grid) == keys), None)
        if grid is None:
            return f"{keys} keys are no map of the image", None, None
        point = point or CENTRE
    if of_query and point:
        place = place_at(point, of_query)
        kind = f"from {point[0]:g}, {point[1]:g}"
        return kind, query_row(rows, grid, prefix, place), point
    kind = "mean query" if queries > 1 else "the query"
    return "class token" if prefix else kind, query_row(rows, grid, prefix), None


def tokens_of(rows: Tensor, batch: int) -> int:
    """How many tokens windows of (B · nW, h, M², M²) hold, without padding."""
    return len(rows) // batch * rows.shape[2]


def prefix_of(network: nn.Module, name: str) -> int:
    """Tokens in front of the map in the backbone that a layer is part of."""
    parts = name.split(".")
    around = [network.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    return next((one.num_prefix_tokens for one in around if isinstance(one, Backbone)), 0)


def place_at(point: tuple[float, float], grid: Grid) -> int:
    """The number of the place that a point (x, y) in 0..1 lies in."""
    row, column = (
        min(int(share * length), length - 1)
        for share, length in zip(reversed(point), grid, strict=True)
    )
    return row * grid[1] + column


def last_of_each(layers: dict[str, Layer]) -> list[str]:
    """The last layer of each mechanism, and of each of its parts, among those that can be shown."""
    last = {
        (layer.mechanism, name.rpartition(".")[2]): name
        for name, layer in layers.items()
        if layer.shown
    }
    return [name for name in layers if name in last.values()]


def chosen(wanted: Sequence[str], layers: Collection[str]) -> list[str]:
    """The layers of these names or inside of modules of these names, in the network's order.

    Raises:
        InputError: a name has no attention layer; the nearest are given.
    """
    found = set()
    for name in wanted:
        inside = layers_under(name, layers)
        if not inside:
            near = difflib.get_close_matches(name, layers, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(layers)}"
            raise InputError(f"--layers: no attention layer {name!r}; {hint}; see --layers list")
        found.update(inside)
    return [name for name in layers if name in found]


def table(layers: dict[str, Layer]) -> str:
    """A line for each layer: its name, the shape of its weights, what is shown."""
    rows = [
        (layer.name, "x".join(map(str, layer.weights.shape[1:])), layer.kind)
        for layer in layers.values()
    ]
    return aligned(rows, right=[1])
