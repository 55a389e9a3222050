"""Maps over an image from recorded attention weights: rows, windows, lines, rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.attention.window import from_windows


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema, arXiv 2005.00928, section 3): all layers as one.

    Shape: weights of each layer (B, h, N, N), first layer first -> (B, N, N), rows sum to 1

    A layer mixes tokens by (A + I) / 2, A the mean of its heads and I the residual connection; the
    product over all layers is the share of each input token in each output token.

    Raises:
        ValueError: there are no layers.
    """
    product = None
    for rows in layers:
        mean = rows.float().mean(1)
        mixing = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        product = mixing if product is None else mixing @ product
    if product is None:
        raise ValueError("rollout: there are no layers")
    return product


def query_row(
    rows: Tensor, grid: tuple[int, int], prefix: int = 0, index: int | None = None
) -> Tensor:
    """Map of the weights of one query: of a position, of the class token, or the mean query.

    Shape: (B, h, Q, prefix + HW) -> (B, h, H, W); weights of the tokens in front of the map are
    left out

    Args:
        grid: (H, W) of the keys.
        prefix: number of tokens in front of the map, the class token first.
        index: of a query, counted behind the prefix. If none is given: the class token, or the
            mean of all queries if there is no token in front.
    """
    if index is not None:
        row = rows[:, :, prefix + index]
    else:
        row = rows[:, :, 0] if prefix else rows.mean(2)
    return row[..., prefix:].unflatten(2, grid)


def window_map(rows: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Map of the weights of the mean query of each window, the windows put together again.

    Shape: weights of `WindowAttention` (B · nW, h, M², M²) -> (B, h, H, W), where the numbers of a
    window sum to 1, less its weights of padding
    """
    height, width = (-(-length // window) * window for length in grid)
    roll = tuple(shift if length > window else 0 for length in (height, width))
    weights = from_windows(rows.mean(2).mT, (height, width), window)  # (B, H', W', h)
    weights = weights.roll(roll, (1, 2))[:, : grid[0], : grid[1]]
    return weights.permute(0, 3, 1, 2)


def line_map(rows: Tensor, axis: int, batch: int) -> Tensor:
    """Map of the weights of the mean query of each row or column, the lines put together again.

    Shape: weights of `AxialAttention`, of its `row` (B · H, h, W, W) with axis 0, or of its
    `column` (B · W, h, H, H) with axis 1 -> (B, h, H, W), where the numbers of a line sum to 1
    """
    weights = rows.mean(2).unflatten(0, (batch, -1))  # (B, lines, h, length)
    return weights.permute(0, 2, 1, 3) if axis == 0 else weights.permute(0, 2, 3, 1)


def point_map(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights of the points in each cell of a grid, mean over queries.

    Shape: (B, h, Q, L, P, 3), x and y in 0..1 and weight -> (B, h, H, W)
    """
    batch, heads, queries = points.shape[:3]
    height, width = grid
    x, y, weight = points.float().cpu().flatten(2, 4).flatten(0, 1).unbind(-1)  # (B h, Q L P)
    column, row = (x * width).floor(), (y * height).floor()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = torch.where(inside, row * width + column, 0).long()
    maps = torch.zeros(batch * heads, height * width)
    maps.scatter_add_(1, cell, torch.where(inside, weight, 0) / queries)
    return maps.view(batch, heads, height, width)
