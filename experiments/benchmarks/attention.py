"""How fast the mechanisms and backbones are, as ratios to their peers measured in the same minute.

    python experiments/benchmarks/attention.py                     # CPU, under 3 minutes on 2 cores
    python experiments/benchmarks/attention.py --device cuda --output h100.json
    python experiments/benchmarks/attention.py --only ResNet

Every step is a forward and a backward pass, in float32 on a CPU and under bf16 autocast on a GPU.
The two sides of a row take turns, so that whatever else slows the machine down slows both; the
ratio is the median over turns, with its quartiles. Below 1 the left side is the faster one.
"""

import argparse
import importlib.metadata
import json
import platform
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

Step = Callable[[], None]
Row = tuple[str, str, Step, Step]  # left, right, and a step of each

TURNS = 7
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

    x = torch.randn(batch, 64, 64, 64, device=device)
    sagan = SelfAttention2d(64)
    naive = layer(sagan, partial(naive_self_attention, sagan), x)
    yield "SelfAttention2d, 64 x 64", "its bmm and softmax", layer(sagan, sagan, x), naive

    windows = torch.randn(batch, 56 * 56, 96, device=device)
    ours = WindowAttention(96, 3, window=7, shift=3)
    peer = ShiftedWindowAttention(96, [7, 7], [3, 3], 3)
    step = layer(peer, lambda x: peer(x.unflatten(1, (56, 56))).flatten(1, 2), windows)
    yield "WindowAttention, Swin-T", "torchvision's", layer(ours, ours, windows), step


def naive_self_attention(layer: SelfAttention2d, x: Tensor) -> Tensor:
    """SAGAN's layer as it is usually written."""
    key, value = (nn.functional.max_pool2d(m, 2) for m in (layer.key(x), layer.value(x)))
    weights = torch.bmm(layer.query(x).flatten(2).mT, key.flatten(2)).softmax(-1)
    y = torch.bmm(value.flatten(2), weights.mT).unflatten(2, x.shape[2:])
    return x + layer.gamma * layer.out(y)


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
    """Take turns, the first one changing; medians of each side's time and of their ratio."""
    for step in (left, right):
        seconds(step, 2, device)  # warm: caches, kernel choice, allocator
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
    }


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios to peers, of training steps.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose A holds this text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a JSON file as well")
    options = parser.parse_args()

    torch.manual_seed(0)
    report = {
        "hardware": hardware(options.device),
        "precision": "bf16 autocast" if options.device == "cuda" else "float32",
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")
        },
        "rows": [],
    }
    print(f"{report['hardware']}; {report['precision']}; {report['versions']}\n")
    print(f"{'A':<28}{'B':<30}{'A ms':>9}{'B ms':>9}{'A / B':>8}   quartiles")
    for rows in (attend_rows, layer_rows, backbone_rows):
        for left, right, *steps in rows(options.device):
            if options.only not in left:
                continue
            row = compare(*steps, options.device)
            report["rows"].append({"left": left, "right": right} | row)
            times = f"{row['left_ms']:9.2f}{row['right_ms']:9.2f}{row['ratio']:8.2f}"
            print(f"{left:<28}{right:<30}{times}   {row['low']:.2f}-{row['high']:.2f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
