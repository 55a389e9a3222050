"""Denoising: noised objects as further queries, which are told what they have to find."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.ranges import Count, NonNegative, Probability, checked

NEGATIVE, PADDED = -1, -2  # of `objects`
LEAST = 1e-3  # of a number of a noised box, and its distance from 1, as in both papers' code


class Noised(NamedTuple):
    """Noised objects of a batch, D for every image, in groups.

    Attributes:
        labels, boxes: (B, D) and (B, D, 4) cxcywh in 0..1, with noise.
        objects: (B, D), on the CPU: which of the image's objects it is; -1 where it is so far off
            that it is to be no object, and -2 where the image has fewer objects than others.
        size: of a group.
    """

    labels: Tensor
    boxes: Tensor
    objects: Tensor
    size: int

    def mask(self, queries: int) -> Tensor:
        """Which query attends to which, (B, 1, Q + D, Q + D) bool.

        Noised objects see their own group and the queries, which do not see them: they tell where
        the objects are.
        """
        batch, count = self.objects.shape
        group = torch.arange(count) // self.size
        own = (group[:, None] == group) & (self.objects != PADDED)[:, None]  # (B, D, D)
        mask = torch.ones(batch, queries + count, queries + count, dtype=torch.bool)
        mask[:, :queries, queries:] = False
        mask[:, queries:, queries:] = own
        return mask[:, None].to(self.labels.device)


@checked
class Denoising:
    """Noise of DN-DETR (Li et al., arXiv 2203.01305) or DINO (Zhang et al., arXiv 2203.03605).

    A group is every object of an image once, or, `contrastive`, twice: as it should be found, and
    further off, where it is to be no object. As many groups as fit into `queries`, at least one,
    have noise of their own. They train the decoder while its own queries are still matched anew
    from step to step.

    Boxes: as DINO, each corner moves by u w box_noise / 2 and u h box_noise / 2, with |u| in 0..1,
    in the further one in 1..2. Without `contrastive` as DN-DETR, the center moves by up to half of
    w box_noise and h box_noise, and the sides change by up to box_noise of themselves. Boxes are
    cut off at the image's border. Where corners pass each other, in 44 % of the further boxes with
    a `box_noise` of 1, the side is 0.001, as in DINO's code.

    The draws are those of the step's random stream: resumed, a run draws the same.

    Args:
        queries: D, at most, unless one group alone is larger. DINO's option of 100 counts the
            nearer half alone.
        label_noise: probability that a label is drawn anew, from all classes alike: 0.25 in DINO's
            code, whose option of 0.5 is halved.
        box_noise: 1 in DINO's training scripts, which replace the 0.4 of its configuration; 0.4 in
            DN-DETR.
        contrastive: with the further ones.
    """

    def __init__(
        self,
        queries: Count = 200,
        label_noise: Probability = 0.25,
        box_noise: NonNegative = 1.0,
        contrastive: bool = True,
    ):
        self.queries, self.label_noise = queries, label_noise
        self.box_noise, self.contrastive = box_noise, contrastive

    def draw(self, targets: list[dict[str, Tensor]], num_classes: int, like: Tensor) -> Noised:
        """Draw the noised objects of a batch, with the dtype and on the device of `like`.

        Args:
            targets: `labels` (n,) and `boxes` (n, 4) cxcywh in 0..1.
        """
        # At least one place, so that the label embedding has a gradient on every process.
        most = max(1, *(len(target["labels"]) for target in targets))
        size = most * (1 + self.contrastive)
        groups = max(1, self.queries // size)
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=like.device)
        boxes = like.new_full((len(targets), most, 4), 0.5)
        objects = torch.full((len(targets), most), PADDED)
        for image, target in enumerate(targets):
            count = len(target["labels"])
            labels[image, :count] = target["labels"].to(labels)
            boxes[image, :count] = target["boxes"].to(boxes)
            objects[image, :count] = torch.arange(count)
        if self.contrastive:
            labels, boxes = torch.cat((labels, labels), 1), torch.cat((boxes, boxes), 1)
            objects = torch.cat((objects, objects.clamp(max=NEGATIVE)), 1)
        labels, boxes = labels.repeat(1, groups), boxes.repeat(1, groups, 1)
        anew = torch.rand(labels.shape, device=like.device) < self.label_noise
        labels = torch.where(anew, torch.randint_like(labels, num_classes), labels)
        labels = labels.clamp(0, num_classes - 1)  # others are refused by name by the matcher
        objects = objects.repeat(1, groups)
        further = torch.arange(boxes.shape[1], device=like.device) % size >= most
        boxes = self.corners(boxes, further) if self.contrastive else self.sides(boxes)
        return Noised(labels, boxes.clamp(LEAST, 1 - LEAST), objects, size)

    def corners(self, boxes: Tensor, further: Tensor) -> Tensor:
        """Boxes (B, D, 4) whose corners moved, those where `further` (D,) by more."""
        sign = torch.randint(0, 2, boxes.shape, device=boxes.device) * 2 - 1
        far = torch.rand_like(boxes) + further[:, None]
        reach = boxes[..., 2:].repeat(1, 1, 2) / 2 * self.box_noise
        corners = box_convert(boxes, "cxcywh", "xyxy") + sign * far * reach
        return box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")

    def sides(self, boxes: Tensor) -> Tensor:
        """Boxes (B, D, 4) whose centers and sides changed."""
        reach = boxes[..., 2:].repeat(1, 1, 2) * boxes.new_tensor([0.5, 0.5, 1, 1])
        return (boxes + (2 * torch.rand_like(boxes) - 1) * reach * self.box_noise).clamp(0, 1)
