"""How fast and how small in memory mechanisms and backbones are, as ratios to their peers.

    python experiments/benchmarks/attention.py                     # CPU, under 3 minutes on 2 cores
    python experiments/benchmarks/attention.py --device cuda --output h100.json
    python experiments/benchmarks/attention.py --only "64 x 64" --threads 1   # where cores are busy

Every step is a forward and a backward pass, in float32 on a CPU and under bf16 autocast on a GPU.
The two sides of a row take turns, so that whatever else slows the machine down slows both; the
ratio is the median over turns, with its quartiles. Below 1 the left side is the faster one.

Memory is what a step adds at its worst moment: activations, gradients, kernels' scratch. The rows
of 64 x 64 positions stand against attention as it is usually written, with two targets: a fifth of
its memory, and 1.5 times its speed on a CPU.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import timm
import torch
import torchvision
from timm.layers.attention import Attention
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attention_vision.attention import (
    MultiHeadAttention,
    SelfAttention2d,
    SqueezeExcite,
    WindowAttention,
    attend,
    attention_backend,
)
from attention_vision.backbones import ResNet, ViT
from attention_vision.profiling.cost import growth, hardware

Step = Callable[[], None]
Row = tuple[str, str, Step, Step]  # left, right, and a step of each

TURNS = 7
NAIVE = "written out"  # the right side of rows that have targets
MEMORY_TARGET, TIME_TARGET = 1 / 5, 1 / 1.5
SECONDS = 0.1  # shortest time that a turn of one side takes


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
    return training_step(forward, [x.requires_grad_()], list(module.parameters()))


def network(model: nn.Module, images: Tensor, channels_last: bool = False) -> Step:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(images.device, memory_format=layout).train()
    images = images.to(memory_format=layout)
    return training_step(model, [images], list(model.parameters()))


def attend_rows(device: str) -> Iterator[Row]:
    """The heads of ViT-B over 196, 576 and 1,024 patches and a class token."""
    batch = 64 if device == "cuda" else 1
    for tokens in (197, 577, 1025):
        inputs = [torch.randn(batch, 12, tokens, 64, device=device) for _ in range(3)]
        for tensor in inputs:
            tensor.requires_grad_()

        def eager(*inputs: Tensor) -> Tensor:
            with attention_backend("eager"):
                return attend(*inputs)

        steps = training_step(attend, inputs, []), training_step(eager, inputs, [])
        yield f"attend, fused, N = {tokens}", "attend, eager", *steps


def naive_rows(device: str) -> Iterator[Row]:
    """Maps of 64 x 64: one head of a transformer, and SAGAN's layer in both of its forms."""
    batch = 16 if device == "cuda" else 1
    inputs = [torch.randn(batch, 1, 64 * 64, 64, device=device) for _ in range(3)]
    for tensor in inputs:
        tensor.requires_grad_()
    steps = training_step(attend, inputs, []), training_step(naive_attention, inputs, [])
    yield "attend, 64 x 64", NAIVE, *steps
    x = torch.randn(batch, 64, 64, 64, device=device)
    for form in ("released", "plain"):
        sagan = SelfAttention2d(64, form=form)
        naive = layer(sagan, partial(naive_self_attention, sagan), x)
        yield f"SelfAttention2d {form}, 64 x 64", NAIVE, layer(sagan, sagan, x), naive


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


def layer_rows(device: str) -> Iterator[Row]:
    batch = 64 if device == "cuda" else 2
    tokens = torch.randn(batch, 197, 768, device=device)
    ours = MultiHeadAttention(768, 12)
    peer = nn.MultiheadAttention(768, 12, batch_first=True)
    step = layer(ours, ours, tokens)
    self_attention = layer(peer, lambda x: peer(x, x, x, need_weights=False)[0], tokens)
    yield "MultiHeadAttention, ViT-B", "torch.nn.MultiheadAttention", step, self_attention
    peer = Attention(768, 12, qkv_bias=True)
    yield "MultiHeadAttention, ViT-B", "timm Attention", step, layer(peer, peer, tokens)

    windows = torch.randn(batch, 56 * 56, 96, device=device)
    ours = WindowAttention(96, 3, window=7, shift=3)
    peer = ShiftedWindowAttention(96, [7, 7], [3, 3], 3)
    step = layer(peer, lambda x: peer(x.unflatten(1, (56, 56))).flatten(1, 2), windows)
    yield "WindowAttention, Swin-T", "torchvision's", layer(ours, ours, windows), step


