"""Deformable attention equals Hugging Face's and a loop, and repeats itself to the bit."""

from collections.abc import Iterator

import naive
import pytest
import torch
from redraw import redraw
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attention_vision.attention import (
    DeformableAttention,
    DeformableSelfAttention2d,
    deformable,
    record_attention,
)
from attention_vision.attention.deformable import sample_by_grid, sample_by_rows

SHAPES = [(7, 5), (4, 3), (1, 2)]  # odd and not square
TOKENS = sum(height * width for height, width in SHAPES)

both_ways = pytest.mark.parametrize("way", [sample_by_rows, sample_by_grid])


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(
    coordinates: int, queries: int = 6, width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A query, a reference partly outside of the maps, a source, and its padding."""
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 30:37] = True
    tensors = (
        torch.randn(2, queries, width, dtype=dtype),
        torch.rand(2, queries, len(SHAPES), coordinates, dtype=dtype) * 1.2 - 0.1,
        torch.randn(2, TOKENS, width, dtype=dtype),
    )
    return *(one.requires_grad_() for one in tensors), padding


@pytest.mark.parametrize(("coordinates", "seed"), [(2, 1), (4, 2)])
@both_ways
def test_output_and_gradients_equal_hugging_faces(seed, coordinates, way, monkeypatch):
    monkeypatch.setattr(deformable, "sample", way)
    transformers = pytest.importorskip("transformers")
    from transformers.models.deformable_detr import modeling_deformable_detr as peers

    config = transformers.DeformableDetrConfig(d_model=32, num_feature_levels=len(SHAPES))
    peer = redraw(peers.DeformableDetrMultiscaleDeformableAttention(config, 4, 3), seed)
    ours = DeformableAttention(32, 4, len(SHAPES), 3)
    names = {
        "offsets": "sampling_offsets", "weights": "attention_weights",
        "value": "value_proj", "out": "output_proj",
    }  # fmt: skip
    state = peer.state_dict()
    ours.load_state_dict(
        {
            f"{a}.{kind}": state[f"{b}.{kind}"]
            for a, b in names.items()
            for kind in ("weight", "bias")
        }
    )
    query, reference, source, padding = inputs(coordinates, width=32)
    sizes = torch.tensor(SHAPES)
    expected, weights = peer(
        query, ~padding, source, reference_points=reference, spatial_shapes=sizes,
        spatial_shapes_list=SHAPES,
    )  # fmt: skip
    with record_attention(ours) as points:
        y = ours(query, reference, source, SHAPES, padding)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(points[""][..., 2], weights.transpose(1, 2), rtol=0, atol=1e-6)
    of = (query, reference, source)
    ours_of = torch.autograd.grad(y.square().sum(), [*of, *ours.parameters()])
    theirs_of = torch.autograd.grad(
        expected.square().sum(), [*of, *(peer.get_parameter(names[key.split(".")[0]] + "." +
        key.split(".")[1]) for key, _ in ours.named_parameters())],
    )  # fmt: skip
    for gradient, other in zip(ours_of, theirs_of, strict=True):
        assert (gradient - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("coordinates", [2, 4])
@both_ways
def test_a_loop_over_pixels_in_double_precision(coordinates, way, monkeypatch):
    monkeypatch.setattr(deformable, "sample", way)
    layer = redraw(DeformableAttention(8, 2, len(SHAPES), 2), 3).double()
    query, reference, source, _ = inputs(coordinates, 3, 8, torch.float64)
    y = layer(query, reference, source, SHAPES)
    with torch.no_grad():
        expected = naive.deformable(SHAPES)(layer, query, reference, source)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)


@both_ways
def test_gradients_of_both_ways_are_the_slopes(way):
    value = torch.randn(2, 14, 2, 2, dtype=torch.float64, requires_grad=True)
    places = torch.rand(2, 2, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    shapes = [(3, 4), (2, 1)]
    assert torch.autograd.gradcheck(
        lambda *x: way(x[0], shapes, x[1], x[2]), (value, places.requires_grad_(), weights)
    )


def test_padding_reads_as_zeros():
    layer = redraw(DeformableAttention(16, 4, len(SHAPES)), 0)
    query, reference, source, padding = inputs(2)
    y = layer(query, reference, source, SHAPES, padding)
    noise = torch.where(padding[..., None], torch.randn_like(source), source)
    assert torch.equal(layer(query, reference, noise, SHAPES, padding), y)
    assert not torch.equal(layer(query, reference, noise, SHAPES), y)


@both_ways
def test_two_runs_are_bit_equal_with_deterministic_algorithms(deterministic, monkeypatch, way):
    monkeypatch.setattr(deformable, "sample", way)
    layer = redraw(DeformableAttention(32, 4, len(SHAPES)), 0)
    query, reference, source, padding = inputs(4, 200, 32)
    runs = []
    for _ in range(2):
        y = layer(query, reference, source, SHAPES, padding)
        runs.append([y, *torch.autograd.grad(y.sum(), [*layer.parameters(), query, source])])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_a_gpu_that_has_to_be_deterministic_gathers_rows(deterministic, monkeypatch):
    monkeypatch.delattr(deformable, "sample_by_grid")  # its gradient adds in no fixed order there
    with FakeTensorMode():
        value = torch.empty(1, 12, 1, 4, device="cuda")
        places = torch.empty(1, 3, 1, 1, 1, 2, device="cuda")
        y = deformable.sample(value, [(3, 4)], places, places[..., 0])
    assert y.shape == (1, 3, 4)
    assert y.device.type == "cuda"


def test_points_far_away_and_infinite_read_nothing():
    value, weights = torch.randn(1, 12, 1, 4), torch.ones(1, 3, 1, 1, 1)
    places = torch.tensor([1e30, -1e30, 3.0]).view(1, 3, 1, 1, 1, 1).expand(-1, -1, -1, -1, -1, 2)
    for way in (sample_by_rows, sample_by_grid):
        assert (way(value, [(3, 4)], places, weights) == 0).all()


def test_heads_start_in_different_directions():
    layer = DeformableAttention(16, 4, 2, 3)
    query, reference = torch.randn(1, 1, 16), torch.full((1, 1, 2, 2), 0.5)
    with record_attention(layer) as points:
        layer(query, reference, torch.randn(1, 90, 16), [(9, 9), (3, 3)])
    offsets = (points[""][0, :, 0, 0, :, :2] - 0.5) * 9  # (h, P, 2), pixels of the first map
    ahead = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = ahead[:, None] * torch.tensor([1.0, 2, 3])[:, None]
    torch.testing.assert_close(offsets, expected, rtol=0, atol=1e-5)
    assert (points[""][..., 2] == 1 / 6).all()


def test_points_are_recorded_and_nothing_else_changes():
    layer = redraw(DeformableSelfAttention2d(8, 2), 0)
    x = torch.randn(2, 8, 5, 4)
    y = layer(x)
    with record_attention(layer) as points:
        assert torch.equal(layer(x), y)
    assert points["attention"].shape == (2, 2, 20, 1, 4, 3)
    torch.testing.assert_close(points["attention"][..., 2].sum((3, 4)), torch.ones(2, 2, 20))
    with record_attention(layer, kinds=["weights", "gates"]) as others:
        layer(x)
    assert others == {}
