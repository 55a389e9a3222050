"""Faster R-CNN whose box head may attend: the parts of torchvision around a backbone of ours."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from attention_vision.attention import AttentionPool, LearnedPosition
from attention_vision.backbones import ResNet
from attention_vision.backbones.backbone import Backbone
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.criterion import without_crowds
from attention_vision.detection.matcher import image_name
from attention_vision.errors import InputError
from attention_vision.ranges import (
    Count,
    Positive,
    Probability,
    Range,
    Size,
    checked,
)

GRID = (7, 7)  # cells of a proposal (Faster R-CNN; arXiv 1612.03144, section 5.2)

BoxHead = Callable[[int, int], nn.Module]


@checked
class PlainBoxHead(nn.Module):
    """The box head of Faster R-CNN with a pyramid (arXiv 1612.03144, section 5.2).

    Shape: (P, C, 7, 7) -> logits (P, K) and box deltas (P, 4 K) of P proposals, K with background

    Torchvision's: two layers over all cells at once, from which every class is read. With 256
    channels and K = 91, 14.4 M parameters and as many multiply-adds per proposal.

    Args:
        channels: C.
        classes: K, background first.
        hidden: width of both layers.
    """

    def __init__(self, channels: Size, classes: int, hidden: Size = 1024):
        super().__init__()
        self.layers = TwoMLPHead(channels * GRID[0] * GRID[1], hidden)
        self.predictor = FastRCNNPredictor(hidden, classes)

    def forward(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor(self.layers(proposals))


@checked
class AttentionBoxHead(nn.Module):
    """A box head in which every class looks at a proposal for itself.

    Shape: (P, C, 7, 7) -> logits (P, K) and box deltas (P, 4 K) of P proposals, K with background

    Two 3x3 convolutions that do not go beyond the border leave 3x3 cells, of which each has seen
    5x5 of the proposal: the content of one cell hardly tells classes apart (digits stay
    unread). A learned vector tells the cells apart. K class embeddings pool them, and logit and
    box of class k are read from the vector that class k pooled. Queries start at 0, so that the
    head starts as the mean over cells under torchvision's predictor: over few of them, since what
    one cell says is lost in the mean of many, and is learned late.

    Each class has its own row in the predictor, as in the plain head: were one row shared, classes
    could differ by nothing but by where they look, and would all start alike.

    Cost with 256 channels and K = 91, plain in brackets: 3.8 M parameters (14.4 M), 52 M
    multiply-adds per proposal (14.4 M). Weights that cells share are used for every cell, so
    that not both can be equal.

    Args:
        channels: C.
        classes: K, background first.
        hidden: width of both layers and of the class embeddings.
    """

    def __init__(self, channels: Size, classes: int, hidden: Size = 512):
        super().__init__()
        convolutions = nn.Conv2d(channels, hidden, 3), nn.Conv2d(hidden, hidden, 3)
        self.layers = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])
        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType] never None here
        self.position = LearnedPosition(hidden, (GRID[0] - 4, GRID[1] - 4))
        nn.init.normal_(self.position.table, std=0.5)  # beside features of about 1
        self.pool = AttentionPool(hidden, queries=classes)
        self.predictor = FastRCNNPredictor(hidden, classes)

    def forward(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.layers(proposals).flatten(2).mT  # (P, 9, hidden)
        return self.read(self.pool((cells + self.position()).relu()))

    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The predictor, each class on its own vector: (P, K, C) -> (P, K), (P, 4 K)."""
        score, delta = self.predictor.cls_score, self.predictor.bbox_pred
        of_box = delta.weight.unflatten(0, (-1, 4))  # (K, 4, C)
        logits = torch.einsum("pkc,kc->pk", pooled, score.weight) + score.bias
        deltas = torch.einsum("pkc,kdc->pkd", pooled, of_box).flatten(1) + delta.bias
        return logits, deltas


