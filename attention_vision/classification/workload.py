"""A classifier on random images, for `attention-vision profile` and the preflight of a study."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attention_vision.classification.data import ClassificationData
from attention_vision.classification.module import Classifier
from attention_vision.profiling.cost import Workload, tensors_in


def image_size(data: ClassificationData) -> tuple[int, int]:
    """(H, W) of a training image."""
    return data.image_size, data.image_size


def workloads(
    name: str, module: Classifier, size: Sequence[int], batch_size: int
) -> list[Workload]:
    """The network of a classifier and its cross entropy."""
    network, device = module.network, next(module.parameters()).device
    images = torch.randn(batch_size, 3, *size, device=device)
    labels = torch.randint(max(1, network.num_classes), (batch_size,), device=device)

    def loss() -> Tensor:  # of both heads where there are two
        losses = [cross_entropy(logits, labels) for logits in tensors_in(module(images))]
        return torch.stack(losses).sum()

    return [Workload(name, network, lambda: module(images), loss, (images,))]
