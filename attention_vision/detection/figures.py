"""Pictures of detection: boxes on images, and what each query of DETR attends to."""

import colorsys
from collections.abc import Sequence
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from attention_vision.attention import record_attention
from attention_vision.detection.attention_rcnn import AttentionRCNN
from attention_vision.detection.boxes import to_corners, to_pixels
from attention_vision.detection.data import Batch, collate
from attention_vision.detection.detr import DETR
from attention_vision.figures import overlay, rgb, scaled, sheet, spread

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
LEAST = 320  # pixels of the longer side, below which labels cannot be read
INTERACTIVE = 30  # boxes an image that W&B gets, whatever their scores: its slider hides them


def drawn(
    image: Image.Image,
    detections: dict[str, Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    truth: Tensor | None = None,
    most: int | None = None,
) -> Image.Image:
    """An RGB copy with detections in the colour of their class, each with its label and score.

    A small image is enlarged by a whole factor, so that boxes and labels can be read.

    Args:
        image: of any mode.
        detections: `boxes` (k, 4) xyxy in pixels of the image, `scores` and `labels` (k,).
        names: of the labels; without any, their numbers are written.
        threshold: the least score that is drawn.
        truth: (n, 4) xyxy, drawn in thin white.
        most: pixels of the longer side; a larger image is shrunk.
    """
    picture, scale = fitted(image, most)
    pen, longer = ImageDraw.Draw(picture), max(picture.size)
    font = ImageFont.truetype(FONT, max(12, longer // 60))
    boxes, scores, labels = (
        detections[key].detach().cpu() for key in ("boxes", "scores", "labels")
    )
    order = scores.argsort(stable=True)  # the best lie on top
    order = order[scores[order] >= threshold]
    shown = list(
        zip(boxes[order].tolist(), scores[order].tolist(), labels[order].tolist(), strict=True)
    )
    for box, _, label in shown:
        frame(pen, box, scale, colour(label), max(2, longer // 300))
    for box in [] if truth is None else truth.tolist():
        frame(pen, box, scale, (255, 255, 255), 1)
    for box, score, label in shown:
        write(pen, box, scale, colour(label), f"{name(names, label)} {score:.2f}", font)
    return picture


def fitted(image: Image.Image, most: int | None = None) -> tuple[Image.Image, float]:
    """A copy of readable size, and by how much it is larger."""
    longer, scale = max(image.size), 1.0
    if longer < LEAST:
        scale = float(ceil(LEAST / longer))
    elif most is not None and longer > most:
        scale = most / longer
    size = [max(1, round(length * scale)) for length in image.size]
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, kind), scale


def frame(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    scale: float,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """The outline of a box xyxy, which stays inside the picture."""
    last = [side - 1 for side in pen.im.size] * 2
    corners = [min(max(round(place * scale), 0), end) for place, end in zip(box, last, strict=True)]
    pen.rectangle(corners, outline=colour, width=width)


def write(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    scale: float,
    colour: tuple[int, int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """A text on the colour of its box: above the box where there is room, else inside of it."""
    *_, width, height = (ceil(length) + 4 for length in pen.textbbox((0, 0), text, font, "la"))
    left = max(0, min(round(box[0] * scale), pen.im.size[0] - width))
    top = round(box[1] * scale)
    top = top - height if top >= height else max(0, top)
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    pen.text((left + 2, top + 2), text, "black" if bright else "white", font, "la")


def colour(label: int) -> tuple[int, int, int]:
    """Of a class; steps of the golden ratio keep neighbours apart, at any number of classes."""
    hue = label * 0.6180339887 % 1
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))


def name(names: Sequence[str], label: int) -> str:
    return names[label] if names else str(label)


def picture_of(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> a PIL image."""
    return Image.fromarray((pixels * 255).round().byte().numpy())


def extent(padding_mask: Tensor) -> tuple[int, int]:
    """(H, W) bool, True where padded -> height and width without the padding."""
    return tuple(int((~padding_mask).any(axis).sum()) for axis in (1, 0))


def query_attention(network: DETR, images: Tensor, padding_mask: Tensor) -> Tensor:
    """What each query attends to in the last decoder layer, mean of the heads.

    Shape: images (B, 3, H, W), padding_mask (B, H, W) -> (B, Q, H, W), each map scaled to 0..1 over
    the image without its padding, where it is 0

    The memory is that of Q pictures an image: `attention_sheet` keeps the best queries only.
    """
    _, layers = _cross_attention(network, images, padding_mask)
    (weights,) = (rows.mean(1) for rows in layers.values())
    maps = weights.new_zeros(*weights.shape[:2], *images.shape[2:])
    for place, (rows, mask) in enumerate(zip(weights, padding_mask, strict=True)):
        height, width = extent(mask)
        maps[place, :, :height, :width] = _on_image(rows, network, mask)
    return maps


def attention_sheet(
    network: DETR,
    image: Tensor,
    padding_mask: Tensor,
    names: Sequence[str],
    count: int = 4,
    layers: Sequence[str] | None = None,
    heads: bool = False,
) -> np.ndarray:
    """The best-scored detections of an image, and below each what its query attends to.

    Shape: image (3, H, W) normalised, padding_mask (H, W) -> (height, width, 3) uint8

    Args:
        names: of the labels; without any, their numbers are written.
        count: detections, at most.
        layers: names of cross-attentions of the decoder, a row each; the last where none are given.
        heads: a row more for each head.
    """
    outputs, weights = _cross_attention(network, image[None], padding_mask[None], layers)
    # As DETRDetector reads its detections: the likeliest class other than no-object.
    scores, labels = outputs["logits"][0].float().softmax(-1)[:, :-1].max(-1)
    scores, best = scores.sort(descending=True, stable=True)
    scores, best = scores[:count], best[:count]
    height, width = extent(padding_mask)
    size = torch.tensor([height, width])
    boxes = to_pixels(outputs["boxes"][0, best].float().cpu(), size).tolist()
    labels = labels[best].tolist()

    maps = {}
    for layer, rows in weights.items():
        row = "attention of the query" if layers is None else layer.removeprefix("transformer.")
        maps[row] = _on_image(rows[0, :, best].mean(0), network, padding_mask)
        for head in range(rows.shape[1]) if heads else ():
            maps[f"{row}\nhead {head}"] = _on_image(rows[0, head, best], network, padding_mask)
    titles = [
        f"{name(names, label)} {score:.2f}"
        for label, score in zip(labels, scores.tolist(), strict=True)
    ]
    return detection_rows(image[:, :height, :width], boxes, labels, titles, maps)


def detection_rows(
    image: Tensor,
    boxes: list[list[float]],
    labels: list[int],
    titles: list[str],
    maps: dict[str, Tensor],
) -> np.ndarray:
    """Detections side by side, and below them rows of maps, as (height, width, 3) uint8.

    Args:
        image: (3, H, W) without padding, of any range.
        boxes: xyxy in its pixels.
        labels: of their colours.
        titles: over the detections.
        maps: name of a row -> (detections, H, W) in 0..1.
    """
    plain, colours = rgb(image[None])[0], [colour(label) for label in labels]
    if not boxes:
        picture = torch.from_numpy(np.array(fitted(picture_of(plain), LEAST)[0])) / 255
        return sheet([[picture]], [["nothing detected"]], [""], inches=2.4)
    rows = [[_framed(plain, *pair) for pair in zip(boxes, colours, strict=True)]]
    for of_row in maps.values():
        covered = overlay(image[None].cpu(), of_row)
        rows.append([_framed(*parts) for parts in zip(covered, boxes, colours, strict=True)])
    return sheet(rows, [titles, *[[] for _ in maps]], ["detections", *maps], inches=2.4)


def _cross_attention(
    network: DETR, images: Tensor, padding_mask: Tensor, layers: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The last layer's outputs, and attention to the grid, (B, h, Q, N) of the named layers.

    Where none are named, of the last.
    """
    if layers is None:
        layers = [f"transformer.decoder.{len(network.transformer.decoder) - 1}.cross_attention"]
    with torch.no_grad(), record_attention(network, layers) as maps:
        outputs = network(images, padding_mask)[-1]
    return outputs, {name: rows.float() for name, rows in maps.items()}


def proposal_sheet(
    image: Tensor,
    found: dict[str, Tensor],
    proposals: Tensor,
    maps: Tensor,
    names: Sequence[str],
    count: int = 4,
) -> np.ndarray:
    """The best detections of an image, and below each where its class looked in its proposal.

    Shape: image (3, H, W) without padding -> (height, width, 3) uint8

    Args:
        found, proposals, maps: of `proposal_attention`.
        names: of the labels; without any, their numbers are written.
        count: detections, at most.
    """
    height, width = image.shape[1:]
    covers = torch.zeros(min(count, len(maps)), height, width)
    for cover, box, places in zip(covers, proposals.cpu(), maps.cpu(), strict=False):
        left, top = (int(place) for place in box[:2].floor())
        right, low = (int(place) for place in box[2:].ceil())
        size = max(low - top, 1), max(right - left, 1)
        inside = F.interpolate(places[None, None], size, mode="bilinear")[0, 0]
        part = cover[top : top + size[0], left : left + size[1]]
        part.copy_(inside[: part.shape[0], : part.shape[1]])
    labels, scores = (found[key][:count].tolist() for key in ("labels", "scores"))
    boxes = found["boxes"][:count].float().cpu() * torch.tensor([width, height, width, height])
    titles = [
        f"{name(names, label)} {score:.2f}" for label, score in zip(labels, scores, strict=True)
    ]
    row = {"attention of the class\nin its proposal": scaled(covers)} if len(covers) else {}
    return detection_rows(image, boxes.tolist(), labels, titles, row)


def proposal_attention(
    network: AttentionRCNN, image: Tensor, padding_mask: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Detections, the proposal that each was read from, and what its class attended to there.

    Shape: image (3, H, W), padding_mask (H, W) -> detections as the network gives them, proposals
    (k, 4) xyxy in pixels, maps (k, 3, 3) over them, each of sum 1
    """
    heads, seen = network.roi_heads, {}
    hooks = [
        heads.box_roi_pool.register_forward_pre_hook(
            lambda _, given: seen.update(proposals=given[1][0])
        ),
        heads.box_predictor.register_forward_hook(lambda _, __, y: seen.update(deltas=y[1])),
    ]
    layer = "roi_heads.box_head.pool"
    try:
        with torch.no_grad(), record_attention(network, [layer]) as weights:
            (found,) = network(image[None], padding_mask[None])
    finally:
        for hook in hooks:
            hook.remove()
    height, width = extent(padding_mask)
    classes = found["labels"] + 1  # background is 0
    decoded = heads.box_coder.decode(seen["deltas"], [seen["proposals"]])  # (P, K, 4)
    decoded = clip_boxes_to_image(decoded, (height, width))
    boxes = found["boxes"] * decoded.new_tensor([width, height, width, height])
    source = (decoded[:, classes] - boxes).abs().sum(-1).argmin(0)  # (k,), of the P proposals
    rows = weights[layer][source, 0, classes].float()
    side = isqrt(rows.shape[1])
    return found, seen["proposals"][source], rows.unflatten(1, (side, side))


def _on_image(weights: Tensor, network: DETR, padding_mask: Tensor) -> Tensor:
    """(Q, N) of one image's grid -> (Q, h, w) in 0..1, without its padding.

    Padding is cut off first: its zeros would be blended into the image's last pixels.
    """
    stride = network.backbone.strides[-1]
    grid = [ceil(length / stride) for length in padding_mask.shape]
    height, width = extent(padding_mask)
    maps = weights.unflatten(1, grid)[:, : ceil(height / stride), : ceil(width / stride)]
    maps = F.interpolate(maps[:, None], scale_factor=stride, mode="bilinear")[:, 0]
    return scaled(maps[:, :height, :width])


def _framed(pixels: Tensor, box: list[float], colour: tuple[int, int, int]) -> Tensor:
    """(H, W, 3) in 0..1 -> the same at the size of a sheet's pictures, with one box."""
    picture, scale = fitted(picture_of(pixels), LEAST)
    frame(ImageDraw.Draw(picture), box, scale, colour, 3)
    return torch.from_numpy(np.array(picture)) / 255


class DetectionPanel(Callback):
    """Logs pictures once per validation, from rank zero.

    `val/panel`: images with ground truth and detections. `val/attention`, of DETR: what the queries
    of the best detections attend to, on the first image that has objects. Both go to every logger
    that has `log_image`: W&B, and the run folder's pictures/. `val/boxes`, to W&B alone: the same
    images with its interactive boxes.

    Args:
        images: how many, spread evenly over the validation set, which may be sorted; of the first
            batch where the data does not say what it validates on.
        threshold: the least score that the panel draws.
    """

    def __init__(self, images: int = 6, threshold: float = 0.5):
        self.images, self.threshold = images, threshold

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        names = list(getattr(trainer.datamodule, "class_names", ()))
        samples, found, pictures = self.chosen(trainer, batch), [], []
        for images, padding_mask, _ in samples:
            with torch.no_grad():
                found += module.detect(images, padding_mask)
            height, width = extent(padding_mask[0])
            pictures.append(picture_of(rgb(images[..., :height, :width])[0]))
        targets = [target for _, _, (target,) in samples]
        truths = [to_corners(target["boxes"].float().cpu()) for target in targets]
        pages = {"val/panel": panel(pictures, found, truths, names, self.threshold)}
        if isinstance(module.network, DETR):
            first = next((place for place, truth in enumerate(truths) if len(truth)), 0)
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
                enlarged = [fitted(picture)[0] for picture in pictures]
                logger.log_image("val/boxes", enlarged, boxes=boxes)

    def chosen(self, trainer: Trainer, batch: Batch) -> list[Batch]:
        """Batches of one image each, which so needs little memory and no padding, on the device."""
        source = getattr(trainer.datamodule, "val_images", None)
        if source is None:
            count = min(self.images, len(batch[2]))
            return [tuple(part[place : place + 1] for part in batch) for place in range(count)]
        alone = [collate([sample]) for sample in spread(source, self.images)]
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
    """Images with boxes in 0..1 xyxy side by side, (H, W, 3) uint8."""
    drawings = []
    for picture, one, truth in zip(pictures, found, truths, strict=True):
        size = torch.tensor(picture.size * 2)
        pixels = one | {"boxes": one["boxes"].float().cpu() * size}
        drawings.append(drawn(picture, pixels, names, threshold, truth * size, LEAST))
    columns = min(columns, len(drawings))
    wide, high = (max(sides) + 4 for sides in zip(*(one.size for one in drawings), strict=True))
    page = Image.new("RGB", (wide * columns, high * ceil(len(drawings) / columns)), "white")
    for place, drawing in enumerate(drawings):
        page.paste(drawing, (place % columns * wide + 2, place // columns * high + 2))
    return np.array(page)


def interactive(
    found: dict[str, Tensor],
    truth: Tensor,
    labels: Tensor,
    names: Sequence[str],
    num_classes: int,
) -> dict[str, dict[str, Any]]:
    """The boxes of one image as wandb.Image takes them, corners in 0..1."""
    class_labels = {label: name(names, label) for label in range(num_classes)}
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
