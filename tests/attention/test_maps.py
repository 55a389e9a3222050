"""Maps from recorded weights, against loops over places."""

import pytest
import torch
from redraw import redraw

from attention_vision.attention import (
    AxialAttention,
    DeformableSelfAttention2d,
    WindowAttention,
    record_attention,
)
from attention_vision.visualization.layers import record_layers
from attention_vision.visualization.maps import (
    line_map,
    point_map,
    query_row,
    rollout,
    window_map,
)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).softmax(-1)


def test_rollout_is_the_product_of_mixing():
    layers = [rows(2, 3, 5, 5) for _ in range(4)]
    through = rollout(layers)
    assert torch.allclose(through.sum(-1), torch.ones(2, 5))
    for image in range(2):
        held = torch.eye(5)  # of each input in each token
        for layer in layers:
            mean = sum(layer[image]) / 3
            held = torch.stack(
                [
                    (held[i] + sum(mean[i, j].float() * held[j] for j in range(5))) / 2
                    for i in range(5)
                ]
            )
        assert torch.allclose(through[image], held, atol=1e-6)


def test_tokens_that_see_themselves_stay():
    eye = torch.eye(6).expand(1, 2, 6, 6)
    assert torch.equal(rollout([eye, eye])[0], torch.eye(6))


def test_the_query_that_is_read():
    weights = rows(2, 3, 8, 8)  # 2 x 3 places behind two tokens
    assert torch.equal(query_row(weights, (2, 3), 2).flatten(2), weights[:, :, 0, 2:])
    assert torch.equal(query_row(weights, (2, 3), 2, 4).flatten(2), weights[:, :, 6, 2:])
    mean = query_row(weights, (4, 2))
    assert torch.allclose(mean[1, 2, 3, 1], sum(weights[1, 2, query, 7] for query in range(8)) / 8)
    assert torch.allclose(mean.sum((2, 3)), torch.ones(2, 3).double())


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("grid", [(6, 9), (5, 7), (3, 8)])
def test_windows_are_put_together(grid, shift):
    window, (height, width) = 3, grid
    layer = WindowAttention(4, 2, window, shift)
    with record_attention(layer) as maps:
        layer(torch.randn(2, height * width, 4), grid)
    weights = maps["attention"]
    found = window_map(weights, grid, window, shift)
    assert found.shape == (2, 2, *grid)
    high, wide = (-(-length // window) * window for length in grid)
    down, right = (shift if length > window else 0 for length in (high, wide))
    per_image = high * wide // window**2
    for y in range(height):
        for x in range(width):
            rolled = (y - down) % high, (x - right) % wide
            number = rolled[0] // window * (wide // window) + rolled[1] // window
            key = rolled[0] % window * window + rolled[1] % window
            for image in range(2):
                column = weights[image * per_image + number, :, :, key]
                assert torch.allclose(found[image, :, y, x], column.sum(1) / window**2)


def test_windows_without_padding_sum_to_one_each():
    layer = WindowAttention(4, 2, 3)
    with record_attention(layer) as maps:
        layer(torch.randn(1, 54, 4), (6, 9))
    found = window_map(maps["attention"], (6, 9), 3, 0)
    sums = found.unflatten(3, (3, 3)).unflatten(2, (2, 3)).sum((3, 5))
    assert torch.allclose(sums, torch.ones(1, 2, 2, 3))


def test_lines_are_put_together():
    layer = AxialAttention(4, 2)
    with record_attention(layer) as maps:
        layer(torch.randn(2, 12, 4), (3, 4))
    along_row, along_column = line_map(maps["row"], 0, 2), line_map(maps["column"], 1, 2)
    assert along_row.shape == along_column.shape == (2, 2, 3, 4)
    for image in range(2):
        for y in range(3):
            for x in range(4):
                of_row = maps["row"][image * 3 + y, :, :, x].mean(1)
                of_column = maps["column"][image * 4 + x, :, :, y].mean(1)
                assert torch.allclose(along_row[image, :, y, x], of_row)
                assert torch.allclose(along_column[image, :, y, x], of_column)
    assert torch.allclose(along_row.sum(3), torch.ones(2, 2, 3))
    assert torch.allclose(along_column.sum(2), torch.ones(2, 2, 4))


def test_points_are_counted_where_they_are():
    points = torch.tensor([[0.1, 0.1, 0.5], [0.9, 0.6, 0.25], [0.95, 0.7, 0.15], [1.2, 0.5, 0.1]])
    expected = torch.tensor([[0.5, 0, 0], [0, 0, 0.4]])
    found = point_map(points.view(1, 1, 1, 2, 2, 3), (2, 3))
    torch.testing.assert_close(found[0, 0], expected)
    twice = point_map(points.view(1, 1, 1, 2, 2, 3).expand(-1, -1, 3, -1, -1, -1), (2, 3))
    torch.testing.assert_close(twice, found)


@pytest.mark.parametrize("point", [None, (0.1, 0.9)])
def test_points_of_a_map_are_those_of_the_pixel_asked_for(point):
    network = redraw(DeformableSelfAttention2d(8, 2), 0)
    x = torch.randn(1, 8, 6, 9)
    _, layers = record_layers(network, lambda: network(x), x, None, point)
    (layer,) = layers.values()
    with record_attention(network) as points:
        network(x)
    row, column = (3, 4) if point is None else (5, 0)
    pixel = points["attention"][:, :, row * 9 + column][:, :, None]
    torch.testing.assert_close(layer.maps, point_map(pixel, (6, 9)))
    assert layer.can_be_drawn
