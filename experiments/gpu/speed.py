"""Training steps on one GPU: ours and the peers' in turns, with model FLOPs and busy time.

A step is forward, loss, backward and a fused optimiser, under bf16 autocast, on random images that
lie on the GPU; convolutional networks are in channels_last on both sides. Two batches are used in
turn. Sides take turns and are compared by the frame of experiments/benchmarks. FLOPs are
2 x 3 x the multiply-adds of a forward pass, see `attention_vision.profiling.cost.macs`, counted for
ours: the peer of a row is the same network.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from statistics import median

import torch
from frame import (
    Conditions,
    Row,
    Side,
    Step,
    fresh,
    lines_of,
    matrix_rate,
    measure,
    seconds_of,
    training_flops,
)
from run import Part
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_vision.attention import SqueezeExcite
from attention_vision.backbones import CCT, ResNet, Swin, ViT


def conditions_of(part: Part) -> Conditions:
    """Five turns of at least 0.6 s of each side; one step in a smoke test."""
    rate = None
    with suppress(OSError, KeyError, ValueError):
        rate = json.loads((part.out / "ceilings.json").read_text())["matrix_rate"]
    turns, seconds = (1, 0.0) if part.smoke else (5, 0.6)
    return Conditions(part.device, "wall", turns, seconds, rate)


def compare(part: Part, row: Row, **facts: object) -> None:
    """Measure a row, and save it."""
    measured = measure(row, conditions_of(part)) | facts
    rows = [*part.content.get("rows", []), measured]
    part.save(rows=rows, summary=[line for one in rows for line in lines_of(one)])


def measure_ceilings(part: Part) -> None:
    """A product of 8192 x 8192 matrices in bf16, and a copy, on random numbers."""
    conditions = conditions_of(part)
    rate = matrix_rate(conditions, part.smoke)
    size = 2**20 if part.smoke else 2**31
    source = torch.randn(size, device=part.device)
    target = torch.empty_like(source)
    copies = [seconds_of(lambda: target.copy_(source), 10, conditions) for _ in range(6)]
    bandwidth = 8 * size / median(copies[1:])
    line = f"matrix products {rate / 1e12:.1f} TFLOP/s, copy {bandwidth / 1e12:.2f} TB/s"
    part.save(matrix_rate=rate, copy_bytes_per_second=bandwidth, summary=[line])


# Classification


def image_step(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], device: str, channels_last: bool,
    compiled: str | None,
) -> Step:  # fmt: skip
    """A training step on the two batches in turn; SGD for convolutions, AdamW for tokens."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).train()
    fused = device == "cuda"
    if channels_last:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=fused
        )
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.05, fused=fused)
    forward = network
    if compiled:
        forward = traced(network, device, compiled)
    batches = [(images.to(memory_format=layout), labels) for images, labels in batches]
    count = 0

    def step() -> Tensor:
        nonlocal count
        images, labels = batches[count % len(batches)]
        count += 1
        with torch.autocast(device, torch.bfloat16):
            loss = cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def traced(network: nn.Module, device: str, mode: str) -> nn.Module:
    """Compile a network; on a CPU, in a smoke test, it is traced and runs as it is."""
    if device == "cpu":
        return torch.compile(network, backend="eager")
    return torch.compile(network, mode=None if mode == "default" else mode)


def random_batches(batch: int, side: int, device: str, classes: int = 1000) -> list:
    return [
        (
            torch.randn(batch, 3, side, side, device=device),
            torch.randint(classes, (batch,), device=device),
        )
        for _ in range(2)
    ]


def classification_row(
    part: Part, name: str, ours: Callable[[], nn.Module], peers: dict[str, Callable[[], nn.Module]],
    batch: int, channels_last: bool, side: int = 224, compiled: str | None = None,
    classes: int = 1000,
) -> None:  # fmt: skip
    fresh(part.device)
    torch.backends.cudnn.benchmark = True
    batch, side = (2, 32) if part.smoke else (batch, side)
    batches = random_batches(batch, side, part.device, classes)
    flops = batch / 2 * training_flops(ours().to(part.device), batches[0][0][:2])
    sides = [
        Side(
            who, lambda make=make: image_step(make(), batches, part.device, channels_last, compiled)
        )
        for who, make in {"ours": ours, **peers}.items()
    ]
    layout = "channels_last" if channels_last else "contiguous"
    row = Row(name, sides, batch, flops=flops)
    compare(part, row, image=side, compiled=compiled, layout=layout)


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **options)


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None)


TOY_VIT = {"image_size": 32, "width": 24, "depth": 1, "heads": 2}
TOY_TIMM_VIT = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}


def vit(part: Part, compiled: str | None = None) -> None:
    ours, timms = (TOY_VIT, TOY_TIMM_VIT) if part.smoke else ({}, {})
    peer = partial(timm_model, "vit_base_patch16_224", **timms)
    classification_row(
        part, "ViT-B/16", partial(ViT, **ours), {"timm vit_base_patch16_224": peer}, 256, False,
        compiled=compiled,
    )  # fmt: skip


