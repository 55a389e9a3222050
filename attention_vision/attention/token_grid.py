"""Maps from tokens, and their sizes: the tokens are a map row by row."""

from math import isqrt

from torch import Tensor


def to_map(tokens: Tensor, grid: tuple[int, int] | None, name: str) -> Tensor:
    """(B, N, C) -> (B, H, W, C); `grid` is (H, W), a square when not given.

    Raises:
        ValueError: N is not H · W; `name` is the mechanism, for the message.
    """
    height, width = grid or (isqrt(tokens.shape[1]),) * 2
    if height * width != tokens.shape[1]:
        raise ValueError(
            f"{name}: {tokens.shape[1]} tokens are not a {height} x {width} map; pass grid=(H, W),"
            " and no class token"
        )
    return tokens.unflatten(1, (height, width))


def grid_of(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a map with a number of tokens, in the proportions of an image.

    Raises:
        ValueError: there is no such map.
    """
    height, width = size
    rows = round((places * height / width) ** 0.5)
    columns = round((places * width / height) ** 0.5)
    if rows * columns != places:
        raise ValueError(f"{places} tokens are not a map in the proportions of {height} x {width}")
    return rows, columns