class SinglePrecision(nn.Module):
    """Two outputs of a head in fp32: decoded from bf16, a box is off by several pixels."""

    def forward(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = outputs
        return first.float(), second.float()


class ProposalHead(RPNHead):
    """Torchvision's, with outputs in fp32 for the same reason."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(maps)
        return [one.float() for one in objectness], [one.float() for one in deltas]


@checked
class AttentionRCNN(nn.Module):
    """Faster R-CNN (arXiv 1506.01497) on a feature pyramid, its box head a slot.

    `AttentionRCNN(head=PlainBoxHead)` is torchvision's Faster R-CNN R50-FPN, number for number,
    the default being the same with class embeddings that attend over each proposal. Torchvision
    counts background as class 0 and with it 91 classes: its 41,755,286 parameters are those of
    `num_classes=90`, whose label 0 is its label 1.

    In training `model(images, padding_mask, targets)` returns the losses `total` and its parts
    `rpn_class`, `rpn_box`, `class`, `box`. In evaluation `model(images, padding_mask)` returns for
    every image `boxes` (k, 4) xyxy in 0..1 of the image without its padding, `scores` (k,), and
    `labels` (k,) in 0..num_classes - 1, best first, which do not depend on the other images.

    The numbers are torchvision's recipe. Levels have the strides S of the backbone's maps, and one
    more with twice the last; a proposal is pooled from the map in which its side, the root of its
    area, is 14 to 28 cells (224 pixels at stride 16), or else from the nearest there is.

    Args:
        num_classes: without background.
        backbone: computes the maps of the pyramid. Its parameters are shared, but for a
            classifier; it stays as it is. By default ResNet-50 with frozen norms, the stem and the
            first stage not trained.
        head: the factory of the slot, (channels, classes with background) -> module: `PlainBoxHead`
            or `AttentionBoxHead`.
        pyramid_channels: channels of every level.
        first_stage: of the backbone's maps, counted from 1, that is part of the pyramid. Without
            those of small strides it costs much less.
        anchor_sizes: side of the square anchor of each level, in pixels; 8 S when not given, which
            is 32 to 512 for the strides 4 to 64.
        anchor_ratios: height / width of the anchors at every cell.
        train_proposals: most per level before non-maximum suppression, and per image after it.
        eval_proposals: the same in evaluation.
        sampled_anchors: of an image, on which the proposals are trained, at most half of them on
            objects.
        sampled_proposals: of an image, on which the head is trained, at most a quarter on objects.
        score_threshold: detections have a larger probability.
        nms_threshold: IoU above which of two detections of a class only the better one stays.
        detections: most per image.

    Raises:
        InputError: the sizes of the anchors are not one per level, or a number is out of range.
    """

    def __init__(
        self,
        num_classes: Count = 91,
        backbone: Backbone | None = None,
        head: BoxHead = AttentionBoxHead,
        pyramid_channels: Size = 256,
        first_stage: Annotated[int, Range(1, 4)] = 1,
        anchor_sizes: tuple[Positive, ...] | None = None,
        anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0),
        train_proposals: Count = 2000,
        eval_proposals: Count = 1000,
        sampled_anchors: Count = 256,
        sampled_proposals: Count = 512,
        score_threshold: Probability = 0.05,
        nms_threshold: Probability = 0.5,
        detections: Count = 100,
    ):
        super().__init__()
        if backbone is None:
            backbone = ResNet(50, num_classes=0, norm=FrozenBatchNorm2d, trainable_stages=3)
        if not 1 <= first_stage <= len(backbone.strides):
            raise InputError(
                f"AttentionRCNN: first_stage {first_stage} is none of the backbone's maps, "
                f"1..{len(backbone.strides)}"
            )
        if not anchor_ratios:
            raise InputError("AttentionRCNN: anchor_ratios is empty: name at least one")
        self.num_classes = num_classes
        self.first_stage = first_stage
        strides = backbone.strides[first_stage - 1 :]
        levels = (*strides, 2 * strides[-1])
        anchor_sizes = anchor_sizes or tuple(8 * stride for stride in levels)
        if len(anchor_sizes) != len(levels):
            raise InputError(
                f"AttentionRCNN: {len(anchor_sizes)} anchor_sizes for {len(levels)} levels, of "
                f"strides {', '.join(map(str, levels))}; give one per level"
            )

        self.backbone = backbone.without_head()
        self.pyramid = FeaturePyramidNetwork(
            list(backbone.channels[first_stage - 1 :]), pyramid_channels, LastLevelMaxPool()
        )
        proposals = {"training": train_proposals, "testing": eval_proposals}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(
                tuple((size,) for size in anchor_sizes), (tuple(anchor_ratios),) * len(levels)
            ),
            ProposalHead(pyramid_channels, len(anchor_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=sampled_anchors,
            positive_fraction=0.5,
            pre_nms_top_n=proposals,
            post_nms_top_n=proposals,
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            align(strides),
            head(pyramid_channels, num_classes + 1),
            SinglePrecision(),  # the head has predicted already
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=sampled_proposals,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections,
        )

    def forward(
        self, images: Tensor, padding_mask: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: (B, 3, H, W), normalized.
            padding_mask: (B, H, W) bool, True where padded, at the right and at the bottom.
            targets: in training, per image `boxes` (n, 4) cxcywh in 0..1, `labels` (n,), `iscrowd`
                (n,) where known; crowds are not trained on.

        Raises:
            InputError: a label is not a class, or a box is not finite or has no area.
            ValueError: no targets in training.
        """
        sizes = unpadded_sizes(padding_mask)
        if not self.training:
            return self.detect(images, sizes)
        if targets is None:
            raise ValueError("AttentionRCNN: targets are needed in training")
        wanted = self.to_torchvision(targets, sizes)
        batch, maps = self.encode(images, sizes)
        proposals, of_proposals = self.rpn(batch, maps, wanted)
        if any(len(one) for one in proposals) or any(len(one["labels"]) for one in wanted):
            _, of_head = self.roi_heads(maps, proposals, batch.image_sizes, wanted)
        else:  # torchvision's means over no proposals would be 0 / 0; processes wait for gradients
            nothing = 0 * reduce(add, (one.sum() for one in self.roi_heads.parameters()))
            of_head = {"loss_classifier": nothing, "loss_box_reg": nothing}
        losses = {
            "rpn_class": of_proposals["loss_objectness"],
            "rpn_box": of_proposals["loss_rpn_box_reg"],
            "class": of_head["loss_classifier"],
            "box": of_head["loss_box_reg"],
        }
        return {"total": reduce(add, losses.values()), **losses}

    def detect(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections of each image, whatever the batch: images of one size go together, unpadded.

        The zeros of the padding would spread through the norms' shifts into the maps. An image
        whose maps are not finite has one detection that is not finite either; torchvision would
        drop all of them in silence, as scores below the threshold.
        """
        found: dict[int, dict[str, Tensor]] = {}
        heights_widths = [(int(height), int(width)) for height, width in sizes.tolist()]
        for height, width in dict.fromkeys(heights_widths):
            of_size = [i for i, size in enumerate(heights_widths) if size == (height, width)]
            batch, maps = self.encode(images[of_size, :, :height, :width], sizes[of_size])
            proposals, _ = self.rpn(batch, maps)
            detections, _ = self.roi_heads(maps, proposals, batch.image_sizes)
            finite = [level.flatten(1).isfinite().all(1) for level in maps.values()]
            sound = torch.stack(finite).all(0).tolist()
            for index, one, is_finite in zip(of_size, detections, sound, strict=True):
                one = one if is_finite else not_a_detection(images)
                found[index] = from_torchvision(one, sizes[index])
        return [found[index] for index in range(len(images))]

    def encode(self, images: Tensor, sizes: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        """Torchvision's batch of images (B, 3, H, W) of sizes (B, 2), and its pyramid."""
        images = pad_to_stride(images, self.backbone.strides[-1])
        batch = ImageList(images, [tuple(size) for size in sizes.tolist()])
        return batch, self.pyramid_levels(images)

    def compile(self, **options: Any) -> None:
        """Compiles `pyramid_levels`, whose shapes are fixed; the rest varies with the objects."""
        self.pyramid_levels = torch.compile(self.pyramid_levels, **options)

    def pyramid_levels(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of the pyramid, named 0, 1, ... and "pool", fine to coarse."""
        maps = self.backbone.features(images)[self.first_stage - 1 :]
        levels = self.pyramid({str(level): one for level, one in enumerate(maps)})
        # In fp32, since anchors and proposals take their type from the maps: in bf16 there is no
        # pixel 1001, and roi_align and nms have no kernel on a CPU.
        return {level: one.float() for level, one in levels.items()}

    def to_torchvision(
        self, targets: list[dict[str, Tensor]], sizes: Tensor
    ) -> list[dict[str, Tensor]]:
        """Targets with boxes in pixels, xyxy, and labels that count background as 0."""
        targets = [without_crowds(target) for target in targets]
        self.check(targets)
        return [
            {"boxes": to_pixels(target["boxes"].float(), size), "labels": target["labels"] + 1}
            for target, size in zip(targets, sizes, strict=True)
        ]

    def check(self, targets: list[dict[str, Tensor]]) -> None:
        """Raise one line that names the first image with a label or a box that cannot be."""
        labels = torch.cat([target["labels"] for target in targets])
        boxes = torch.cat([target["boxes"] for target in targets])
        no_class = (labels < 0) | (labels >= self.num_classes)
        no_box = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > 0).all(1))
        bad = no_class | no_box
        if not bad.any():
            return
        first = int(bad.nonzero()[0])
        of_object = [image for image, target in enumerate(targets) for _ in target["labels"]]
        image = image_name(targets[of_object[first]], of_object[first])
        if no_class[first]:
            raise InputError(
                f"image {image}: label {int(labels[first])} is none of "
                f"0..{self.num_classes - 1}; labels start at 0"
            )
        raise InputError(
            f"image {image}: the box {boxes[first].tolist()} (cxcywh) is not finite or has no "
            "area; correct the annotations"
        )


def not_a_detection(images: Tensor) -> dict[str, Tensor]:
    """One detection of NaN, in torchvision's format."""
    nan = images.new_full((1, 4), torch.nan, dtype=torch.float32)
    return {"boxes": nan, "scores": nan[:, 0], "labels": images.new_ones(1, dtype=torch.int64)}


def from_torchvision(detections: dict[str, Tensor], size: Tensor) -> dict[str, Tensor]:
    """Torchvision's detections of one image, (h, w), with boxes in 0..1 and labels from 0."""
    return {
        "boxes": detections["boxes"] / size.flip(0).repeat(2),
        "scores": detections["scores"],
        "labels": detections["labels"] - 1,
    }


def unpadded_sizes(padding_mask: Tensor) -> Tensor:
    """Height and width of each image without its padding: (B, H, W) -> (B, 2)."""
    inside = ~padding_mask
    return torch.stack((inside.any(2).sum(1), inside.any(1).sum(1)), 1)


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Zeros at the right and at the bottom, up to a multiple of the stride.

    Anchors are spread evenly over an image: they stand where the map looks only if its cells do
    not hang over the edge.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride))


def align(strides: tuple[int, ...]) -> MultiScaleRoIAlign:
    """Torchvision's, with its scales from the strides.

    Left alone it takes them from the first batch that it sees, for good, and wrongly if these
    images are small: 33 pixels give 2 cells at stride 32.
    """
    pool = MultiScaleRoIAlign(
        [str(level) for level in range(len(strides))], list(GRID), sampling_ratio=2
    )
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.map_levels = LevelMapper(finest, coarsest)
    return pool
