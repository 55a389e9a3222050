"""Networks from images to features, with slots for attention and pooling."""

from attention_vision.backbones.backbone import Backbone, MeanPool
from attention_vision.backbones.resnet import ResNet
from attention_vision.backbones.vit import ClassToken, ViT

__all__ = ["Backbone", "ClassToken", "MeanPool", "ResNet", "ViT"]
