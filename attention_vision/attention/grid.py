"""Tokens that are the places of a map, row by row."""

from math import isqrt

from torch import Tensor


def to_map(tokens: Tensor, grid: tuple[int, int] | None, name: str) -> Tensor:
    """(B, N, C) -> (B, H, W, C); `grid` is (H, W), a square when not given.

    Raises:
        ValueError: N is not H · W; `name` says whose tokens they are.
    """
    height, width = grid or (isqrt(tokens.shape[1]),) * 2
    if height * width != tokens.shape[1]:
        raise ValueError(
            f"{name}: {tokens.shape[1]} tokens are no {height} x {width} map; pass grid=(H, W), and"
            " no class token"
        )
    return tokens.unflatten(1, (height, width))
