"""Training steps on one GPU: ours and the peers' in turns, with model FLOPs and busy time.

A step is forward, loss, backward and a fused optimiser, under bf16 autocast, on random images that
lie on the GPU; convolutional networks are in channels_last on both sides. Both sides take turns,
A B A B, so that whatever slows the machine down slows both; times are medians over turns. Two
batches are used in turn. FLOPs are 2 x 3 x the multiply-adds of a forward pass, see
`attention_vision.profiling.cost.macs`, counted for ours: the peer of a row is the same network.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from run import ROOT, Part
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_vision.attention import SqueezeExcite
from attention_vision.backbones import CCT, ResNet, Swin, ViT
from attention_vision.detection import DETR, HungarianMatcher, SetCriterion
from attention_vision.generation import SAGAN, Discriminator, Generator
from attention_vision.generation.gan.module import MomentumFreeAdam
from attention_vision.generation.gan.scores import Unscored
from attention_vision.profiling.cost import Workload, macs

SHEET = {  # dense bf16 FLOP/s of the datasheets
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
}
TURNS = 5
SECONDS = 0.6  # shortest time that a turn of one side takes

Step = Callable[[], Tensor]


@dataclass
class Side:
    """One side of a row, ready to step; bytes at its worst moment, its own weights included."""

    label: str
    step: Step
    peak: int
    warm_seconds: float


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Step, repeats: int, device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def prepare(label: str, build: Callable[[], Step], device: str, warm: int = 4) -> Side:
    """Builds a side, warms it up and reads its memory."""
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    step = build()
    start = time.perf_counter()
    for _ in range(warm):
        loss = step()
    synchronise(device)
    warm_seconds = time.perf_counter() - start
    if not torch.as_tensor(loss).isfinite().all():
        raise ArithmeticError(f"{label}: the loss is {loss}")
    peak = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    return Side(label, step, peak, warm_seconds)


def in_turns(sides: Sequence[Side], device: str, turns: int) -> list[list[float]]:
    """Seconds of a step, of every side and turn."""
    repeats = [max(2, round(SECONDS / seconds_of(side.step, 2, device))) for side in sides]
    if device == "cpu":
        repeats = [1] * len(sides)
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(turns):
        for side, taken, count in zip(sides, times, repeats, strict=True):
            taken.append(seconds_of(side.step, count, device))
    return times


def busy(step: Step, wall: float) -> tuple[float, list[list[object]]]:
    """Share of a step in which a kernel runs, and the kernels that take most of it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    events = [
        event for event in record.key_averages()
        if event.self_device_time_total > 0 and "Optimizer" not in event.key
    ]  # fmt: skip
    total = sum(event.self_device_time_total for event in events)  # microseconds
    events.sort(key=lambda event: -event.self_device_time_total)
    top = [
        [event.key[:120], round(event.self_device_time_total / total, 4), event.count // 3]
        for event in events[:12]
    ]
    count = sum(event.count for event in events) // 3
    return total * 1e-6 / 3 / wall, [["kernels of a step", 1.0, count], *top]


def compare(
    part: Part, name: str, builds: dict[str, Callable[[], Step]], batch: int, flops: float | None,
    **facts: object,
) -> None:  # fmt: skip
    """Measures a row, and saves it."""
    device = part.device
    row: dict[str, object] = {"name": name, "batch": batch, "precision": "bf16 autocast", **facts}
    sides = []
    for label, build in builds.items():
        sides.append(prepare(label, build, device))
    times = in_turns(sides, device, 2 if part.smoke else TURNS)
    row["sides"] = {}
    for side, taken in zip(sides, times, strict=True):
        wall = median(taken)
        numbers: dict[str, object] = {
            "ms": 1e3 * wall,
            "ms of each turn": [round(1e3 * one, 3) for one in taken],
            "images_per_second": batch / wall,
            "peak_gib": side.peak / 2**30,
            "first steps, seconds": round(side.warm_seconds, 2),
        }
        if flops:
            rate = flops * batch / wall
            numbers["tflops"] = rate / 1e12
            numbers |= {f"mfu of {key}": rate / value for key, value in ceilings(part).items()}
        if device == "cuda":
            share, kernels = busy(side.step, wall)
            numbers |= {"gpu_busy": share, "kernels": kernels}
        row["sides"][side.label] = numbers
    if len(sides) == 2:
        row["peer / ours"] = median(b / a for a, b in zip(*times, strict=True))
    row["gflops per image"] = flops / 1e9 if flops else None
    rows = [*part.content.get("rows", []), row]
    part.save(rows=rows, summary=[line for one in rows for line in lines_of(one)])


def lines_of(row: dict) -> list[str]:
    lines = []
    for label, side in row["sides"].items():
        line = f"{row['name']}, {label}: {side['images_per_second']:,.1f} images/s"
        line += f", {side['ms']:.2f} ms, {side['peak_gib']:.2f} GiB"
        if "tflops" in side:
            shares = [f"{100 * v:.1f} % {k}" for k, v in side.items() if k.startswith("mfu")]
            line += f", {side['tflops']:.0f} TFLOP/s ({', '.join(shares)})"
        if "gpu_busy" in side:
            line += f", busy {100 * side['gpu_busy']:.0f} %"
        lines.append(line)
    if "peer / ours" in row:
        lines.append(f"{row['name']}: peer's time / ours {row['peer / ours']:.3f}")
    return lines


def ceilings(part: Part) -> dict[str, float]:
    """What the datasheet says, and what `matrix_rate` measured, in FLOP/s."""
    found = {}
    with suppress(OSError, KeyError, ValueError):
        found["measured"] = 1e12 * json.loads((part.out / "ceilings.json").read_text())["tflops"]
    name = torch.cuda.get_device_name() if part.device == "cuda" else ""
    return found | ({"datasheet": SHEET[name]} if name in SHEET else {})


def fresh() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def measure_ceilings(part: Part) -> None:
    """A product of 8192 x 8192 matrices in bf16, and a copy, on random numbers."""
    n = 256 if part.smoke else 8192
    a, b = (torch.randn(n, n, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = repeated(lambda: a @ b, part.device)
    size = 2**20 if part.smoke else 2**31
    source = torch.randn(size, device=part.device)
    target = torch.empty_like(source)
    copying = repeated(lambda: target.copy_(source), part.device)
    tflops, bandwidth = 2 * n**3 / seconds / 1e12, 8 * size / copying / 1e12
    line = f"{n}^3 bf16 product {tflops:.0f} TFLOP/s, copy {bandwidth:.2f} TB/s"
    part.save(tflops=tflops, copy_tb_per_second=bandwidth, matrix=n, summary=[line])


def repeated(step: Callable[[], object], device: str) -> float:
    for _ in range(3):
        step()
    return median(seconds_of(step, 10, device) for _ in range(5))


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
        forward = torch.compile(network, mode=None if compiled == "default" else compiled)
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
    fresh()
    torch.backends.cudnn.benchmark = True
    batch, side = (2, min(side, 64)) if part.smoke else (batch, side)
    batches = random_batches(batch, side, part.device, classes)
    network = ours().to(part.device)
    flops = 6 * macs(Workload.of_network(name, network, batches[0][0][:2]))
    del network
    builds = {
        label: lambda make=make: image_step(make(), batches, part.device, channels_last, compiled)
        for label, make in {"ours": ours, **peers}.items()
    }
    compare(
        part, name, builds, batch, flops, image=side, compiled=compiled,
        layout="channels_last" if channels_last else "contiguous",
    )  # fmt: skip


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **options)


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None)


def vit(part: Part, compiled: str | None = None) -> None:
    size = {"image_size": 64} if part.smoke else {}
    timms = {"img_size": 64} if part.smoke else {}
    classification_row(
        part, "ViT-B/16", partial(ViT, **size),
        {"timm vit_base_patch16_224": partial(timm_model, "vit_base_patch16_224", **timms)},
        256, False, compiled=compiled,
    )  # fmt: skip


def deit(part: Part, compiled: str | None = None) -> None:
    size = {"image_size": 64} if part.smoke else {}
    timms = {"img_size": 64} if part.smoke else {}
    classification_row(
        part, "DeiT-S/16", partial(ViT, width=384, heads=6, **size),
        {"timm deit_small_patch16_224": partial(timm_model, "deit_small_patch16_224", **timms)},
        256, False, compiled=compiled,
    )  # fmt: skip


def resnet(part: Part, compiled: str | None = None) -> None:
    peers = {"torchvision resnet50": partial(torchvision_model, "resnet50")}
    classification_row(part, "ResNet-50", ResNet, peers, 256, True, compiled=compiled)


def se_resnet(part: Part, compiled: str | None = None) -> None:
    ours = partial(ResNet, attention=partial(SqueezeExcite, reduction=16))
    peers = {"timm seresnet50": partial(timm_model, "seresnet50")}
    classification_row(part, "SE-ResNet-50", ours, peers, 256, True, compiled=compiled)


def swin(part: Part, compiled: str | None = None) -> None:
    """Against torchvision's, and eagerly against timm's as well; no stochastic depth anywhere."""
    import torchvision

    side = {"image_size": 64} if part.smoke else {}
    timms = {"img_size": 64} if part.smoke else {}
    peers = {
        "torchvision swin_t": partial(
            torchvision.models.SwinTransformer,
            [4, 4],
            96,
            [2, 2, 6, 2],
            [3, 6, 12, 24],
            [7, 7],
            stochastic_depth_prob=0.0,
        ),
        "timm swin_tiny_patch4_window7_224": partial(
            timm_model, "swin_tiny_patch4_window7_224", drop_path_rate=0.0, **timms
        ),
    }
    classification_row(part, "Swin-T", partial(Swin, **side), peers, 256, False, compiled=compiled)


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


# Detection


def scenes(batch: int, size: tuple[int, int], device: str) -> tuple[Tensor, Tensor, list]:
    """Images of several widths, padded to the widest, and 4 to 10 objects of each."""
    images, padding = torch.randn(batch, 3, *size), torch.zeros(batch, *size, dtype=torch.bool)
    for place, share in zip(range(batch), (1.0, 0.94, 0.75, 0.85), strict=False):
        padding[place, :, round(size[1] * share) :] = True
    targets = [
        {
            "boxes": torch.cat((0.3 + 0.4 * torch.rand(n, 2), 0.05 + 0.5 * torch.rand(n, 2)), 1),
            "labels": torch.randint(90, (n,)),
        }
        for n in torch.randint(4, 11, (batch,)).tolist()
    ]
    targets = [{key: x.to(device) for key, x in target.items()} for target in targets]
    return images.masked_fill(padding[:, None], 0).to(device), padding.to(device), targets


def adamw(network: nn.Module, device: str) -> torch.optim.Optimizer:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=1e-5, weight_decay=1e-4, fused=device == "cuda")


