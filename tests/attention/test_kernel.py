"""attend, its backends, and the error of fp8 weights."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from redraw import redraw

from attention_vision.attention import (
    AttentionPool,
    AxialAttention2d,
    CrossAttention2d,
    MultiHeadAttention,
    SelfAttention2d,
    attend,
    attention_backend,
)
from attention_vision.attention.kernel import quantize_rows

BIASED_MASKED = list(itertools.product([False, True], repeat=2))


def both(query, key, value, **options):
    results = []
    for backend in ("fused", "eager"):
        with attention_backend(backend):
            y = attend(query, key, value, **options)
        inputs = [query, key, value] + [t for t in options.values() if torch.is_tensor(t)]
        inputs = [tensor for tensor in inputs if tensor.requires_grad]
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    return results


@pytest.mark.parametrize("widths", [(8, 8), (4, 16), (16, 4)])
@pytest.mark.parametrize(("biased", "masked"), BIASED_MASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_equals_eager(widths, biased, masked, dtype):
    d, e = widths
    shapes = ((2, 3, 7, d), (2, 3, 9, d), (2, 3, 9, e))
    tensors = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
    options = {}
    if biased:
        options["bias"] = torch.randn(3, 7, 9, dtype=dtype, requires_grad=True)
    if masked:
        options["mask"] = torch.rand(2, 1, 7, 9) > 0.5
        options["mask"][1, 0, 2] = False  # a query that may attend to nothing
    fused, eager = both(*tensors, **options)
    for one, other in zip(fused, eager, strict=True):
        assert one.isfinite().all()
        assert (one - other).norm() <= 1e-5 * other.norm()
    if masked:
        assert (fused[0][1, :, 2] == 0).all()


def test_scale_and_dropout():
    query, key, value = (torch.randn(2, 5, 4) for _ in range(3))
    expected = (query @ key.mT).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value, scale=1.0), expected)
    for backend in ("fused", "eager"):
        with attention_backend(backend):
            mean = (
                sum(attend(query, key, value, scale=1.0, dropout=0.3) for _ in range(4000)) / 4000
            )
        torch.testing.assert_close(mean, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: SelfAttention2d(16), [(16, 8, 8)]),
        (lambda: SelfAttention2d(16, form="plain"), [(16, 8, 8)]),
        (lambda: CrossAttention2d(16, 8), [(16, 8, 8), (8, 4, 4)]),
        (lambda: AxialAttention2d(16), [(16, 8, 8)]),
        (lambda: MultiHeadAttention(16, 4), [(64, 16)]),
        (lambda: AttentionPool(16), [(64, 16)]),
    ],
    ids=["sagan", "plain", "cross", "axial", "multi-head", "pool"],
)
def test_the_fused_path_never_stores_the_weights(make, shapes):
    module = make()
    inputs = [torch.randn(1, *shape, requires_grad=True) for shape in shapes]
    with torch.profiler.profile() as profile:
        module(*inputs).sum().backward()
    kernels = [event.key for event in profile.key_averages() if "dot_product" in event.key]
    assert kernels
    assert not any(key.endswith("attention_math") for key in kernels)


def test_a_bias_per_head_stays_on_the_fused_path():
    """As a relative position bias comes: three axes, the heads last in memory."""
    query = torch.randn(2, 4, 9, 8)
    bias = torch.randn(9, 9, 4).permute(2, 0, 1)
    with torch.profiler.profile() as profile:
        fused = attend(query, query, query, bias=bias)
    kernels = [event.key for event in profile.key_averages() if "dot_product" in event.key]
    assert not any("math" in kernel for kernel in kernels)
    assert any("flash" in kernel or "efficient" in kernel for kernel in kernels)
    with attention_backend("eager"):
        torch.testing.assert_close(fused, attend(query, query, query, bias=bias))


def test_backends_nest_and_are_restored_after_an_error():
    query = torch.randn(1, 3, 4)

    def fused() -> bool:
        with torch.profiler.profile() as profile:
            attend(query, query, query)
        return any("scaled_dot_product" in event.key for event in profile.key_averages())

    def fails_inside_eager():
        with attention_backend("eager"):
            with attention_backend("fused"):
                assert fused()
            assert not fused()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_inside_eager()
    assert fused()


ROWS = {
    "uniform": lambda keys: torch.zeros(8, keys),
    "flat": lambda keys: torch.randn(8, keys),
    "peaked": lambda keys: 5 * torch.randn(8, keys),
    "one key": lambda keys: 40.0 * F.one_hot(torch.arange(8), keys),
}


@pytest.mark.parametrize("keys", [64, 256, 1024, 4096])
@pytest.mark.parametrize("kind", ROWS)
def test_fp8_moves_a_weight_by_at_most_a_sixteenth(kind, keys):
    weights = ROWS[kind](keys).softmax(-1)
    largest = weights.amax(-1, keepdim=True)
    rounded = quantize_rows(weights)
    torch.testing.assert_close(rounded.sum(-1), torch.ones(8))

    dequantised = rounded * largest / rounded.amax(-1, keepdim=True)  # the maximum is exact
    # Below 2^-6 / 448 of the row's maximum float8_e4m3 is subnormal, in steps of 2^-9 / 448.
    bound = torch.maximum(2**-4 * weights, 2**-10 / 448 * largest)
    assert ((dequantised - weights).abs() <= 1.001 * bound).all()
    # The division by the rounded row's sum can add as much again, and adds nothing where one
    # weight has nearly all of it or all are equal.
    bound = bound if kind in ("uniform", "one key") else 2 * bound
    assert ((rounded - weights).abs() <= 1.001 * bound).all()


def test_a_plain_cast_to_fp8_loses_a_uniform_row():
    weights = torch.full((1, 1024), 1 / 1024)
    assert (
        weights.to(torch.float8_e4m3fn).float().sum() == 0
        or ((weights.to(torch.float8_e4m3fn).float() - weights).abs() > 2**-4 * weights).all()
    )
    torch.testing.assert_close(quantize_rows(weights), weights)


def test_the_worst_row_that_can_be_made_stays_below_an_eighth():
    # Beside the maximum, 448, all mass rounds down (1.06 to 1) and one weight up (1.19 to 1.25).
    weights = torch.full((1, 2048), 1.06 * 2**5)
    weights[0, 0], weights[0, 1] = 448.0, 1.19 * 2**5
    weights = weights / weights.sum()
    error = ((quantize_rows(weights) - weights) / weights).abs().max()
    assert 0.11 < error < 1 / 8


def test_gradients_pass_straight_through_the_rounding():
    scores = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantize_rows(scores.softmax(-1))[:, 0].sum(), scores)
    (exact,) = torch.autograd.grad(scores.softmax(-1)[:, 0].sum(), scores)
    assert gradient.abs().sum() > 0
    assert (gradient - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MultiHeadAttention(16, 4), (12, 16)),
        (lambda: SelfAttention2d(16), (16, 4, 4)),
        (lambda: AxialAttention2d(16), (16, 4, 4)),
        (lambda: AttentionPool(16), (12, 16)),
    ],
    ids=["multi-head", "sagan", "axial", "pool"],
)
def test_what_trains_in_eager_attention_trains_in_fp8(make, shape):
    """Every parameter, in nearly the same direction; queries too, which rounding stands before."""
    module, x = redraw(make(), 0), torch.randn(2, *shape)
    gradients = []
    for backend in ("eager", "fp8"):
        with attention_backend(backend):
            loss = module(x).square().sum()
        gradients.append(torch.autograd.grad(loss, list(module.parameters())))
    for (name, _), exact, rounded in zip(module.named_parameters(), *gradients, strict=True):
        assert 0 < (rounded - exact).norm() <= 0.1 * exact.norm(), name
