"""A first experiment for a folder of data: small networks that a laptop trains in minutes."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from attention_vision.data.formats import Format
from attention_vision.data.image_files import image_files, image_size, list_images, read_levels
from attention_vision.data.samples import evenly_spaced

SIZES_READ, MASKS_READ = 64, 8  # of the files, evenly spaced
HEADERS = 20_000  # sizes that are read for patches, as many as the data class looks at
SMALL = 64  # pixels of the longer side, up to which images are shown whole
MOST_CLASSES = 32  # gray levels of masks; more are noise
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3, "weight_decay": 0.05}}
COSINE = {"class_path": "WarmupCosine", "init_args": {"warmup_epochs": 2}}


def starter(found: Format, reader: str) -> dict[str, Any]:
    """The config of a first run.

    Args:
        found: the format of the data.
        reader: dotted name of one of its `readers`.

    Raises:
        InputError: a mask cannot be read.
    """
    name, arguments = reader.rpartition(".")[2], found.readers[reader]
    files = list_images(found.root).files
    sizes = [size for file in evenly_spaced(files, SIZES_READ) if (size := image_size(file))]
    sides = [256.0, 256.0]  # of photographs, if the images lie in parquet files
    if sizes:
        sides = [median(lengths) for lengths in zip(*sizes, strict=True)]
    match reader.split(".")[1], name:
        case "classification", _:
            config = classification(int(min(sides)), max(sides) <= SMALL, len(files))
        case "detection", _:
            config = DETECTION
        case _, "FolderImages":
            config = gan(len(files))
        case _, "DegradedFolder":
            config = restoration(least_side(files), len(files))
        case _:
            config = segmentation(least_side(files))
            arguments = arguments | mask_classes(Path(arguments["train_masks"]), arguments)
    data = {"class_path": name, "init_args": arguments | config["data"]}
    return {"task": reader.split(".")[1], "seed_everything": 0} | config | {"data": data}


def classification(side: int, small: bool, count: int) -> dict[str, Any]:
    """A small ResNet with CBAM; images of up to 64 pixels are neither enlarged nor cropped."""
    recipe: dict[str, Any] = {"class_path": "ImageNetAugmentation", "init_args": {"area": 0.25}}
    if small:
        recipe = {"class_path": "CIFARAugmentation"}
    stem = {"stem": "cifar"} if side <= 40 else {}  # which keeps the full size
    return {
        "trainer": {"max_epochs": 30},
        "data": {
            "image_size": max(16, side) if small else clamp(side // 32 * 32, 96, 160),
            "batch_size": batch_size(count, 64),
            "num_workers": 2,
            "recipe": recipe,
        },
        "model": {
            "network": {
                "class_path": "ResNet",
                "init_args": {"depth": 10, "width": 32, "attention": "CBAM"} | stem,
            },
            "optimizer": ADAMW,
            "schedule": COSINE,
            "label_smoothing": 0.1,
        },
    }


# A small Faster R-CNN from scratch, experiments/detection/custom_folder.yaml.
DETECTION: dict[str, Any] = {
    "trainer": {"max_epochs": 32, "check_val_every_n_epoch": 4, "gradient_clip_val": 1.0},
    "data": {
        "batch_size": 4,
        "num_workers": 2,
        "recipe": {
            "short_sides": [208, 224, 240, 256, 272],
            "longest": 480,
            "crop": 0.0,
            "evaluation": 240,
        },
    },
    "model": {
        "class_path": "RCNNDetector",
        "init_args": {
            "network": {
                "class_path": "AttentionRCNN",
                "init_args": {
                    "backbone": {
                        "class_path": "ResNet",
                        "init_args": {"depth": 10, "width": 32, "num_classes": 0},
                    },
                    "head": {"class_path": "PlainBoxHead", "init_args": {"hidden": 256}},
                    "pyramid_channels": 64,
                    "first_stage": 2,
                    "anchor_sizes": [24, 48, 96, 160],
                    "train_proposals": 500,
                    "eval_proposals": 300,
                    "sampled_proposals": 128,
                },
            },
            "optimizer": ADAMW,
            "schedule": COSINE,
        },
    },
}


def segmentation(side: int) -> dict[str, Any]:
    """An Attention U-Net on patches."""
    return {
        "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 3},
        "data": {"size": patch(side, 128), "patches_per_image": 8, "batch_size": 8},
        "model": unet("Segmentation"),
    }


def restoration(side: int, count: int) -> dict[str, Any]:
    """An Attention U-Net that takes noise away."""
    noise = {"class_path": "Noise", "init_args": {"sigma": 25.0}}
    return {
        "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 3},
        "data": {
            "degradation": noise,
            "size": patch(side, 64),
            "batch_size": batch_size(count, 16),
        },
        "model": unet("Restoration", residual=True),
    }


def unet(objective: str, **options: Any) -> dict[str, Any]:
    network = {"class_path": "AttentionUNet", "init_args": {"width": 16} | options}
    return {
        "class_path": "ImageToImage",
        "init_args": {
            "network": network,
            "objective": objective,
            "optimizer": ADAMW,
            "schedule": COSINE,
        },
    }


def gan(count: int) -> dict[str, Any]:
    """A SAGAN of 32 x 32 pixels, without a score."""
    rates = {"generator_optimizer": 1.0e-4, "discriminator_optimizer": 4.0e-4}
    optimizers = {
        key: {"class_path": "torch.optim.Adam", "init_args": {"lr": rate, "betas": [0.0, 0.9]}}
        for key, rate in rates.items()
    }
    networks = {
        name.lower(): {
            "class_path": name,
            "init_args": {"size": 32, "width": 64, "attention_at": [16]},
        }
        for name in ("Generator", "Discriminator")
    }
    return {
        "trainer": {"max_steps": 20000, "val_check_interval": 1000,
                    "check_val_every_n_epoch": None},
        "data": {"size": 32, "batch_size": batch_size(count, 64), "num_workers": 2},
        "model": {"class_path": "SAGAN", "init_args": {
            **networks, **optimizers, "scorer": {"class_path": "Unscored"},
        }},
    }  # fmt: skip


def clamp(number: int, least: int, most: int) -> int:
    return max(least, min(most, number))


def patch(side: int, most: int) -> int:
    """Side of square patches of images with this shorter side, a multiple of 16."""
    return clamp(side // 16 * 16, 16, most)


def least_side(files: Sequence[str]) -> int:
    """The shortest side of all images, in pixels: no patch may be larger."""
    sizes = [size for file in evenly_spaced(files, HEADERS) if (size := image_size(file))]
    return min(map(min, sizes), default=256)


def batch_size(count: int, most: int) -> int:
    """A power of two that makes at least eight steps of an epoch."""
    if not count:  # images in parquet files are not counted
        return min(most, 32)
    fits = [size for size in (4, 8, 16, 32, 64, 128) if size <= min(most, count // 8)]
    return fits[-1] if fits else 2


def mask_classes(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """`values` and `class_names` of masks with the levels that the first ones have.

    Levels 0 to n without a gap, whose n differs from mask to mask, are taken for numbered objects
    of one class.
    """
    ending = arguments.get("mask_pattern", "").rpartition("{name}")[2]
    files = [file for file in image_files(str(folder)) if file.endswith(ending)]
    found: list[set[int]] = []
    for file in evenly_spaced(files, MASKS_READ):
        mask = read_levels(file)
        if mask.ndim == 3 or len(np.unique(mask)) > MOST_CLASSES:
            return {}  # colors, or noise, of which the data class says what to do
        found.append(set(np.unique(mask).tolist()))
    levels = set().union(*found)
    if levels <= {0, 255}:
        return {}
    if all(one == set(range(len(one))) for one in found) and len(set(map(len, found))) > 2:
        return {"values": [0, "rest"]}
    ignored = {255} if 255 in levels and len(levels) > 2 else set()  # as of Pascal VOC
    kept = sorted(levels - ignored)
    names = ["background" if level == 0 else f"level_{level}" for level in kept]
    return {"class_names": names, "values": kept} | ({"ignore": 255} if ignored else {})
