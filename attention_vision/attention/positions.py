"""Positions: sine over the plane, learned with interpolation, relative as a bias."""

from math import isqrt, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.ranges import NonNegativeInt, Positive, Size, checked


@checked
class SinePosition2d(nn.Module):
    """Sines of the row and of the column, normalised to 0..2π (DETR, arXiv 2005.12872, appendix).

    Shape: padding_mask (B, H, W) bool, True where padded -> (B, C, H, W)

    As released: rows and columns count unpadded pixels only, the row fills the first C/2 channels,
    and sine and cosine alternate.

    Args:
        width: C, a multiple of 4.
        temperature: T, ratio between the longest and the shortest wave.
        centered: count from the centers of pixels, as Deformable DETR's release; DETR's counts the
            first as 1.

    Raises:
        ValueError: `width` is not a multiple of 4.
    """

    def __init__(self, width: Size, temperature: Positive = 10_000.0, centered: bool = False):
        super().__init__()
        if width % 4:
            raise ValueError(f"SinePosition2d: width {width} is not a multiple of 4")
        self.width = width
        self.temperature = temperature
        self.before = 0.5 if centered else 0.0  # pixels from a position to the end of its pixel

    def forward(self, padding_mask: Tensor) -> Tensor:
        inside = (~padding_mask).float()
        half = self.width // 2
        pair = torch.arange(half, device=padding_mask.device) // 2
        wavelength = self.temperature ** (2 * pair / half)  # (C/2,)
        waves = []
        for axis in (1, 2):
            count = inside.cumsum(axis)
            last = count.narrow(axis, -1, 1)
            place = 2 * pi * (count - self.before) / (last + 1e-6)
            angle = place[..., None] / wavelength  # (B, H, W, C/2)
            waves.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1))
        return torch.cat([wave.flatten(3) for wave in waves], -1).permute(0, 3, 1, 2)


@checked
class LearnedPosition(nn.Module):
    """One learned vector per place of a grid, resized to the grid at hand (ViT, arXiv 2010.11929).

    Shape: grid (H, W) -> (1, num_prefix_tokens + HW, C)

    Args:
        width: C.
        grid: (H, W) of the table.
        num_prefix_tokens: positions before the grid, never resized; 1 for a class token.
    """

    def __init__(self, width: Size, grid: tuple[int, int], num_prefix_tokens: NonNegativeInt = 0):
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.num_prefix_tokens = num_prefix_tokens
        self.table = nn.Parameter(torch.empty(1, num_prefix_tokens + grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: tuple[int, int] | None = None) -> Tensor:
        if grid is None or tuple(grid) == self.grid:
            return self.table
        return self.resized(self.table, self.grid, grid)

    def resized(self, table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """A table of `grid` for a `new` one: bicubic with antialiasing, as timm."""
        prefix, places = table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]
        places = places.mT.unflatten(2, grid)
        # float: bicubic resizing has no bf16 kernel everywhere
        places = F.interpolate(places.float(), tuple(new), mode="bicubic", antialias=True)
        return torch.cat((prefix, places.to(table.dtype).flatten(2).mT), 1)

    def grid_of(self, table: Tensor) -> tuple[int, int] | None:
        """The square grid of another table, with as many places before it; None if it has none."""
        if table.ndim != 3 or table.shape[::2] != self.table.shape[::2]:
            return None
        places = table.shape[1] - self.num_prefix_tokens
        side = isqrt(max(0, places))
        return (side, side) if side and side**2 == places else None


@checked
class RelativePositionBias(nn.Module):
    """A learned score per head for each offset between two places (Swin, arXiv 2103.14030, eq. 4).

    Shape: grid (H, W) -> (h, HW, HW), to be added to attention scores

    The table has (2H - 1)(2W - 1) rows, row offset first; for a grid of another size it is resized.

    Args:
        heads: h.
        grid: (H, W) of the table: a window for Swin, the whole map for ViT.
    """

    index: Tensor

    def __init__(self, heads: Size, grid: tuple[int, int]):
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", offsets(self.grid), persistent=False)

    def forward(self, grid: tuple[int, int] | None = None) -> Tensor:
        if grid is None or tuple(grid) == self.grid:
            table, index = self.table, self.index
        else:
            height, width = (2 * length - 1 for length in self.grid)
            table = self.table.mT.unflatten(1, (height, width))[None].float()
            size = [2 * length - 1 for length in grid]
            table = F.interpolate(table, size, mode="bicubic", antialias=True)[0].flatten(1).mT
            table, index = table.to(self.table.dtype), offsets(grid).to(table.device)
        return table[index].permute(2, 0, 1)


def offsets(grid: tuple[int, int]) -> Tensor:
    """(HW, HW): the row of the table for each query and key of a grid."""
    height, width = grid
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    down = row[:, None] - row + height - 1  # 0..2H-2
    right = column[:, None] - column + width - 1
    return down * (2 * width - 1) + right