def our_detr(batch: tuple, device: str, compiled: str | None) -> Step:
    images, padding, targets = batch
    network = DETR().to(device, memory_format=torch.channels_last).train()
    criterion = SetCriterion(91, HungarianMatcher()).to(device)
    optimizer = adamw(network, device)
    forward = torch.compile(network) if compiled else network

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = criterion(forward(images, padding), targets)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def their_detr(batch: tuple, device: str, compiled: str | None) -> Step:
    """Hugging Face's with random weights: as many auxiliary losses, frozen norms, no download.

    Transformers 5 freezes the whole of its own ResNet, since none of its weights is named as it
    expects: stages 2 to 4 are trained here, as in ours and in the release.
    """
    import transformers

    images, padding, targets = batch
    backbone = transformers.ResNetConfig(out_features=["stage4"])
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, auxiliary_loss=True, num_labels=91,
    )  # fmt: skip
    network = transformers.DetrForObjectDetection(config)
    for weight_name, weight in network.model.backbone.named_parameters():
        if any(f"stages.{stage}." in weight_name for stage in (1, 2, 3)):
            weight.requires_grad_(True)
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = adamw(network, device)
    forward = torch.compile(network) if compiled else network
    mask = (~padding).long()
    labels = [{"class_labels": one["labels"], "boxes": one["boxes"]} for one in targets]

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(images, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def detr(part: Part, compiled: str | None = None) -> None:
    fresh()
    torch.backends.cudnn.benchmark = True
    batch, size = (2, (64, 96)) if part.smoke else (4, (800, 1066))
    images, padding, targets = scenes(batch, size, part.device)
    images = images.contiguous(memory_format=torch.channels_last)
    network = DETR().to(part.device)
    flops = 6 * macs(Workload.of_network("DETR-R50", network, images[:1], padding[:1]))
    del network
    given = ((images, padding, targets), part.device, compiled)
    builds = {"ours": lambda: our_detr(*given)}
    if not compiled:  # the matcher inside of the peer's forward breaks its graph
        builds["transformers DetrForObjectDetection"] = lambda: their_detr(*given)
    compare(
        part, "DETR-R50", builds, batch, flops, image=list(size), compiled=compiled,
        layout="channels_last",
        note="FLOPs as if all of the backbone were trained: stem and first stage are frozen",
    )  # fmt: skip
    if part.device == "cuda" and not compiled:
        part.save(parts=parts_of_detr(images, padding, targets, part.device))


def parts_of_detr(images: Tensor, padding: Tensor, targets: list, device: str) -> dict[str, float]:
    """Milliseconds of the forward pass, the matching and the loss of ours, each by itself."""
    network = DETR().to(device, memory_format=torch.channels_last).train()
    criterion = SetCriterion(91, HungarianMatcher()).to(device)
    with torch.autocast(device, torch.bfloat16):
        outputs = network(images, padding)
        steps = {
            "forward": lambda: network(images, padding),
            "matching": lambda: criterion.matcher(outputs, targets),
            "criterion with matching": lambda: criterion(outputs, targets),
        }
        return {
            key: 1e3 * median(seconds_of(step, 3, device) for _ in range(3))
            for key, step in steps.items()
        }


# Generation


def sagan(part: Part) -> None:
    """One step of D and one of G with the average of G, at StudioGAN's sizes of 32 pixels."""
    fresh()
    torch.backends.cudnn.benchmark = True
    for layout in (torch.contiguous_format, torch.channels_last):
        for rate in (1,) if part.smoke else (1, 5):
            label = f"SAGAN-32, {rate} step{'s' * (rate > 1)} of D"
            label += ", channels_last" * (layout == torch.channels_last)
            build = partial(sagan_step, part.device, 4 if part.smoke else 64, rate, layout)
            compare(part, label, {"ours": build}, 4 if part.smoke else 64, None, image=32)
            fresh()


def sagan_step(device: str, batch: int, rate: int, layout: torch.memory_format) -> Step:
    """As `SAGAN.training_step` without its loop and logs; images are those of G's step."""
    module = SAGAN(
        Generator(32), Discriminator(32), discriminator_steps=rate, scorer=Unscored()
    ).to(device, memory_format=layout)
    module.train()
    module.manual_backward = lambda loss: loss.backward()
    fused = True if device == "cuda" else None
    of_g = MomentumFreeAdam(module.generator.parameters(), lr=1e-4, fused=fused)
    of_d = MomentumFreeAdam(module.discriminator.parameters(), lr=4e-4, fused=fused)
    batches = [
        (
            (torch.rand(batch, 3, 32, 32, device=device) * 2 - 1).to(memory_format=layout),
            torch.randint(10, (batch,), device=device),
        )
        for _ in range(rate)
    ]

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            module.generator.requires_grad_(False)
            for one in batches:
                module._discriminator_losses([one])
                of_d.step()
                of_d.zero_grad()
            module.generator.requires_grad_(True)
            module.discriminator.requires_grad_(False)
            loss = module._generator_losses(batch)
            of_g.step()
            of_g.zero_grad()
            module.discriminator.requires_grad_(True)
            module._average_generator(0.999)
        return loss

    return step


# The project's benchmarks


def benchmark(part: Part, name: str, *options: str) -> None:
    """Runs experiments/benchmarks/NAME.py, and takes its rows over."""
    fresh()
    output = part.out / f"{part.name}_rows.json"
    command = [sys.executable, str(ROOT / "experiments/benchmarks" / f"{name}.py")]
    command += ["--device", part.device, "--output", str(output), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=max(10, part.left - 3), env=os.environ
    )
    part.save(output=done.stdout[-8000:], summary=done.stdout.splitlines()[2:])
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    part.save(rows=json.loads(output.read_text())["rows"])


def matching(part: Part) -> None:
    benchmark(part, "matching")


def layers(part: Part) -> None:
    benchmark(part, "attention", *(["--only", "attend, 64"] if part.smoke else []))


PARTS = {
    "ceilings": measure_ceilings,
    "vit_b16": vit,
    "resnet50": resnet,
    "se_resnet50": se_resnet,
    "swin_t": swin,
    "deit_s16": deit,
    "detr_r50": detr,
    "sagan32": sagan,
    "small": small,
    "matching": matching,
    "layers": layers,
    "vit_b16_compiled": partial(vit, compiled="default"),
    "resnet50_compiled": partial(resnet, compiled="default"),
    "se_resnet50_compiled": partial(se_resnet, compiled="default"),
    "swin_t_compiled": partial(swin, compiled="default"),
    "deit_s16_compiled": partial(deit, compiled="default"),
    "detr_r50_compiled": partial(detr, compiled="default"),
}
