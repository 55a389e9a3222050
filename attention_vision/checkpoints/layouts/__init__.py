"""Layouts of official weights, one file per family of networks.

A layout is a list of renamings from the keys of another library to ours. The first of `LAYOUTS`
whose signature is in a state dict is used, so that the origin of a file need not be stated.
"""

from attention_vision.checkpoints.layouts import (
    cct,
    deformable_detr,
    detr,
    efficientnet,
    faster_rcnn,
    resnet,
    swin,
    vit,
)
from attention_vision.checkpoints.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    resnet.CBAM,
    resnet.TORCHVISION_OR_TIMM,
    efficientnet.TORCHVISION,
    efficientnet.TIMM,
    efficientnet.EFFICIENTNET_PYTORCH,
    vit.DISTILLED,
    vit.TIMM,
    vit.TORCHVISION,
    vit.HUGGING_FACE_DISTILLED,
    vit.HUGGING_FACE,
    cct.PATCHES,
    cct.RELEASE,
    swin.RELEASE,
    swin.TIMM,
    swin.TORCHVISION,
    deformable_detr.RELEASE,
    deformable_detr.HUGGING_FACE,
    detr.RELEASE,
    detr.HUGGING_FACE,
    faster_rcnn.TORCHVISION,
)
