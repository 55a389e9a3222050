"""Weights of every attention layer of a network as maps over images and as gates."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_vision.attention import (
    AxialAttention,
    DeformableSelfAttention2d,
    LocalGlobalAttention,
    SpatialGate,
    WindowAttention,
    record_attention,
)
from attention_vision.attention.recording import layers_under
from attention_vision.attention.token_grid import grid_of
from attention_vision.backbones.backbone import Backbone
from attention_vision.errors import InputError
from attention_vision.visualization.maps import line_map, point_map, query_row, window_map

CENTER = (0.5, 0.5)
CELL = 8  # pixels of an image, in which points of several maps are counted

Grid = tuple[int, int]
Output = TypeVar("Output")

# What is drawn of a layer: the weights of a query over the image, a gate of each position (of an
# image or a volume), a gate of each channel, the weights of detected objects by the task's own
# figures, or nothing.
Kind = Literal["attention", "spatial gate", "channel gate", "objects", "none"]


@dataclass(frozen=True)
class Layer:
    """Weights of one attention layer for B images, and how they are drawn.

    Attributes:
        name: as in `model.named_modules()`.
        kind: what is drawn of it.
        title: the same in words; of a layer that is not drawn, the reason.
        weights: as `record_attention` yields them.
        maps: (B, h, H, W) at the layer's resolution, a gate having one head; None without a map.
        gates: (B, C) of a channel gate, else None.
        mechanism: the class of the module; None if there is no such module, as of rollout.
        point: position in the image whose query is shown; None where it is another query.
    """

    name: str
    kind: Kind
    title: str
    weights: Tensor
    maps: Tensor | None = None
    gates: Tensor | None = None
    mechanism: type[nn.Module] | None = None
    point: tuple[float, float] | None = None

    @property
    def can_be_drawn(self) -> bool:
        return self.maps is not None or self.gates is not None

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays for an .npz: NAME, the weights of a layer, and NAME/map, what is drawn."""
        found = {self.name: self.weights} if self.mechanism else {}
        if self.maps is not None:
            found[f"{self.name}/map"] = self.maps
        return {name: x.float().cpu().numpy() for name, x in found.items()}

    def of_image(self, index: int) -> "Layer":
        """Select one of the B images; the weights stay those of all."""
        maps, gates = (x if x is None else x[index : index + 1] for x in (self.maps, self.gates))
        return replace(self, maps=maps, gates=gates)


class Call(NamedTuple):
    """Sizes of the maps in a layer's last forward pass.

    Attributes:
        grid: (H, W) of the map that it changes.
        source: (H, W) of another map that it attends to.
    """

    grid: Grid | None
    source: Grid | None


