"""Image classification: `Classifier` trains any backbone on any `ClassificationData`."""

from attention_vision.classification.attention_transfer import (
    AttentionMapDistillation,
    AttentionTransfer,
    GateTransfer,
)
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
from attention_vision.classification.module import Classifier
from attention_vision.classification.penalties import AttentionPenalty
from attention_vision.classification.transforms import CIFARAugmentation, ImageNetAugmentation

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "AttentionMapDistillation",
    "AttentionPenalty",
    "AttentionTransfer",
    "CIFARAugmentation",
    "ClassificationData",
    "Classifier",
    "Digits",
    "Distillation",
    "FashionMNIST",
    "GateTransfer",
    "ImageFolder",
    "ImageNet",
    "ImageNetAugmentation",
]
