"""Bipartite matching of queries and objects."""

import warnings

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert

from attention_vision.detection.boxes import giou
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked

LARGE = 1e9  # a cost beyond all others
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # of the focal loss (arXiv 1708.02002, Table 1b), as released
Outputs = list[dict[str, Tensor]]
Targets = list[dict[str, Tensor]]
Matches = list[list[tuple[Tensor, Tensor]]]


@checked
class HungarianMatcher(nn.Module):
    """Assigns objects to queries at the least total cost (DETR, arXiv 2005.12872, eq. 1).

    Cost of a pair: class_cost * -probability of the object's class + box_cost * L1 distance of the
    boxes (cxcywh) + giou_cost * -GIoU.

    The release builds the costs of every query of the batch against every object of the batch,
    layer by layer, and throws all but the diagonal blocks away. Here an image's queries meet only
    its own objects, padded to the most that an image of the batch has, and all decoder layers
    leave the device in one transfer.

    An image without objects has no pair. With more objects than queries, as in the release, every
    query gets an object and the objects that would cost most have none; the first time this
    happens, a warning says so.
    """

    def __init__(
        self,
        class_cost: NonNegative = 1.0,
        box_cost: NonNegative = 5.0,
        giou_cost: NonNegative = 2.0,
    ):
        super().__init__()
        if not (class_cost or box_cost or giou_cost):
            raise InputError("model: class_cost, box_cost or giou_cost has to be above 0")
        self.class_cost = class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost
        self.warned = False

    @torch.no_grad()
    def forward(self, outputs: Outputs, targets: Targets) -> Matches:
        """Match every decoder layer by itself.

        Args:
            outputs: of L layers, `logits` (B, Q, num_classes + 1) and `boxes` (B, Q, 4) cxcywh.
            targets: of B images, `labels` (n,) and `boxes` (n, 4) cxcywh; `image_id` for messages.

        Returns:
            for every layer, for every image, (query indices, object indices), int64 on the CPU,
            queries in ascending order.

        Raises:
            InputError: a label is outside the classes, or a box not finite; names the image.
        """
        counts = [len(target["labels"]) for target in targets]
        costs = self.costs(outputs, targets, max(counts)).cpu()
        if not costs.isfinite().all():  # perhaps only where padded
            self.refuse(costs, outputs, targets)
            # The network's own numbers: such queries are matched first, so that the loss is not
            # finite either, which `FiniteSteps` looks at.
            costs = costs.nan_to_num(-LARGE, -LARGE, -LARGE)
        self.warn(counts, costs.shape[-1], targets)
        matches = []
        for layer in costs.numpy():
            pairs = [
                linear_sum_assignment(image[:count].T)
                for image, count in zip(layer, counts, strict=True)
            ]
            matches.append(
                [
                    (torch.from_numpy(queries), torch.from_numpy(objects))
                    for queries, objects in pairs
                ]
            )
        return matches

    def costs(self, outputs: Outputs, targets: Targets, most: int) -> Tensor:
        """(L, B, most, Q) in fp32, also under autocast; NaN where a label is not a class."""
        boxes = torch.stack([layer["boxes"] for layer in outputs]).float()
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=boxes.device)
        objects = boxes.new_zeros(len(targets), most, 4)
        for image, target in enumerate(targets):
            labels[image, : len(target["labels"])] = target["labels"]
            objects[image, : len(target["labels"])] = target["boxes"]

        classes = self.classes(outputs)
        wanted = labels.clamp(0, classes - 1)[:, None].expand(-1, boxes.shape[2], -1)
        # Layer by layer, since the probabilities of all classes are by far the largest tensor.
        score = torch.stack([self.score(layer["logits"].float(), wanted) for layer in outputs]).mT
        no_class = (labels < 0) | (labels >= classes)
        score = score.masked_fill(no_class[..., None], torch.nan)

        boxes, objects = boxes[:, :, None], objects[:, :, None]  # (L, B, 1, Q, 4), (B, n, 1, 4)
        distance = sum(
            (a - b).abs()
            for a, b in zip(planar(boxes).unbind(-1), planar(objects).unbind(-1), strict=True)
        )
        overlap = giou(*(planar(box_convert(one, "cxcywh", "xyxy")) for one in (boxes, objects)))
        return self.box_cost * distance - self.class_cost * score - self.giou_cost * overlap

    def classes(self, outputs: Outputs) -> int:
        """Number of classes of these outputs, without no-object."""
        return outputs[0]["logits"].shape[-1] - 1

    def score(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """How well queries fit to objects by class: logits (B, Q, ...) and classes (B, Q, n)."""
        return logits.softmax(-1).gather(-1, wanted)

    def refuse(self, costs: Tensor, outputs: Outputs, targets: Targets) -> None:
        """Raise one line that names the first image whose annotations have no cost, and why."""
        for image, target in enumerate(targets):
            labels, objects = target["labels"], target["boxes"]
            bad = ~costs[:, image, : len(labels)].isfinite()
            if not bad.any():
                continue
            classes = self.classes(outputs)
            outside = labels[(labels < 0) | (labels >= classes)]
            if len(outside):
                reason = f"label {int(outside[0])} is none of 0..{classes - 1}; labels start at 0"
            elif not objects.isfinite().all():
                reason = "a box of its annotations is not finite; correct the annotations"
            else:
                continue
            raise InputError(f"image {image_name(target, image)}: no matching cost, {reason}")

    def warn(self, counts: list[int], queries: int, targets: Targets) -> None:
        if self.warned or max(counts) <= queries:
            return
        self.warned = True
        image = counts.index(max(counts))
        warnings.warn(
            f"image {image_name(targets[image], image)} has {max(counts)} objects and the model"
            f" only {queries} queries: the others are not trained on; raise num_queries",
            stacklevel=3,
        )


@checked
class FocalMatcher(HungarianMatcher):
    """`HungarianMatcher` for a sigmoid per class, as released with Deformable DETR.

    The class cost of a pair is what the focal loss (arXiv 1708.02002) of the object's class would
    change by if it were present: loss if it is minus loss if it is not.
    """

    def __init__(
        self,
        class_cost: NonNegative = 2.0,
        box_cost: NonNegative = 5.0,
        giou_cost: NonNegative = 2.0,
    ):
        super().__init__(class_cost, box_cost, giou_cost)

    def classes(self, outputs: Outputs) -> int:
        return outputs[0]["logits"].shape[-1]

    def score(self, logits: Tensor, wanted: Tensor) -> Tensor:
        probability = logits.gather(-1, wanted).sigmoid()
        absent = -(1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * (1 - probability + 1e-8).log()
        present = -FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * (probability + 1e-8).log()
        return absent - present


def planar(boxes: Tensor) -> Tensor:
    """The same boxes, each coordinate adjacent in memory: arithmetic on them is vectorized."""
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def image_name(target: dict[str, Tensor], index: int) -> str:
    """The name of an image in messages: its id, or its index in the batch."""
    return str(int(target["image_id"])) if "image_id" in target else f"{index} of the batch"
