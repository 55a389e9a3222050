"""One contract for every mechanism: what it maps, that it trains, and what it equals."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import naive
import pytest
import torch
from redraw import redraw
from torch import nn

from attention_vision.attention import (
    CBAM,
    AttentionGate,
    AttentionPool,
    AxialAttention,
    AxialAttention2d,
    ChannelGate,
    CrossAttention2d,
    DeformableAttention,
    DeformableSelfAttention2d,
    EfficientChannelAttention,
    FadeIn,
    LocalGlobalAttention,
    LocalGlobalAttention2d,
    MultiHeadAttention,
    SelfAttention2d,
    SequencePool,
    SpatialGate,
    SqueezeExcite,
    WindowAttention,
    attention_backend,
    record_attention,
)

C = 16
GRID = (7, 5)  # odd and not square


class OnGrid(nn.Module):
    """Attention of the tokens of a map that is not square."""

    def __init__(self, attention: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, x):
        return self.attention(x, self.grid)


class OnMaps(nn.Module):
    """Deformable attention around points that the query tells."""

    def __init__(self, *shapes: tuple[int, int]):
        super().__init__()
        self.attention, self.shapes = DeformableAttention(C, 4, len(shapes), 3), shapes

    def forward(self, query, source):
        return self.attention(query, self.around(query), source, self.shapes)

    def around(self, query):
        return query[..., None, :2].sigmoid().expand(-1, -1, len(self.shapes), -1)


@dataclass
class Case:
    """A mechanism, the shapes of its inputs without the batch, and its naive form."""

    make: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    naive: Callable | None = None


MAP, TOKENS, SOURCE = (C, *GRID), (GRID[0] * GRID[1], C), (12, C)


def feature(make, loop, shape=MAP):
    return Case(make, (shape,), shape, loop)


def on_grid(make, loop, grid=GRID):
    tokens = (grid[0] * grid[1], C)
    return Case(
        lambda: OnGrid(make(), grid), (tokens,), tokens, lambda m, x: loop(grid)(m.attention, x)
    )


def windowed(window, shift, grid=GRID):
    return on_grid(lambda: WindowAttention(C, 2, window, shift), naive.window, grid)


CASES = {
    "identity": feature(lambda: nn.Identity(C), lambda m, x: x),
    "squeeze-excite": feature(lambda: SqueezeExcite(C, 4), naive.squeeze_excite),
    "efficient-channel": feature(lambda: EfficientChannelAttention(C), naive.efficient_channel),
    "channel-gate": feature(lambda: ChannelGate(C, 4), naive.channel_gate),
    "spatial-gate": feature(lambda: SpatialGate(C, 3), naive.spatial_gate),
    "cbam": feature(lambda: CBAM(C, 4, 3), naive.cbam),
    "fade-in": feature(lambda: FadeIn(C, partial(CBAM, reduction=4, kernel_size=3)), naive.fade_in),
    "self-attention2d": feature(lambda: SelfAttention2d(C), naive.self_attention2d_released),
    "self-attention2d plain": feature(
        lambda: SelfAttention2d(C, form="plain"), naive.self_attention2d_plain
    ),
    "self-attention2d line": feature(
        lambda: SelfAttention2d(C), naive.self_attention2d_released, (C, 1, 5)
    ),
    "axial": feature(lambda: AxialAttention2d(C, 2), naive.axial),
    "axial line": feature(lambda: AxialAttention2d(C, 2), naive.axial, (C, 5, 1)),
    "local-global": feature(lambda: LocalGlobalAttention2d(C, 2, 3, 2), naive.local_global),
    "local-global one window": feature(
        lambda: LocalGlobalAttention2d(C, 2, 8, 2), naive.local_global
    ),
    "axial tokens": on_grid(lambda: AxialAttention(C, 2), naive.axial_tokens),
    "local-global tokens": on_grid(
        lambda: LocalGlobalAttention(C, 2, 3, 2), naive.local_global_tokens
    ),
    "multi-head": Case(lambda: MultiHeadAttention(C, 4), (TOKENS,), TOKENS, naive.multi_head),
    "multi-head unbiased": Case(
        lambda: MultiHeadAttention(C, 4, bias=False), (TOKENS,), TOKENS, naive.multi_head
    ),
    "multi-head cross": Case(
        lambda: MultiHeadAttention(C, 4), (TOKENS, SOURCE), TOKENS, naive.multi_head_cross
    ),
    "window": windowed(3, 0),
    "window shifted": windowed(3, 1),
    "window shifted, no padding": windowed(4, 2, (8, 8)),
    "window wider than the map": windowed(6, 3),
    "cross-attention2d": Case(
        lambda: CrossAttention2d(C, 6, 2), (MAP, (6, 3, 4)), MAP, naive.cross_attention2d
    ),
    "deformable": Case(
        lambda: OnMaps((5, 3)),
        ((6, C), (15, C)),
        (6, C),
        lambda m, q, s: naive.deformable(m.shapes)(m.attention, q, m.around(q), s),
    ),
    "deformable2d": feature(
        lambda: DeformableSelfAttention2d(C, 2), naive.deformable_self, (C, 4, 3)
    ),
    "pool dot": Case(lambda: AttentionPool(C), (TOKENS,), (C,), naive.attention_pool),
    "pool dot, 3 queries": Case(
        lambda: AttentionPool(C, 3), (TOKENS,), (3, C), naive.attention_pool
    ),
    "pool additive": Case(
        lambda: AttentionPool(C, 2, "additive", 8), (TOKENS,), (2, C), naive.attention_pool
    ),
    "pool sequence": Case(lambda: SequencePool(C), (TOKENS,), (C,), naive.sequence_pool),
    "gate": Case(lambda: AttentionGate(C, 6), (MAP, (6, 3, 2)), MAP, naive.attention_gate),
    "gate 3d": Case(
        lambda: AttentionGate(C, 6, dims=3), ((C, 4, 6, 5), (6, 2, 3, 2)), (C, 4, 6, 5)
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def build(case: Case, seed: int = 0, dtype=torch.float32):
    module = redraw(case.make(), seed).eval().to(dtype)
    torch.manual_seed(seed)
    return module, [
        torch.randn(2, *shape, dtype=dtype, requires_grad=True) for shape in case.inputs
    ]


@every_case
def test_shape_dtype_and_the_naive_loop(case):
    for dtype in (torch.float32, torch.float64):
        module, inputs = build(case, dtype=dtype)
        y = module(*inputs)
        assert y.shape == (2, *case.output)
        assert y.dtype == dtype
    if case.naive:
        with torch.no_grad():
            torch.testing.assert_close(y, case.naive(module, *inputs), rtol=1e-6, atol=1e-6)


@every_case
def test_gradients_are_finite_and_reach_everything(case):
    module, inputs = build(case)
    module(*inputs).square().sum().backward()
    for name, tensor in [*module.named_parameters(), *enumerate(inputs)]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


@every_case
def test_rows_of_the_batch_are_independent(case):
    module, inputs = build(case)
    alone = torch.cat([module(*(x[b : b + 1] for x in inputs)) for b in (0, 1)])
    torch.testing.assert_close(module(*inputs), alone, rtol=1e-5, atol=1e-5)


@every_case
def test_fused_equals_eager_and_fp8_is_near(case):
    module, inputs = build(case)
    results = {}
    for backend in ("fused", "eager", "fp8"):
        with attention_backend(backend):
            y = module(*inputs)
            results[backend] = [y, *torch.autograd.grad(y.square().sum(), inputs)]
    for fused, eager in zip(results["fused"], results["eager"], strict=True):
        assert (fused - eager).norm() <= 1e-5 * eager.norm()
    fp8, eager = results["fp8"][0], results["eager"][0]
    assert (fp8 - eager).norm() <= 2**-4 * eager.norm()


@every_case
def test_bf16_autocast(case):
    module, inputs = build(case)
    expected = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(*inputs)
        y.float().square().mean().backward()
    assert (y.float() - expected).norm() <= 0.05 * expected.norm()
    assert all(x.grad.isfinite().all() for x in inputs)


@every_case
def test_state_dict_round_trip(case):
    module, inputs = build(case)
    other, _ = build(case, seed=1)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    assert torch.equal(other(*inputs), module(*inputs))


@every_case
def test_compiles_without_a_graph_break(case):
    # aot_eager captures and differentiates the whole graph and leaves out only the generated C++,
    # which would take minutes for the whole table.
    module, inputs = build(case)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    y = compiled(*inputs)
    torch.testing.assert_close(y, module(*inputs), rtol=1e-5, atol=1e-5)
    y.sum().backward()


RESIDUAL = ["self-attention2d", "axial", "local-global", "cross-attention2d", "deformable2d"]


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_mechanisms_start_as_the_identity(name):
    case = CASES[name]
    inputs = [torch.randn(2, *shape) for shape in case.inputs]
    module = case.make()
    assert module.gamma == 0
    assert torch.equal(module(*inputs), inputs[0])


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("squeeze-excite", "", (2, C, 1, 1)),
        ("efficient-channel", "", (2, C, 1, 1)),
        ("channel-gate", "", (2, C, 1, 1)),
        ("spatial-gate", "", (2, 1, *GRID)),
        ("cbam", "spatial", (2, 1, *GRID)),
        ("gate", "", (2, 1, *GRID)),
    ],
)
def test_gates_lie_between_0_and_1(name, layer, shape):
    module, inputs = build(CASES[name])
    with record_attention(module) as maps:
        module(*(10 * x for x in inputs))
    assert maps[layer].shape == shape
    assert ((maps[layer] >= 0) & (maps[layer] <= 1)).all()


def test_cbams_gates_start_at_a_half():
    module = CBAM(C)
    with record_attention(module) as maps:
        module(torch.randn(2, *MAP))
    assert torch.equal(maps["spatial"], torch.full_like(maps["spatial"], 0.5))


@pytest.mark.parametrize("name", ["self-attention2d plain", "multi-head"])
def test_permuted_pixels_give_permuted_results_without_positions(name):
    module, (x,) = build(CASES[name])
    axis = 1 if x.ndim == 3 else 2
    flat = x if x.ndim == 3 else x.flatten(2)
    order = torch.randperm(flat.shape[axis])
    y = module(x)
    flat_y = y if y.ndim == 3 else y.flatten(2)
    permuted = flat.index_select(axis, order).view_as(x)
    expected = flat_y.index_select(axis, order).view_as(y)
    torch.testing.assert_close(module(permuted), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 3])
def test_a_window_as_large_as_the_map_is_global_attention(shift):
    module = redraw(WindowAttention(C, 4, window=6, shift=shift), 0)
    with torch.no_grad():
        module.position.table.zero_()
    x = torch.randn(2, 36, C)
    torch.testing.assert_close(module(x), module.attention(x), rtol=1e-5, atol=1e-5)


def test_a_shifted_window_does_not_see_round_the_edge():
    module = redraw(WindowAttention(C, 2, window=4, shift=2), 0)
    x = torch.randn(1, 64, C, requires_grad=True)
    module(x).unflatten(1, (8, 8))[0, 0, 0].sum().backward()
    seen = x.grad[0].abs().sum(-1).view(8, 8) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(seen, expected)


def test_axial_attention_sees_its_row_and_column_only():
    module = redraw(AxialAttention2d(C, 2), 0)
    x = torch.randn(1, *MAP, requires_grad=True)
    module(x)[0, :, 3, 2].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[3], expected[:, 2] = True, True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("kind", [WindowAttention, AxialAttention, LocalGlobalAttention])
def test_tokens_are_a_square_map_unless_the_grid_is_given(kind):
    module = redraw(kind(C, 2), 0)
    tokens = torch.randn(2, 36, C)
    assert torch.equal(module(tokens), module(tokens, (6, 6)))
    assert not torch.equal(module(tokens), module(tokens, (4, 9)))
    for grid in (None, (5, 7)):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: 37 tokens are not a . x . map"):
            module(torch.zeros(1, 37, C), grid)


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_padded_keys_change_nothing(backend):
    query, source = torch.randn(2, 5, C), torch.randn(2, 9, C)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[:, 6:] = True
    multi_head = redraw(MultiHeadAttention(C, 4), 0)
    pools = [redraw(AttentionPool(C, 2, score), 0) for score in ("dot", "additive")]
    with attention_backend(backend):
        masked = multi_head(query, source, key_padding_mask=padding)
        torch.testing.assert_close(masked, multi_head(query, source[:, :6]), rtol=1e-5, atol=1e-6)
        for pool in pools:
            masked = pool(source, key_padding_mask=padding)
            torch.testing.assert_close(masked, pool(source[:, :6]), rtol=1e-5, atol=1e-6)
        nothing = multi_head(query, source, key_padding_mask=torch.ones_like(padding))
        torch.testing.assert_close(nothing, multi_head.out.bias.expand_as(nothing))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_equals_torchs(seed, cross):
    peer = redraw(nn.MultiheadAttention(64, 8, batch_first=True), seed)
    ours = MultiHeadAttention(64, 8)
    names = {
        "qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias",
        "out.weight": "out_proj.weight", "out.bias": "out_proj.bias",
    }  # fmt: skip
    ours.load_state_dict({key: peer.state_dict()[name] for key, name in names.items()})
    query = torch.randn(3, 10, 64)
    key, value = (torch.randn(3, 7, 64), torch.randn(3, 7, 64)) if cross else (query, query)
    padding = torch.zeros(key.shape[:2], dtype=torch.bool)
    padding[1, 4:] = True
    expected = peer(query, key, value, key_padding_mask=padding)[0]
    y = ours(query, key, value, key_padding_mask=padding)
    assert (y - expected).abs().max() <= 1e-4 * expected.abs().max()
    for result in (y, expected):
        result.square().sum().backward()
    for name, parameter in ours.named_parameters():
        gradient = peer.get_parameter(names[name]).grad
        assert (parameter.grad - gradient).norm() <= 1e-3 * gradient.norm()
        parameter.data.view(-1)[0] += 1
    assert (ours(query, key, value, key_padding_mask=padding) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_attention_pooling_starts_as_the_mean(score):
    tokens = torch.randn(2, 9, C)
    torch.testing.assert_close(AttentionPool(C, score=score)(tokens), tokens.mean(1))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: MultiHeadAttention(10, 3), "multiple of heads 3"),
        (lambda: CrossAttention2d(10, 4, 3), "multiple of heads 3"),
        (lambda: MultiHeadAttention(10, 0), "heads is 0"),
        (lambda: MultiHeadAttention(10, 5, dropout=2), "dropout is 2"),
        (lambda: SqueezeExcite(C, 0), "reduction is 0"),
        (lambda: CBAM(C, -1), "reduction is -1"),
        (lambda: SpatialGate(C, 4), "kernel_size 4"),
        (lambda: SelfAttention2d(C, form="plane"), "form 'plane'"),
        (lambda: AttentionPool(C, score="add"), "score 'add'"),
        (lambda: AttentionGate(C, C, dims=4), "dims 4"),
        (lambda: WindowAttention(C, 2, 4, 4), "shift 4"),
        (lambda: AxialAttention(C, 3), "multiple of heads 3"),
        (lambda: DeformableAttention(C, 3, 1), "multiple of heads 3"),
        (lambda: DeformableSelfAttention2d(C, points=0), "points is 0"),
        (lambda: FadeIn(C, SelfAttention2d), "never train"),
        (lambda: OnMaps((2, 2))(torch.zeros(1, 2, C), torch.zeros(1, 5, C)), "5 source tokens"),
        (lambda: LocalGlobalAttention(C, 3), "multiple of heads 3"),
        (lambda: LocalGlobalAttention(C, 2, window=0), "window is 0"),
        (lambda: LocalGlobalAttention2d(C, global_grid=0), "global_grid is 0"),
        (lambda: AttentionPool(C, 0)(torch.zeros(1, 2, C)), "queries="),
        (lambda: AttentionPool(C)(torch.zeros(1, 2, C), torch.zeros(1, C)), "queries="),
        (lambda: attention_backend("flash").__enter__(), "flash"),
    ],
)
def test_mistakes_are_named(mistake, words):
    with pytest.raises(ValueError, match=words):
        mistake()
