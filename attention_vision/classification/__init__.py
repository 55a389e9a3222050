"""Image classification: `Classifier` trains any backbone on any `ClassificationData`."""

import warnings

from attention_vision.checkpoints.preprocessing import Preprocessing
from attention_vision.classification.attention_transfer import (
    AttentionMapDistillation,
    AttentionTransfer,
    GateTransfer,
)
from attention_vision.classification.csv_data import ImageCSV
from attention_vision.classification.data import (
    CIFAR10,
    CIFAR100,
    ClassificationData,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageNet,
)
from attention_vision.classification.distillation import Distillation
from attention_vision.classification.huggingface_data import HuggingFaceImages
from attention_vision.classification.module import Classifier
from attention_vision.classification.penalties import AttentionPenalty
from attention_vision.classification.transforms import (
    Augmentation,
    CIFARAugmentation,
    ImageNetAugmentation,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "AttentionMapDistillation",
    "AttentionPenalty",
    "AttentionTransfer",
    "Augmentation",
    "CIFARAugmentation",
    "ClassificationData",
    "Classifier",
    "Digits",
    "Distillation",
    "FashionMNIST",
    "GateTransfer",
    "HuggingFaceImages",
    "ImageCSV",
    "ImageFolder",
    "ImageNet",
    "ImageNetAugmentation",
    "Preprocessing",
]

RENAMED = {  # name of 0.1 -> name of today
    "ActivationTransfer": "AttentionTransfer",
    "Photographs": "ImageNetAugmentation",
    "RowTransfer": "AttentionMapDistillation",
    "SmallImages": "CIFARAugmentation",
}


def __getattr__(name: str) -> type:
    """Find a class by its name in version 0.1, with a warning."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is {RENAMED[name]} since 0.2", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]
