"""Positions against their definitions, and what resizing keeps."""

import math

import pytest
import torch

from attention_vision.attention import LearnedPosition, RelativePositionBias, SinePosition2d
from attention_vision.backbones import ViT


def test_sine_positions_equal_the_loop_and_ignore_padding():
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    position = SinePosition2d(8)(mask)
    assert position.shape == (2, 8, 4, 6)
    for b, (height, width) in enumerate([(4, 6), (3, 4)]):
        for i in range(height):
            for j in range(width):
                for c in range(8):
                    place, length = (i + 1, height) if c < 4 else (j + 1, width)
                    angle = 2 * math.pi * place / (length + 1e-6) / 10_000 ** ((c % 4) // 2 * 2 / 4)
                    expected = math.cos(angle) if c % 2 else math.sin(angle)
                    assert position[b, c, i, j].item() == pytest.approx(expected, abs=1e-5)


def test_sine_position_width_is_checked():
    with pytest.raises(ValueError, match="multiple of 4"):
        SinePosition2d(6)


def test_learned_positions_resize_the_grid_and_keep_the_prefix():
    position = LearnedPosition(8, (4, 4), num_prefix_tokens=1)
    assert position() is position.table
    resized = position((8, 6))
    assert resized.shape == (1, 49, 8)
    assert torch.equal(resized[:, 0], position.table[:, 0])
    with torch.no_grad():  # a plane stays a plane inside
        ramp = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
        position.table[:, 1:] = ramp
    column = position((8, 4))[0, 1:, 0].view(8, 4)[:, 0]
    torch.testing.assert_close(column[2:-2], (torch.arange(8.0)[2:-2] - 0.5) / 2, rtol=0, atol=0.1)


def test_relative_bias_depends_on_the_offset_only():
    bias = RelativePositionBias(2, (3, 4))
    table = bias.table.unflatten(0, (5, 7))
    for q in range(12):
        for k in range(12):
            down, right = q // 4 - k // 4, q % 4 - k % 4
            assert torch.equal(bias()[:, q, k], table[down + 2, right + 3])
    assert bias((6, 5)).shape == (2, 30, 30)


@pytest.mark.parametrize("position", ["absolute", "relative"])
def test_vit_takes_other_image_sizes_and_can_overfit_a_position(position):
    vit = ViT(32, 8, 32, 2, 2, num_classes=4, position=position)
    assert vit(torch.randn(2, 3, 48, 24)).shape == (2, 4)
    vit(torch.randn(2, 3, 40, 32)).sum().backward()
    name = "position.table" if position == "absolute" else "biases.0.table"
    assert vit.get_parameter(name).grad.abs().sum() > 0
