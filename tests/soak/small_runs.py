"""The smallest run of each task, and the command in forks of a process with its imports done."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

TRAINER = {"accelerator": "cpu", "log_every_n_steps": 1, "num_sanity_val_steps": 0}
VIT = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1}
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
SCENES = {"scenes": 24, "val_scenes": 8, "size": 32, "batch_size": 4, "num_workers": 0}


def node(class_path: str, **arguments: Any) -> dict[str, Any]:
    """Return a class and its arguments, as a config has them."""
    return {"class_path": class_path, "init_args": arguments}


BACKBONE = node("ResNet", depth=8, width=4)
CONFIGS: dict[str, dict[str, Any]] = {
    "classifier": {
        "task": "classification",
        "data": node("Digits", image_size=16, batch_size=32, num_workers=0, per_class=20),
        "model": {"network": node("ViT", **VIT), "optimizer": ADAM},
    },
    "detr": {
        "task": "detection",
        "data": node("DigitScenes", **SCENES),
        "model": node(
            "DETRDetector",
            network=node(
                "DETR", num_queries=6, width=16, heads=2, encoder_layers=1, decoder_layers=2,
                hidden=16, dropout=0.1, backbone=BACKBONE,
            ),
            optimizer=ADAM,
        ),
    },
    "dino": {
        "task": "detection",
        "data": node("DigitScenes", **SCENES),
        "model": node(
            "DeformableDETRDetector",
            network=node(
                "DeformableDETR", num_queries=6, refine=True, two_stage=True, mixed_queries=True,
                look_forward_twice=True, denoising=node("Denoising", queries=12), width=16, heads=2,
                encoder_layers=1, decoder_layers=2, hidden=16, dropout=0.1, backbone=BACKBONE,
            ),
            optimizer=ADAM,
        ),
    },
    "faster_rcnn": {
        "task": "detection",
        "data": node("DigitScenes", **SCENES | {"scenes": 12, "val_scenes": 4}),
        "model": node("RCNNDetector", network=node("AttentionRCNN", backbone=BACKBONE)),
    },
    "sagan": {
        "task": "generation",
        "data": node("DigitImages", size=16, batch_size=128, num_workers=0, count=10),
        "model": node(
            "SAGAN",
            generator=node("Generator", size=16, latent=4, width=4, attention_at=[8]),
            discriminator=node("Discriminator", size=16, width=4, attention_at=[8]),
            ema_decay=0.9,
            ema_start=3,
            scorer=node("Unscored"),
            augment=["colour", "translation", "cutout"],
        ),
    },
    "unet": {
        "task": "generation",
        "data": node("DigitMasks", size=16, batch_size=128, num_workers=0),
        "model": node(
            "ImageToImage",
            network=node("AttentionUNet", width=4, depth=3, gated_levels=[2, 3]),
            objective=node("Segmentation"),
            optimizer=ADAM,
        ),
    },
}  # fmt: skip


def write_config(file: Path, name: str, **changes: Any) -> Path:
    """Write the config of a small run; a change is a dotted path, with `__` for each dot."""
    config = {"threads": 1, "pictures": False} | yaml.safe_load(yaml.safe_dump(CONFIGS[name]))
    config["trainer"] = dict(TRAINER)
    for key, value in changes.items():
        *parents, last = key.split("__")
        here = config
        for parent in parents:
            here = here.setdefault(parent, {})
            here = here.get("init_args", here)
        here[last] = value
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def preload() -> None:
    """Import what all runs need, once; forks inherit it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("runs.command", "classification", "detection", "generation"):
        import_module(f"attention_vision.{name}")
    import_module("sklearn.datasets")


def start(task: str, words: list[str], output: Path) -> BaseProcess:
    """Start `attention-vision TASK fit WORDS` in a fork; its output goes to a file's end."""
    process = multiprocessing.get_context("fork").Process(
        target=call, args=([task, "fit", *words], output)
    )
    process.start()
    return process


def call(words: list[str], output: Path) -> None:
    stream = output.open("a", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
    os.setpgrp()

    from attention_vision.__main__ import main

    code = main(words)
    sys.stdout.flush()
    os._exit(code or 0)  # a fork of the tests must not run what they do at their end
