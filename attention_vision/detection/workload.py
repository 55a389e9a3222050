"""A detector on random images, for `attention-vision profile` and the preflight of a study."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.detection.data import DetectionData, DigitScenes
from attention_vision.detection.module import Detector
from attention_vision.errors import InputError
from attention_vision.profiling.cost import Workload

OBJECTS = 5  # of a random image; COCO has 7 on average


def image_size(data: DetectionData) -> tuple[int, int]:
    """(H, W) of an image in evaluation; of photographs 3 : 4, as most of COCO."""
    if isinstance(data, DigitScenes):
        return data.size, data.size
    short = data.recipe.evaluation
    return short, short * 4 // 3


def workloads(name: str, module: Detector, size: Sequence[int], batch_size: int) -> list[Workload]:
    """The network of a detector and its losses.

    Raises:
        InputError: `size` is not height and width.
    """
    if len(size) != 2:
        raise InputError(f"{name}: images of {len(size)} sides; a detector takes height and width")
    network, device = module.network, next(module.parameters()).device
    images = torch.randn(batch_size, 3, *size, device=device)
    targets = [random_objects(device) for _ in range(batch_size)]
    padding_mask = torch.zeros(batch_size, *size, dtype=torch.bool, device=device)
    return [
        Workload(
            name, network, lambda: network(images, padding_mask),
            lambda: module.losses((images, padding_mask, targets))["total"], (images,),
        )
    ]  # fmt: skip


def random_objects(device: torch.device) -> dict[str, Tensor]:
    """Targets of one image: boxes of a fifth of its sides, at random positions."""
    centers = 0.1 + 0.8 * torch.rand(OBJECTS, 2, device=device)
    return {
        "boxes": torch.cat((centers, torch.full_like(centers, 0.2)), 1),
        "labels": torch.zeros(OBJECTS, dtype=torch.int64, device=device),
    }
