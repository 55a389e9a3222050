"""Image classification: `Classifier` trains any backbone on any `ClassificationData`."""

from attention_vision.classification.data import (
    CIFAR10,
    CIFAR100,
    ClassificationData,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageNet,
)
from attention_vision.classification.module import Classifier
from attention_vision.classification.transforms import Photographs, SmallImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "ClassificationData",
    "Classifier",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet",
    "Photographs",
    "SmallImages",
]
