"""Shifted-window attention, and maps cut into windows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.multi_head import MultiHeadAttention
from attention_vision.attention.positions import RelativePositionBias
from attention_vision.attention.token_grid import to_map
from attention_vision.ranges import NonNegativeInt, Size, checked


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B · HW/M², M², C), windows row by row; M divides H and W."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, H/M, M, W/M, M, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(windows: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """(B · HW/M², M², C) -> (B, H, W, C): the inverse of `to_windows`."""
    rows, columns = grid[0] // window, grid[1] // window
    x = windows.unflatten(1, (window, window)).unflatten(0, (-1, rows, columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Zeros below and to the right of (B, H, W, C), up to the next multiple of M."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % window, 0, -height % window))


@checked
class WindowAttention(nn.Module):
    """Self-attention inside M x M windows, shifted or not (Liu et al., Swin, arXiv 2103.14030).

    Shape: (B, N, C) -> (B, N, C), the N tokens being a map row by row, without class token

    With a shift the map is rolled, and tokens that the roll made neighbours do not see each other:
    their weights are 0, where the released code adds -100 to the scores. A map that M does not
    divide is padded with zeros. Along an axis that fits into one window nothing is shifted, as in
    the released code. A relative position bias is added to the scores (eq. 4).

    Args:
        width: C, a multiple of `heads`.
        heads: h.
        window: M.
        shift: tokens to roll by, in 0..M-1; M // 2 in every second block of Swin.
        relative_position: whether there is a bias.
        mask_padding: no token sees the padding. Off, it is a token of zeros before the projections,
            as in torchvision and the released detection code.

    Raises:
        ValueError: `window` is not positive; `shift` is not in 0..M-1; the tokens are not the
            `grid`, or not square without.
    """

    def __init__(
        self,
        width: Size,
        heads: Size,
        window: Size = 7,
        shift: NonNegativeInt = 0,
        relative_position: bool = True,
        mask_padding: bool = True,
    ):
        super().__init__()
        if not 0 <= shift < window:
            raise ValueError(f"WindowAttention: shift {shift} is not in 0..{window - 1}")
        self.window = window
        self.shift = shift
        self.attention = MultiHeadAttention(width, heads)
        self.position = RelativePositionBias(heads, (window, window)) if relative_position else None
        self.mask_padding = mask_padding

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend; `grid` is (H, W), a square when not given."""
        x = to_map(x, grid, "WindowAttention")
        height, width = x.shape[1:3]
        x = pad_to_windows(x, self.window)
        size = (x.shape[1], x.shape[2])
        down, right = (self.shift if length > self.window else 0 for length in size)
        shift = (down, right)

        x = x.roll((-down, -right), (1, 2)) if any(shift) else x
        windows = to_windows(x, self.window)  # (B nW, M², C)
        mask = None
        inside = (height, width) if self.mask_padding else size
        if any(shift) or inside != size:
            region = self.regions(inside, size, shift, x.device)[None, :, :, None]
            region = to_windows(region, self.window)  # (nW, M², 1)
            mask = (region == region.mT)[:, None].repeat(
                windows.shape[0] // region.shape[0], 1, 1, 1
            )
        bias = None if self.position is None else self.position()
        windows = self.attention(windows, mask=mask, bias=bias)
        x = from_windows(windows, size, self.window)
        x = x.roll(shift, (1, 2)) if any(shift) else x
        return x[:, :height, :width].flatten(1, 2)

    def regions(
        self,
        inside: tuple[int, int],
        size: tuple[int, int],
        shift: tuple[int, int],
        device: torch.device,
    ) -> Tensor:
        """(H', W') labels of the rolled map: tokens see each other where labels are equal.

        The roll brings the first rows below the last, which makes three bands along each axis (all,
        cut by the window's edge, cut by the roll); what is not `inside`, padding, is a fourth.
        """
        labels = []
        for inner, length, distance in zip(inside, size, shift, strict=True):
            place = torch.arange(length, device=device)
            band = torch.zeros_like(place)
            if distance:
                band = (place >= length - self.window).long() + (place >= length - distance).long()
            labels.append(band.masked_fill((place + distance) % length >= inner, 3))
        return 4 * labels[0][:, None] + labels[1]
