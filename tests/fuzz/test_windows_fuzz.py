"""Windows, and patches with their masks: nothing is lost, nothing moves."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_vision.attention.window import (
    WindowAttention,
    from_windows,
    pad_to_windows,
    to_windows,
)
from attention_vision.generation.image_to_image.data import cut

SIDES = st.integers(1, 9)


@given(st.integers(1, 3), SIDES, SIDES, st.integers(1, 5), st.integers(1, 3))
def test_a_map_is_cut_and_put_together(batch, height, width, window, channels):
    x = torch.arange(batch * height * width * channels).view(batch, height, width, channels) + 1
    padded = pad_to_windows(x, window)
    rows, columns = padded.shape[1:3]
    assert (rows % window, columns % window) == (0, 0)
    assert rows - height < window
    assert columns - width < window
    windows = to_windows(padded, window)
    assert torch.equal(from_windows(windows, (rows, columns), window), padded)
    assert torch.equal(padded[:, :height, :width], x)
    assert padded.sum() == x.sum()
    number = 0
    for image in padded:
        for row in range(0, rows, window):
            for column in range(0, columns, window):
                part = image[row : row + window, column : column + window]
                assert torch.equal(windows[number], part.reshape(-1, channels))
                number += 1


@given(SIDES, SIDES, st.integers(2, 4), st.data())
def test_a_token_sees_its_window_alone(height, width, window, data):
    """The tokens that a token depends on, by gradient, are those of its window by hand."""
    shift = data.draw(st.integers(0, window - 1))
    row = data.draw(st.integers(0, height - 1))
    column = data.draw(st.integers(0, width - 1))
    torch.manual_seed(0)
    attention = WindowAttention(4, 1, window, shift)
    x = torch.randn(1, height * width, 4, requires_grad=True)
    attention(x, (height, width))[0, row * width + column].sum().backward()
    seen = x.grad.abs().sum(-1).view(height, width) > 0

    def part(place: int, length: int) -> int:
        moved = shift if length > window and -(-length // window) > 1 else 0
        return (place - moved) // window  # windows begin at `shift`, the first is cut off

    for other_row in range(height):
        for other_column in range(width):
            same = part(row, height) == part(other_row, height)
            same &= part(column, width) == part(other_column, width)
            assert seen[other_row, other_column].item() == same


@given(st.data())
def test_a_patch_lies_in_its_image(data):
    whole = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=3))
    part = [data.draw(st.integers(1, length)) for length in whole]
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    patch = cut(whole, part, "image")
    assert [one.stop - one.start for one in patch] == part
    assert all(one.start >= 0 and one.stop <= n for one, n in zip(patch, whole, strict=True))
