"""From recorded weights to maps over the places of an image: rows, windows, lines, rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.attention.window import from_windows


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema, arXiv 2005.00928, section 3): all layers as one.

    Shape: weights of each layer (B, h, N, N), first layer first -> (B, N, N), rows sum to 1

    A layer mixes tokens by (A + I) / 2, A the mean of its heads and I the residual connection; the
    product of all layers says how much of each input token an output token holds.
    """
    through = None
    for rows in layers:
        mean = rows.float().mean(1)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        through = mixed if through is None else mixed @ through
    return through


def query_row(
    rows: Tensor, grid: tuple[int, int], prefix: int = 0, place: int | None = None
) -> Tensor:
    """What one query attends to, as a map: of a place, of the class token, or the mean query.

    Shape: (B, h, Q, prefix + HW) -> (B, h, H, W); what is given to the tokens in front of the map
    is left out

    Args:
        grid: (H, W) of the keys.
        prefix: tokens in front of the map, the class token first.
        place: number of a query behind the prefix. Where none is given: the class token, or the
            mean of all queries where there is no token in front.
    """
    if place is not None:
        row = rows[:, :, prefix + place]
    else:
        row = rows[:, :, 0] if prefix else rows.mean(2)
    return row[..., prefix:].unflatten(2, grid)


def window_map(rows: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """What the mean query of each window attends to, the windows put together again.

    Shape: weights of `WindowAttention` (B · nW, h, M², M²) -> (B, h, H, W), where the numbers of a
    window sum to 1, less what it gives to padding
    """
    size = tuple(-(-length // window) * window for length in grid)
    roll = tuple(shift if length > window else 0 for length in size)
    places = from_windows(rows.mean(2).mT, size, window)  # (B, H', W', h)
    places = places.roll(roll, (1, 2))[:, : grid[0], : grid[1]]
    return places.permute(0, 3, 1, 2)


def line_map(rows: Tensor, axis: int, batch: int) -> Tensor:
    """What the mean query of each row or column attends to, the lines put together again.

    Shape: weights of `AxialAttention`, of its `row` (B · H, h, W, W) with axis 0, or of its
    `column` (B · W, h, H, H) with axis 1 -> (B, h, H, W), where the numbers of a line sum to 1
    """
    places = rows.mean(2).unflatten(0, (batch, -1))  # (B, lines, h, length)
    return places.permute(0, 2, 1, 3) if axis == 0 else places.permute(0, 2, 3, 1)
