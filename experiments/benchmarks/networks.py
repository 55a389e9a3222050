"""How fast a training step of the backbones is, against timm's and torchvision's.

    OMP_WAIT_POLICY=passive python experiments/benchmarks/networks.py --threads 2 --clock cpu

A step is forward, cross-entropy, backward and fused AdamW, of images of 224 pixels, with the same
stochastic depth and dropout on both sides. Peers with convolutions run in both memory formats;
on a CPU ours choose theirs. `--only eager` leaves out compiled code, which takes 2 cores minutes a
network. Then ours with `checkpointing: true` against ours without. See `frame`.
"""

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


def step_of(
    build: Build, batch: int, device: str, side: int, last: bool = False, compiled: bool = False
) -> Step:
    layout = torch.channels_last if last else torch.contiguous_format
    network = build().train().to(device, memory_format=layout)
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=layout)
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


def rows(device: str, smoke: bool) -> Iterator[Row]:
    squeeze = partial(ResNet, 50, partial(SqueezeExcite, reduction=16))
    create = partial(timm.create_model, pretrained=False)
    efficient = partial(create, "efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2)
    vit, se = (partial(create, name) for name in ("vit_small_patch16_224", "seresnet50"))
    swin = partial(Swin, stochastic_depth=0.2)
    networks: list[tuple[str, Build, str, Build, bool, float]] = [
        ("ViT-S/16", partial(ViT, width=384, heads=6), "timm", vit, False, 1.1),
        ("SE-ResNet-50", squeeze, "timm", se, True, 1.25),
        ("Swin-T", swin, "torchvision", torchvision.models.swin_t, False, 1.2),
        ("EfficientNet-B0", EfficientNet, "timm", efficient, True, 1.3),
    ]
    batch, side = 64 if device == "cuda" else 8, 224
    if smoke:
        batch, side = 2, 32
        vit = partial(vit, img_size=side, embed_dim=24, depth=1, num_heads=2)
        squeeze, se = partial(ResNet, 18, *squeeze.args[1:]), partial(create, "seresnet18")
        networks = [
            ("ViT-S/16", partial(ViT, side, width=24, depth=1, heads=2), "timm", vit, False, 1.1),
            ("SE-ResNet-50", squeeze, "timm", se, True, 1.25),
        ]
    step = partial(step_of, batch=batch, device=device, side=side)
    kinds = {"eager": False, "compiled": True}
    titles = {"eager": ["eager"]} if smoke else {"eager": ["eager"], "fastest": [*kinds]}
    for title, variants in titles.items():
        for name, ours, who, peer, convolutional, target in networks:
            flops = batch * training_flops(ours(), torch.randn(1, 3, side, side))
            found = []
            for one, build in (("ours", ours), (who, peer)):
                both = convolutional and (one == who or device == "cuda")
                for last in (False, True) if both else (False,):
                    for kind in variants:
                        make = partial(step, build, last=last, compiled=kinds[kind])
                        found.append(Side(one, make, kind + last * ", channels last"))
            yield Row(f"{name}, {title}", found, batch, flops=flops, targets={who: target})
    for name, ours, *_ in networks:
        plain = Side("kept", partial(step, ours), "eager")
        again = Side("ours", partial(step, partial(ours, checkpointing=True)), "checkpointing")
        yield Row(f"{name}, checkpointing", [again, plain], batch, turns=3)


if __name__ == "__main__":
    main(rows)
