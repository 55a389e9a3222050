"""Networks from images to features, with slots for attention and pooling."""

from attention_vision.backbones.backbone import Backbone, MeanPool
from attention_vision.backbones.cct import CCT, ConvTokenizer, PatchTokenizer
from attention_vision.backbones.compact_resnet import CompactResNet, MaxPool
from attention_vision.backbones.efficientnet import EfficientNet
from attention_vision.backbones.resnet import ResNet
from attention_vision.backbones.swin import Swin
from attention_vision.backbones.vit import ClassToken, DistilledToken, ViT

__all__ = [
    "CCT",
    "Backbone",
    "ClassToken",
    "CompactResNet",
    "ConvTokenizer",
    "DistilledToken",
    "EfficientNet",
    "MaxPool",
    "MeanPool",
    "PatchTokenizer",
    "ResNet",
    "Swin",
    "ViT",
]
