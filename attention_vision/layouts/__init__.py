"""The layouts of official weights, one file per family of networks.

A layout is a list of renamings from their keys to ours. The first of `LAYOUTS` that has a key of
its own in a state dict is taken, so that nobody has to say where a file comes from.
"""

from attention_vision.layouts import detr, faster_rcnn, resnet, vit
from attention_vision.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    resnet.TORCHVISION_OR_TIMM,
    vit.TIMM,
    vit.TORCHVISION,
    detr.RELEASE,
    detr.HUGGING_FACE,
    faster_rcnn.TORCHVISION,
)
