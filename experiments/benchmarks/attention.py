"""How fast and how small in memory mechanisms and layers are, against naive code and the peers.

    python experiments/benchmarks/attention.py                  # one thread of a CPU, 2 minutes
    python experiments/benchmarks/attention.py --device cuda
    python experiments/benchmarks/attention.py --only "64 x 64"

Every step is a forward and a backward pass, in float32 on a CPU and under bf16 autocast on a GPU.
See `frame` for the options and for what is measured. The rows of 64 x 64 positions stand against
attention as it is usually written, with two targets: 1.5 times its speed, a fifth of its memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from frame import Row, Side, Step, main
from torch import Tensor, nn

from attention_vision.attention import (
    DeformableAttention,
    MultiHeadAttention,
    SelfAttention2d,
    WindowAttention,
    attend,
    attention_backend,
)

NAIVE = "written out"  # the peer of rows that have targets
FASTER = {NAIVE: 1.5}


def training_step(forward: Callable, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Step:
    """Forward, and gradients of the weights and of all inputs that ask for them."""
    wanted = [*weights, *(tensor for tensor in inputs if tensor.requires_grad)]
    kind = inputs[0].device.type

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            output = forward(*inputs)
        torch.autograd.grad(output.float().square().mean(), wanted)

    return step


def layer(module: nn.Module, forward: Callable, x: Tensor) -> Step:
    """A layer inside a network: the gradient goes on to its input."""
    module.to(x.device).train()
    return training_step(forward, [x], list(module.parameters()))


def attend_rows(device: str, smoke: bool) -> Iterator[Row]:
    """The heads of ViT-B over 196, 576 and 1,024 patches and a class token."""
    batch = 64 if device == "cuda" else 1

    def eager(*inputs: Tensor) -> Tensor:
        with attention_backend("eager"):
            return attend(*inputs)

    for tokens in (17,) if smoke else (197, 577, 1025):
        inputs = leaves(3, (batch, 12, tokens, 64), device)
        sides = [
            Side("ours", partial(training_step, attend, inputs, [])),
            Side("attend unfused", partial(training_step, eager, inputs, [])),
        ]
        yield Row(f"attend, {tokens} tokens", sides, images=batch)


def leaves(count: int, shape: Sequence[int], device: str) -> list[Tensor]:
    return [torch.randn(*shape, device=device).requires_grad_() for _ in range(count)]


def naive_rows(device: str, smoke: bool) -> Iterator[Row]:
    """Maps of 64 x 64: one head of a transformer, and SAGAN's layer in both of its forms."""
    batch = 16 if device == "cuda" else 1
    side, width = (8, 8) if smoke else (64, 64)
    inputs = leaves(3, (batch, 1, side * side, width), device)
    sides = [
        Side("ours", partial(training_step, attend, inputs, [])),
        Side(NAIVE, partial(training_step, naive_attention, inputs, [])),
    ]
    yield Row("attend, 64 x 64", sides, images=batch, targets=FASTER)
    (x,) = leaves(1, (batch, width, side, side), device)
    for form in ("released", "plain"):
        sagan = SelfAttention2d(width, form=form)
        sides = [
            Side("ours", partial(layer, sagan, sagan, x)),
            Side(NAIVE, partial(layer, sagan, partial(naive_self_attention, sagan), x)),
        ]
        yield Row(f"SelfAttention2d {form}, 64 x 64", sides, images=batch, targets=FASTER)


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.matmul(query, key.transpose(-2, -1)) / query.shape[-1] ** 0.5
    return torch.matmul(torch.softmax(weights, -1), value)


def naive_self_attention(layer: SelfAttention2d, x: Tensor) -> Tensor:
    """SAGAN's layer as it is usually written, as released or as articles have it."""
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    if layer.gamma is not None:
        key, value = (nn.functional.max_pool2d(m, 2) for m in (key, value))
    weights = torch.bmm(query.flatten(2).mT, key.flatten(2)).softmax(-1)
    y = torch.bmm(value.flatten(2), weights.mT).unflatten(2, x.shape[2:])
    return y if layer.gamma is None else x + layer.gamma * layer.out(y)