@contextmanager
def record_calls(network: nn.Module) -> Iterator[dict[nn.Module, Call]]:
    """Record module -> the sizes of the maps in its forward; of tokens, its argument `grid`."""
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        grids = [(x.shape[2], x.shape[3]) for x in given if isinstance(x, Tensor) and x.ndim == 4]
        own, source = [*grids, None, None][:2]
        calls[module] = Call(own or named.get("grid"), source)

    hooks = [
        module.register_forward_pre_hook(record, with_kwargs=True) for module in network.modules()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def record_layers(
    network: nn.Module,
    forward: Callable[[], Output],
    images: Tensor,
    names: Sequence[str] | None = None,
    point: tuple[float, float] | None = None,
) -> tuple[Output, dict[str, Layer]]:
    """Run a forward pass; return its output, and its attention layers by name.

    Args:
        network: the module that has the layers.
        forward: calls it once.
        images: (B, C, H, W) that it sees or generates, which the maps are drawn over.
        names: of modules; `None` is all.
        point: see `DrawOptions`.
    """
    with (
        torch.no_grad(),
        record_calls(network) as calls,
        record_attention(network, names, kinds=["weights"]) as rows,
        record_attention(network, names, kinds=["gates"]) as gates,
        record_attention(network, names, kinds=["points"]) as points,
    ):
        output = forward()
    layers = {}
    for name, module in network.named_modules():
        if name in gates:
            layers[name] = gate_layer(name, module, gates[name])
        elif name in rows:
            layers[name] = row_layer(network, name, rows[name], calls, images, point)
        elif name in points:
            layers[name] = point_layer(network, name, points[name], calls, images, point)
    return output, layers


def gate_layer(name: str, module: nn.Module, weights: Tensor) -> Layer:
    """Describe a gate of weights (B, C, 1, 1) or (B, 1, H, W)."""
    mechanism = type(module)
    if weights.ndim != 4:
        return Layer(name, "spatial gate", "gate of a volume", weights, mechanism=mechanism)
    if weights.shape[1] == 1 and (weights.shape[2:] != (1, 1) or mechanism is SpatialGate):
        maps = weights.float()
        return Layer(name, "spatial gate", "spatial gate", weights, maps, mechanism=mechanism)
    gates = weights.flatten(1).float()
    title = f"gates of {gates.shape[1]} channels"
    return Layer(name, "channel gate", title, weights, gates=gates, mechanism=mechanism)


def row_layer(
    network: nn.Module,
    name: str,
    rows: Tensor,
    calls: dict[nn.Module, Call],
    images: Tensor,
    point: tuple[float, float] | None,
) -> Layer:
    """Describe softmax attention (B, h, Q, K), or with windows or lines in the place of B."""
    batch, size = len(images), (images.shape[2], images.shape[3])
    parent, _, child = name.rpartition(".")
    module, outer = network.get_submodule(name), network.get_submodule(parent)
    weights = rows.float()
    if isinstance(outer, WindowAttention):
        grid = calls[outer].grid or grid_of(tokens_of(rows, batch), size)
        maps = window_map(weights, grid, outer.window, outer.shift)
        title = "mean query, by window"
        return Layer(name, "attention", title, rows, maps, mechanism=type(outer))
    if isinstance(outer, AxialAttention):
        maps = line_map(weights, ("row", "column").index(child), batch)
        title = f"mean query, by {child}"
        return Layer(name, "attention", title, rows, maps, mechanism=type(outer))
    maps, start = None, None
    if isinstance(outer, LocalGlobalAttention):
        title = "windows beside tokens of the whole: no map over the image"
    elif len(rows) != batch:
        title = f"rows of {len(rows)} parts: no map over the image"
    else:
        title, maps, start = rows_over_image(network, name, weights, calls[module], size, point)
    kind = "none" if maps is None else "attention"
    return Layer(name, kind, title, rows, maps, mechanism=type(module), point=start)


def point_layer(
    network: nn.Module,
    name: str,
    points: Tensor,
    calls: dict[nn.Module, Call],
    images: Tensor,
    point: tuple[float, float] | None,
) -> Layer:
    """Describe deformable attention by its points (B, h, Q, L, P, 3): x, y and weight."""
    outer = network.get_submodule(name.rpartition(".")[0])
    mechanism = type(network.get_submodule(name))
    grid = (ceil(images.shape[2] / CELL), ceil(images.shape[3] / CELL))
    title, start = "points of the mean query", None
    if isinstance(outer, DeformableSelfAttention2d):
        own, start = calls[outer].grid, point or CENTER
        if own is not None:
            grid, index = own, index_at(start, own)
            points, title = points[:, :, index : index + 1], f"points of {start[0]:g}, {start[1]:g}"
    maps = point_map(points, grid)
    return Layer(name, "attention", title, points, maps, mechanism=mechanism, point=start)


def rows_over_image(
    network: nn.Module,
    name: str,
    rows: Tensor,
    call: Call,
    size: Grid,
    point: tuple[float, float] | None,
) -> tuple[str, Tensor | None, tuple[float, float] | None]:
    """Title, map (B, h, H, W) or None, and point, of one query of rows (B, h, Q, K)."""
    queries, keys = rows.shape[2:]
    if call.grid is None:  # of tokens, some of which may stand in front of the map
        prefix = prefix_of(network, name)
        try:
            grid = grid_of(keys - prefix, size)
        except ValueError:
            return f"{keys} keys are not a map in the proportions of the image", None, None
        of_query = grid if queries == keys else None
    else:
        prefix, of_query = 0, call.grid
        halves = (ceil(call.grid[0] / 2), ceil(call.grid[1] / 2))
        grids = [grid for grid in (call.source, call.grid, halves) if grid]
        grid = next((grid for grid in grids if prod(grid) == keys), None)
        if grid is None:
            return f"{keys} keys are not a map of the image", None, None
        point = point or CENTER
    if of_query and point:
        title = f"from {point[0]:g}, {point[1]:g}"
        return title, query_row(rows, grid, prefix, index_at(point, of_query)), point
    title = "mean query" if queries > 1 else "the query"
    return "class token" if prefix else title, query_row(rows, grid, prefix), None


def tokens_of(rows: Tensor, batch: int) -> int:
    """Number of tokens of an image in windows (B · nW, h, M², M²), without padding."""
    return len(rows) // batch * rows.shape[2]


def prefix_of(network: nn.Module, name: str) -> int:
    """Number of tokens in front of the map, in the backbone that contains a layer."""
    parts = name.split(".")
    ancestors = [network.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    return next((one.num_prefix_tokens for one in ancestors if isinstance(one, Backbone)), 0)


def index_at(point: tuple[float, float], grid: Grid) -> int:
    """Row-major index of the position of a grid that contains a point (x, y) in 0..1."""
    (x, y), (height, width) = point, grid
    return min(int(y * height), height - 1) * width + min(int(x * width), width - 1)


def last_of_each(layers: dict[str, Layer]) -> list[str]:
    """Names of the last layer of each mechanism, and of each of its parts, that can be drawn."""
    last = {
        (layer.mechanism, name.rpartition(".")[2]): name
        for name, layer in layers.items()
        if layer.can_be_drawn
    }
    return [name for name in layers if name in last.values()]


def select_layers(wanted: Sequence[str], layers: Collection[str]) -> list[str]:
    """Names of the layers at or below the modules `wanted`, in the network's order.

    Raises:
        InputError: there is no attention layer at or below a name; it lists the nearest names.
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
