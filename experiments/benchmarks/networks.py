"""How fast a training step of the backbones is, against timm's and torchvision's.

    OMP_WAIT_POLICY=passive python experiments/benchmarks/networks.py --threads 2 --clock cpu

A step is forward, cross-entropy, backward and fused AdamW, of images of 224 pixels, with the same
stochastic depth and dropout on both sides. Each side runs eager and, with `NETWORKS_COMPILE=1`,
compiled by inductor, which takes 5 to 15 minutes a network on 2 cores; peers with convolutions run
in both memory formats. The last rows are ours without and with `checkpointing`. See `frame`.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import timm
import torch
import torch.nn.functional as F
import torchvision
from frame import Row, Side, Step, main, training_flops
from torch import nn

from attention_vision.attention import SqueezeExcite
from attention_vision.backbones import EfficientNet, ResNet, Swin, ViT

Build = Callable[[], nn.Module]
COMPILE = os.environ.get("NETWORKS_COMPILE") == "1"


def step_of(build: Build, batch: int, size: int, device: str, last: bool, compiled: bool) -> Step:
    layout = torch.channels_last if last else torch.contiguous_format
    network = build().train().to(device, memory_format=layout)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.randint(1000, (batch,), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    if compiled:
        network.compile()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sides(who: str, build: Build, batch: int, size: int, device: str, formats: bool) -> list[Side]:
    """Variants of one contestant."""
    return [
        Side(who, partial(step_of, build, batch, size, device, last, compiled), variant)
        for last in ((False, True) if formats else (False,))
        for compiled in ((False, True) if COMPILE else (False,))
        if (
            variant := ("compiled" if compiled else "eager")
            + (", channels last" if last else "")
        )
    ]  # fmt: skip


def rows(device: str, smoke: bool) -> Iterator[Row]:
    squeeze = partial(ResNet, 50, partial(SqueezeExcite, reduction=16))
    create = partial(timm.create_model, pretrained=False)
    efficient = partial(create, "efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2)
    networks: list[tuple[str, Build, str, Build, float]] = [
        ("ViT-S/16", partial(ViT, width=384, heads=6), "timm",
         partial(create, "vit_small_patch16_224"), 1.1),
        ("SE-ResNet-50", squeeze, "timm", partial(create, "seresnet50"), 1.25),
        ("Swin-T", partial(Swin, stochastic_depth=0.2), "torchvision",
         torchvision.models.swin_t, 1.2),
        ("EfficientNet-B0", EfficientNet, "timm", efficient, 1.3),
    ]  # fmt: skip
    batch, size = (64, 224) if device == "cuda" else (8, 224)
    if smoke:
        batch = 1
        networks = [networks[0], networks[3]]
    for name, ours, who, peer, target in networks:
        convolutional = name in ("SE-ResNet-50", "EfficientNet-B0")
        ours_formats = convolutional and device == "cuda"  # on a CPU ours choose by themselves
        both = sides("ours", ours, batch, size, device, ours_formats)
        both += sides(who, peer, batch, size, device, convolutional)
        flops = None if smoke else training_flops(ours(), torch.randn(1, 3, size, size)) * batch
        yield Row(name, both, batch, flops=flops, targets={who: target})
    for name, ours, *_ in networks:
        builds = {"kept": ours, "recomputed": partial(ours, checkpointing=True)}
        plain, checkpointed = (
            sides(who, build, batch, size, device, False)[0] for who, build in builds.items()
        )
        yield Row(f"{name}, checkpointing", [checkpointed, plain], batch, turns=3)


if __name__ == "__main__":
    main(rows)
