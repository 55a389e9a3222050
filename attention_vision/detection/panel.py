"""Validation images with true and detected boxes, as a file and as W&B's interactive boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.data.loading import data_of
from attention_vision.data.samples import evenly_spaced
from attention_vision.detection.attention_figures import attention_sheet
from attention_vision.detection.data import Batch, collate
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import (
    WHITE,
    class_color,
    class_name,
    draw_detections,
    readable,
    side_by_side,
    to_pil,
    unpadded_size,
)
from attention_vision.ranges import Count, Probability, checked
from attention_vision.training.logging import image_loggers
from attention_vision.visualization.drawing import rgb, with_legend

LONGEST = 480  # pixels of an image's longer side in the panel
MOST_CLASSES = 20  # in the legend
INTERACTIVE = 30  # boxes an image that W&B gets, whatever their scores: its slider hides them


@checked
class DetectionPanel(Callback):
    """Logs pictures once per validation, from rank zero.

    `val/panel`: images with ground truth and detections. `val/attention`, of DETR: attention of the
    queries of the best detections, on the first image that has objects. Both go to every logger
    that has `log_image`: W&B, and the run folder's pictures/. `val/boxes`, to W&B alone: the same
    images with its interactive boxes.

    Args:
        images: how many, spread evenly over the validation set, which may be sorted; of the first
            batch where the data does not say what it validates on.
        threshold: the least score that the panel draws.
    """

    def __init__(self, images: Count = 6, threshold: Probability = 0.5):
        self.images, self.threshold = images, threshold

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: Any,  # a Detector
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = image_loggers(trainer)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        names = list(getattr(data_of(trainer), "class_names", ()))
        samples, found, pictures = self.chosen(trainer, batch), [], []
        for images, padding_mask, _ in samples:
            with torch.no_grad():
                found += module.detect(images, padding_mask)
            height, width = unpadded_size(padding_mask[0])
            pictures.append(to_pil(rgb(images[..., :height, :width])[0]))
        targets = [target for _, _, (target,) in samples]
        boxes = [target["boxes"].float().cpu() for target in targets]
        truths = [box_convert(one, "cxcywh", "xyxy") for one in boxes]
        pages = {"val/panel": panel(pictures, found, truths, names, self.threshold)}
        if isinstance(module.network, DETR):
            first = next((index for index, truth in enumerate(truths) if len(truth)), 0)
            images, padding_mask, _ = samples[first]
            page = attention_sheet(module.network, images[0], padding_mask[0], names)
            pages["val/attention"] = page
        for logger in loggers:
            for key, page in pages.items():
                logger.log_image(key, [page])
            if isinstance(logger, WandbLogger):
                boxes = [
                    interactive(one, truth, target["labels"], names, module.network.num_classes)
                    for one, truth, target in zip(found, truths, targets, strict=True)
                ]
                enlarged = [readable(picture)[0] for picture in pictures]
                logger.log_image("val/boxes", enlarged, boxes=boxes)

    def chosen(self, trainer: Trainer, batch: Batch) -> list[Batch]:
        """Batches of one image each, which so needs little memory and no padding, on the device."""
        source = getattr(data_of(trainer), "val_images", None)
        if source is None:
            images, padding_mask, targets = batch
            parts = (slice(index, index + 1) for index in range(min(self.images, len(targets))))
            return [(images[part], padding_mask[part], targets[part]) for part in parts]
        alone = [collate([sample]) for sample in evenly_spaced(source, self.images)]
        return [
            (images.to(batch[0]), padding_mask.to(batch[1]), targets)
            for images, padding_mask, targets in alone
        ]


def panel(
    pictures: list[Image.Image],
    found: list[dict[str, Tensor]],
    truths: list[Tensor],
    names: Sequence[str],
    threshold: float,
    columns: int = 3,
) -> np.ndarray:
    """Images with boxes in 0..1 xyxy side by side over a legend, (H, W, 3) uint8."""
    drawings = []
    for picture, one, truth in zip(pictures, found, truths, strict=True):
        size = torch.tensor(picture.size * 2)
        pixels = one | {"boxes": one["boxes"].float().cpu() * size}
        drawings.append(draw_detections(picture, pixels, names, threshold, truth * size, LONGEST))
    labels = torch.cat([one["labels"][one["scores"] >= threshold].cpu() for one in found])
    classes = labels.unique().tolist()[:MOST_CLASSES]
    found_classes = [(class_color(label), class_name(names, label)) for label in classes]
    said = f"{'detections' if classes else 'no detections'} with a score of {threshold:g} or more"
    return with_legend(
        side_by_side(drawings, columns), [(WHITE, "true box"), (None, said), *found_classes]
    )


def interactive(
    found: dict[str, Tensor],
    truth: Tensor,
    labels: Tensor,
    names: Sequence[str],
    num_classes: int,
) -> dict[str, dict[str, Any]]:
    """The boxes of one image as wandb.Image takes them, corners in 0..1."""
    class_labels = {label: class_name(names, label) for label in range(num_classes)}
    best = found["scores"].argsort(descending=True, stable=True)[:INTERACTIVE]

    def position(box: list[float]) -> dict[str, float]:
        return dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))

    predictions = [
        {
            "position": position(box),
            "class_id": label,
            "box_caption": f"{class_labels[label]} {score:.2f}",
            "scores": {"score": score},
        }
        for box, label, score in zip(
            found["boxes"][best].tolist(),
            found["labels"][best].tolist(),
            found["scores"][best].tolist(),
            strict=True,
        )
    ]
    objects = [
        {"position": position(box), "class_id": label, "box_caption": class_labels[label]}
        for box, label in zip(truth.tolist(), labels.tolist(), strict=True)
    ]
    return {
        "predictions": {"box_data": predictions, "class_labels": class_labels},
        "ground_truth": {"box_data": objects, "class_labels": class_labels},
    }
