"""record_attention: exact maps of the named layers, and nothing changed elsewhere."""

import pytest
import torch

from attention_vision.attention import (
    CBAM,
    MultiHeadAttention,
    attention_backend,
    record_attention,
)
from attention_vision.backbones import ResNet, ViT

N = 17  # tokens: 4 x 4 patches and the class token


@pytest.fixture
def vit():
    return ViT(32, 8, 48, depth=12, heads=3, num_classes=10).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def map_bytes(model, images, layers):
    """Bytes of (N, N) maps that autograd keeps, and of those that the recorder yields."""
    kept = {}

    def pack(tensor):
        if tensor.shape[-2:] == (N, N):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        record_attention(model, layers, gradients=True) as maps,
    ):
        y = model(images)
    assert y.requires_grad
    return sum(kept.values()), sum(weights.nbytes for weights in maps.values())


def test_nothing_named_is_bit_equal(vit, images):
    expected = vit(images)
    with record_attention(vit, layers=[]) as maps:
        assert torch.equal(vit(images), expected)
    assert maps == {}


@pytest.mark.parametrize("layers", [None, ["blocks.0.attention"], ["blocks.3", "blocks.11"]])
def test_output_stays_and_rows_sum_to_1(vit, images, layers):
    expected = vit(images)
    with record_attention(vit, layers) as maps:
        y = vit(images)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    names = layers or [f"blocks.{i}" for i in range(12)]
    assert sorted(maps) == sorted(f"{name.removesuffix('.attention')}.attention" for name in names)
    for weights in maps.values():
        assert weights.shape == (2, 3, N, N)
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, N))


def test_the_maps_are_those_of_the_eager_path(vit, images):
    tokens = {}
    layer = vit.blocks[5].attention
    handle = layer.register_forward_hook(lambda _, inputs, y: tokens.update(x=inputs[0], y=y))
    with record_attention(vit, ["blocks.5"]) as maps:
        vit(images)
    handle.remove()
    weights = maps["blocks.5.attention"]
    q, k, v = layer.qkv(tokens["x"]).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(weights, (q @ k.mT / 4).softmax(-1), rtol=1e-4, atol=1e-6)
    y = layer.out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(y, tokens["y"], rtol=1e-4, atol=1e-5)


def test_gradients_flow_on_request(vit, images):
    with record_attention(vit, ["blocks.11"], gradients=True) as maps:
        vit(images)
    (weights,) = maps.values()
    entropy = -(weights * weights.clamp_min(1e-9).log()).sum(-1).mean()
    entropy.backward()
    assert vit.blocks[11].attention.qkv.weight.grad.abs().sum() > 0
    assert vit.patches.weight.grad.abs().sum() > 0


def test_one_layer_costs_one_layers_maps(vit, images):
    one = 2 * 3 * N * N * 4
    kept, recorded = map_bytes(vit, images, ["blocks.4"])
    kept_all, recorded_all = map_bytes(vit, images, None)
    assert recorded == one
    assert recorded_all == 12 * one
    assert map_bytes(vit, images, []) == (0, 0)  # the fused path keeps none
    assert one <= kept <= 2 * one  # softmax keeps its result, the product with v perhaps a copy
    assert kept_all == 12 * kept


def test_gates_of_a_resnet_are_recorded(images):
    resnet = ResNet(18, CBAM, 10, stem="cifar").eval()
    with record_attention(resnet, ["stages.3"]) as maps:
        resnet(images)
    assert sorted(maps) == sorted(
        f"stages.3.{block}.attention.{gate}" for block in (0, 1) for gate in ("channel", "spatial")
    )


@pytest.mark.parametrize("kinds", [("logits", "weights"), ("scores", "rows")])  # earlier names
def test_logits_are_what_the_softmax_is_taken_of(kinds):
    layer = MultiHeadAttention(8, 2)
    x, bias = torch.randn(3, 5, 8), torch.randn(2, 5, 5)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with (
        record_attention(layer, kinds=kinds[:1]) as scores,
        record_attention(layer, kinds=kinds[1:]) as rows,  # one inside the other: both record
    ):
        layer(x, mask=mask, bias=bias)
    assert scores[""].shape == (3, 2, 5, 5)
    assert (scores[""][..., ~mask] == 0).all()
    hidden = scores[""].masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(hidden.softmax(-1), rows[""])


def test_recording_gates_leaves_softmax_attention_fused(vit, images):
    expected = vit(images)
    with record_attention(vit, kinds=["gates"]) as maps:
        assert torch.equal(vit(images), expected)
    assert maps == {}


def test_fp8_maps_are_the_rounded_ones(vit, images):
    with attention_backend("fp8"), record_attention(vit, ["blocks.0"]) as maps:
        vit(images)
    weights = maps["blocks.0.attention"]
    scaled = 448 * weights / weights.amax(-1, keepdim=True)
    torch.testing.assert_close(scaled, scaled.to(torch.float8_e4m3fn).float(), rtol=1e-4, atol=1e-4)


def test_a_compiled_model_is_recorded_too(vit, images):
    expected = vit(images)
    compiled = torch.compile(vit, backend="aot_eager")
    compiled(images)
    with record_attention(compiled, ["blocks.2"]) as maps:
        y = compiled(images)
    assert list(maps) == ["blocks.2.attention"]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_an_error_inside_leaves_nothing_behind(vit, images):
    with pytest.raises(ValueError, match="patches"), record_attention(vit):
        vit(torch.randn(1, 3, 30, 30))
    with record_attention(vit, ["blocks.1"]) as maps:
        vit(images)
    assert list(maps) == ["blocks.1.attention"]
    vit(images[:1])
    assert len(maps["blocks.1.attention"]) == 2  # the block is over: nobody listens any more


def test_an_unknown_layer_is_named_with_the_nearest(vit):
    with (
        pytest.raises(ValueError, match=r"blocks\.12\.attention.*blocks\.1\d?\.attention"),
        record_attention(vit, ["blocks.12.attention"]),
    ):
        pass