def layer_rows(device: str, smoke: bool) -> Iterator[Row]:
    from timm.layers.attention import Attention
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    batch = 64 if device == "cuda" else 2
    width, heads, tokens = (24, 3, 17) if smoke else (768, 12, 197)
    (x,) = leaves(1, (batch, tokens, width), device)
    ours = MultiHeadAttention(width, heads)
    torchs = nn.MultiheadAttention(width, heads, batch_first=True)
    timms = Attention(width, heads, qkv_bias=True)
    sides = [
        Side("ours", partial(layer, ours, ours, x)),
        Side("torch", lambda: layer(torchs, lambda x: torchs(x, x, x, need_weights=False)[0], x)),
        Side("timm", partial(layer, timms, timms, x)),
    ]
    yield Row("MultiHeadAttention, ViT-B", sides, images=batch)

    grid = 14 if smoke else 56
    (windows,) = leaves(1, (batch, grid * grid, 96), device)
    shifted = WindowAttention(96, 3, window=7, shift=3)
    peer = ShiftedWindowAttention(96, [7, 7], [3, 3], 3)
    maps = lambda x: peer(x.unflatten(1, (grid, grid))).flatten(1, 2)  # noqa: E731
    sides = [
        Side("ours", partial(layer, shifted, shifted, windows)),
        Side("torchvision", partial(layer, peer, maps, windows)),
    ]
    yield Row("WindowAttention, Swin-T", sides, images=batch)


def deformable_rows(device: str, smoke: bool) -> Iterator[Row]:
    """An encoder layer's and a decoder layer's attention of Deformable DETR, 4 maps, 8 heads."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    batch = 8 if device == "cuda" else 1
    shapes = [(5, 7), (3, 4)] if smoke else [(50, 67), (25, 34), (13, 17), (7, 9)]
    tokens, width = sum(height * width for height, width in shapes), 32 if smoke else 256
    (source,) = leaves(1, (batch, tokens, width), device)
    ours = DeformableAttention(width, 8, len(shapes)).to(device)
    config = DeformableDetrConfig(d_model=width, num_feature_levels=len(shapes))
    peer = DeformableDetrMultiscaleDeformableAttention(config, 8, 4).to(device)
    for offsets in (ours.offsets, peer.sampling_offsets):
        nn.init.normal_(offsets.weight, std=0.1)
    sizes = torch.tensor(shapes, device=device)
    for name, queries in (("decoder", 5 if smoke else 300), ("encoder", tokens)):
        reference = torch.rand(batch, queries, len(shapes), 2, device=device)
        (query,) = leaves(1, (batch, queries, width), device)

        def with_rows(query: Tensor, source: Tensor, reference: Tensor = reference) -> Tensor:
            torch.use_deterministic_algorithms(True, warn_only=True)
            y = ours(query, reference, source, shapes)
            torch.use_deterministic_algorithms(False)
            return y

        def plain(query: Tensor, source: Tensor, reference: Tensor = reference) -> Tensor:
            return ours(query, reference, source, shapes)

        def hugging_face(query: Tensor, source: Tensor, reference: Tensor = reference) -> Tensor:
            return peer(
                query, None, source, reference_points=reference, spatial_shapes=sizes,
                spatial_shapes_list=shapes,
            )[0]  # fmt: skip

        weights = {"ours": ours, "deterministic": ours, "Hugging Face": peer}
        forwards = {"ours": plain, "deterministic": with_rows, "Hugging Face": hugging_face}
        if device == "cpu":  # deterministic as it is
            del forwards["deterministic"]
        sides = [
            Side(one, partial(training_step, call, [query, source], [*weights[one].parameters()]))
            for one, call in forwards.items()
        ]
        yield Row(f"DeformableAttention, {name}, {queries} queries", sides, images=batch)


def rows(device: str, smoke: bool) -> Iterator[Row]:
    for some in (naive_rows, attend_rows, layer_rows, deformable_rows):
        yield from some(device, smoke)


if __name__ == "__main__":
    main(rows)
