"""Networks from images to features, with slots for attention and pooling."""

from attention_vision.backbones.backbone import Backbone, MeanPool
from attention_vision.backbones.efficientnet import EfficientNet
from attention_vision.backbones.resnet import ResNet
from attention_vision.backbones.swin import Swin
from attention_vision.backbones.vit import ClassToken, DistilledToken, ViT

__all__ = [
    "Backbone",
    "ClassToken",
    "DistilledToken",
    "EfficientNet",
    "MeanPool",
    "ResNet",
    "Swin",
    "ViT",
]
