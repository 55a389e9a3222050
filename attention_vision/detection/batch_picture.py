"""The first training batch of a detector, with its boxes."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.detection.data import Batch
from attention_vision.detection.figures import (
    READABLE,
    class_color,
    class_name,
    draw_boxes,
    readable,
    to_pil,
    unpadded_size,
)
from attention_vision.ranges import Count, checked
from attention_vision.visualization.drawing import rgb


@checked
class BoxedBatch(BatchPicture):
    """Images without their padding, each scaled to its own range, with boxes and classes."""

    def __init__(self, images: Count = 4):
        super().__init__(images)

    def draw(self, module: Any, batch: Batch, names: list[str]) -> tuple[list[Tensor], list[str]]:
        samples = list(zip(*batch, strict=True))[: self.images]
        pictures = [boxed(*sample, names) for sample in samples]
        return pictures, [f"{len(target['labels'])} objects" for _, _, target in samples]


def boxed(image: Tensor, padding: Tensor, target: dict[str, Tensor], names: list[str]) -> Tensor:
    """An image (3, H, W) with its boxes: (h, w, 3) in 0..1, at a readable size."""
    height, width = unpadded_size(padding)
    picture, _ = readable(to_pil(rgb(image[None, :, :height, :width])[0]), READABLE)
    boxes = box_convert(target["boxes"].float().cpu(), "cxcywh", "xyxy")
    labels = target["labels"].tolist()
    colors = [class_color(label) for label in labels]
    captions = [class_name(names, label) for label in labels]
    drawn = draw_boxes(picture, boxes * torch.tensor(picture.size * 2), colors, 2, captions)
    return pil_to_tensor(drawn).movedim(0, -1) / 255