def deit(part: Part, compiled: str | None = None) -> None:
    ours = TOY_VIT if part.smoke else {"width": 384, "heads": 6}
    timms = TOY_TIMM_VIT if part.smoke else {}
    peer = partial(timm_model, "deit_small_patch16_224", **timms)
    classification_row(
        part, "DeiT-S/16", partial(ViT, **ours), {"timm deit_small_patch16_224": peer}, 256, False,
        compiled=compiled,
    )  # fmt: skip


def resnet(part: Part, compiled: str | None = None) -> None:
    depth = 18 if part.smoke else 50
    peers = {"torchvision resnet50": partial(torchvision_model, f"resnet{depth}")}
    ours = partial(ResNet, depth)
    classification_row(part, "ResNet-50", ours, peers, 256, True, compiled=compiled)


def se_resnet(part: Part, compiled: str | None = None) -> None:
    depth = 18 if part.smoke else 50
    ours = partial(ResNet, depth, attention=partial(SqueezeExcite, reduction=16))
    peers = {"timm seresnet50": partial(timm_model, f"seresnet{depth}")}
    classification_row(part, "SE-ResNet-50", ours, peers, 256, True, compiled=compiled)


def swin(part: Part, compiled: str | None = None) -> None:
    """Against torchvision's, and eagerly against timm's as well; no stochastic depth anywhere."""
    import torchvision

    width, depths, heads, window = 96, [2, 2, 6, 2], [3, 6, 12, 24], 7
    side, timms = {}, {}
    if part.smoke:
        width, depths, heads, window = 8, [1, 1], [1, 2], 4
        side = {"image_size": 32}
        timms = {"img_size": 32, "embed_dim": width, "depths": depths, "num_heads": heads}
        timms["window_size"] = window
    ours = partial(Swin, width=width, depths=depths, heads=heads, window=window, **side)
    peers = {
        "torchvision swin_t": partial(
            torchvision.models.SwinTransformer, [4, 4], width, depths, heads, [window, window],
            stochastic_depth_prob=0.0,
        ),
    }  # fmt: skip
    if not compiled:
        name = "swin_tiny_patch4_window7_224"
        peers[f"timm {name}"] = partial(timm_model, name, drop_path_rate=0.0, **timms)
    classification_row(part, "Swin-T", ours, peers, 256, False, compiled=compiled)


def small(part: Part) -> None:
    """Networks for 32 pixels leave a GPU idle: how much compiling and captured graphs give back."""
    cct2 = partial(CCT, width=128, depth=2, heads=2, stochastic_depth=0.0)
    se20 = partial(ResNet, 20, partial(SqueezeExcite, reduction=8), 10, width=16, stem="cifar")
    for name, make, channels_last in (("CCT-2/3x1", cct2, False), ("SE-ResNet-20", se20, True)):
        for compiled in (None,) if part.smoke else (None, "default", "reduce-overhead"):
            label = f"{name}, {compiled or 'eager'}"
            classification_row(
                part, label, make, {}, 128, channels_last, side=32, compiled=compiled, classes=10
            )


# The project's benchmarks


def benchmark(part: Part, name: str, only: str = "") -> None:
    """Measure the rows of experiments/benchmarks/NAME.py whose names begin with a text."""
    torch.backends.cudnn.benchmark = True
    for row in import_module(name).rows(part.device, part.smoke):
        if row.name.startswith(only):
            compare(part, row)


def compiled_detr(part: Part) -> None:
    """Ours alone: the matcher inside of the peer's forward breaks its graph."""
    import detection

    torch.backends.cudnn.benchmark = True
    height, width = (64, 96) if part.smoke else (800, 1066)
    batch = detection.scene(height, width, part.device)
    flops = training_flops(detection.detr(part.smoke).to(part.device), *batch[:2])
    given = (batch, torch.channels_last, part.smoke, not part.smoke)
    side = Side("ours", partial(detection.ours, *given), "compiled")
    compare(part, Row("DETR-R50", [side], images=2, flops=flops))


PARTS = {
    "ceilings": measure_ceilings,
    "vit_b16": vit,
    "resnet50": resnet,
    "se_resnet50": se_resnet,
    "swin_t": swin,
    "deit_s16": deit,
    "detr_r50": partial(benchmark, name="detection", only="DETR"),
    "sagan32": partial(benchmark, name="gan"),
    "overhead": partial(benchmark, name="fit_overhead"),
    "small": small,
    "matching": partial(benchmark, name="matching"),
    "layers": partial(benchmark, name="attention"),
    "vit_b16_compiled": partial(vit, compiled="default"),
    "resnet50_compiled": partial(resnet, compiled="default"),
    "se_resnet50_compiled": partial(se_resnet, compiled="default"),
    "swin_t_compiled": partial(swin, compiled="default"),
    "deit_s16_compiled": partial(deit, compiled="default"),
    "detr_r50_compiled": compiled_detr,
}
