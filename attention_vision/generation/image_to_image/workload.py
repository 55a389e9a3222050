"""An image-to-image network on random images, for `attention-vision profile`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import ImageToImageData
from attention_vision.generation.image_to_image.mask_folders import SegmentationFolders
from attention_vision.generation.image_to_image.module import ImageToImage
from attention_vision.profiling.cost import Workload


def image_size(data: ImageToImageData) -> tuple[int, ...]:
    """Sides of a training patch."""
    return tuple(data.patch) if isinstance(data, SegmentationFolders) else (data.size, data.size)


def workloads(
    name: str, module: ImageToImage, size: Sequence[int], batch_size: int
) -> list[Workload]:
    """The network and the loss of its objective.

    Raises:
        InputError: `size` has more or fewer dimensions than the network.
    """
    network, device = module.network, next(module.parameters()).device
    if len(size) != network.dimensions:
        raise InputError(
            f"{name}: images of {len(size)} sides for a network of {network.dimensions}"
            " dimensions; give as many to --image_size"
        )
    images = torch.randn(batch_size, network.in_channels, *size, device=device)

    def loss() -> Tensor:
        output = network(images)
        if network.num_classes:
            target = torch.zeros_like(output[:, 0], dtype=torch.int64)
        else:
            target = torch.zeros_like(output)
        return module.objective.loss(output, target)

    return [Workload(name, network, lambda: network(images), loss, (images,))]