def backbone_rows(device: str) -> Iterator[Row]:
    create = partial(timm.create_model, pretrained=False)
    batch = 64 if device == "cuda" else 1
    images = torch.randn(batch, 3, 224, 224, device=device)
    small = network(ViT(width=384, heads=6), images)
    yield "ViT-S/16", "timm", small, network(create("vit_small_patch16_224"), images)
    if device == "cuda":
        base = network(ViT(), images)
        yield "ViT-B/16", "timm", base, network(create("vit_base_patch16_224"), images)
        yield "ViT-B/16", "torchvision", base, network(torchvision.models.vit_b_16(), images)
    else:
        peer = partial(torchvision.models.VisionTransformer, 224, 16, 12, 6, 384, 1536)
        yield "ViT-S/16", "torchvision", small, network(peer(), images)

    images = images if device == "cuda" else torch.randn(2, 3, 128, 128)
    plain = network(ResNet(50), images)
    yield "ResNet-50", "torchvision", plain, network(torchvision.models.resnet50(), images)
    yield "ResNet-50", "timm", plain, network(create("resnet50"), images)
    squeeze = network(ResNet(50, attention=partial(SqueezeExcite, reduction=16)), images)
    yield "SE-ResNet-50", "timm", squeeze, network(create("seresnet50"), images)
    yield "ResNet-50, channels_last", "contiguous", network(ResNet(50), images, True), plain


def seconds(step: Step, repeats: int, device: str) -> float:
    """Of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def compare(left: Step, right: Step, device: str) -> dict[str, float]:
    """Take turns, the first one changing; medians of each side's time and of the ratio; memory."""
    memory = [growth(step, torch.device(device)) for step in (left, right)]  # warms up, too
    repeats = max(1, round(SECONDS / seconds(right, 2, device)))
    times = []
    for turn in range(TURNS):
        order = (turn % 2, 1 - turn % 2)
        pair = [(side, seconds((left, right)[side], repeats, device)) for side in order]
        times.append([spent for _, spent in sorted(pair)])
    ratios = [ours / peer for ours, peer in times]
    low, _, high = quantiles(ratios, n=4)
    return {
        "left_ms": 1e3 * median(ours for ours, _ in times),
        "right_ms": 1e3 * median(peer for _, peer in times),
        "ratio": median(ratios),
        "low": low,
        "high": high,
        "left_mib": memory[0] / 2**20,
        "right_mib": memory[1] / 2**20,
        "memory_ratio": memory[0] / memory[1],
    }


def verdict(row: dict) -> str:
    """How a row of 64 x 64 positions stands to the targets."""
    small, fast = row["memory_ratio"] <= MEMORY_TARGET, row["ratio"] <= TIME_TARGET
    return (
        f"{row['left']}: memory 1/{1 / row['memory_ratio']:.0f} of the naive code's (target 1/5,"
        f" {'met' if small else 'missed'}), {1 / row['ratio']:.2f} times as fast, quartiles"
        f" {1 / row['high']:.2f}-{1 / row['low']:.2f} (target 1.5, {'met' if fast else 'missed'})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios to peers, of training steps.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose A holds this text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a JSON file as well")
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report = {
        "hardware": hardware(torch.device(options.device)),
        "precision": "bf16 autocast" if options.device == "cuda" else "float32",
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")
        },
        "rows": [],
    }
    print(f"{report['hardware']}; {report['precision']}; {report['versions']}\n")
    columns = f"{'A ms':>9}{'B ms':>9}{'A / B':>8}   quartiles{'A MiB':>10}{'B MiB':>9}{'A / B':>8}"
    print(f"{'A':<34}{'B':<30}{columns}")
    for rows in (naive_rows, attend_rows, layer_rows, backbone_rows):
        for left, right, *steps in rows(options.device):
            if options.only not in left:
                continue
            row = compare(*steps, options.device)
            report["rows"].append({"left": left, "right": right} | row)
            times = f"{row['left_ms']:9.2f}{row['right_ms']:9.2f}{row['ratio']:8.2f}"
            quartiles = f"   {row['low']:.2f}-{row['high']:.2f}"
            memory = f"{row['left_mib']:10.1f}{row['right_mib']:9.1f}{row['memory_ratio']:8.2f}"
            print(f"{left:<34}{right:<30}{times}{quartiles}{memory}", flush=True)
    print()
    for row in report["rows"]:
        if row["right"] == NAIVE:
            print(verdict(row))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
