"""The loss of DETR over a set of objects."""

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, sigmoid_focal_loss

from attention_vision.detection.boxes import giou
from attention_vision.detection.denoising import PADDED
from attention_vision.detection.matcher import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    HungarianMatcher,
    Matches,
    Outputs,
    Targets,
)
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, NonNegativeInt, checked
from attention_vision.training.distributed import mean_over_processes


@checked
class SetCriterion(nn.Module):
    """Loss of the matched pairs and of the queries without an object (arXiv 2005.12872, eq. 2).

    For every decoder layer, matched by itself:

    * class: cross-entropy, a weighted mean over queries in which those without an object weigh
      `no_object_weight`;
    * box: L1 distance of matched boxes (cxcywh), and giou: 1 - GIoU, both summed over pairs and
      divided by the number of objects, averaged over processes and at least 1.

    Crowds are not trained on. A batch without objects has box terms of 0, and a class term of 0 if
    `no_object_weight` is 0, that still have a gradient, so that data-parallel training does not
    wait for it.

    Hugging Face with `auxiliary_loss=True` has another loss, because it has another network (see
    `Transformer`); the formula of each layer is the same.

    Args:
        num_classes: without no-object.
        matcher: assigns objects to queries.
        no_object_weight: of queries without an object, against 1 of the others.
        class_weight, box_weight, giou_weight: of the three terms in the total.
        auxiliary: whether all decoder layers are trained, or only the last.
        sync_class_weight: divide the class term by the weights of all processes. Off is the
            release, where every process takes its own mean, and processes with few objects count
            as much as those with many.
    """

    weight_of_class: Tensor

    def __init__(
        self,
        num_classes: NonNegativeInt,
        matcher: HungarianMatcher,
        no_object_weight: NonNegative = 0.1,
        class_weight: NonNegative = 1.0,
        box_weight: NonNegative = 5.0,
        giou_weight: NonNegative = 2.0,
        auxiliary: bool = True,
        sync_class_weight: bool = False,
    ):
        super().__init__()
        if not (class_weight or box_weight or giou_weight):
            raise InputError("model: class_weight, box_weight or giou_weight has to be above 0")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"class": class_weight, "box": box_weight, "giou": giou_weight}
        self.auxiliary = auxiliary
        self.sync_class_weight = sync_class_weight
        weight_of_class = torch.ones(num_classes + 1)
        weight_of_class[-1] = no_object_weight
        self.register_buffer("weight_of_class", weight_of_class, persistent=False)

    def forward(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            outputs: of DETR.
            targets: `labels` (n,), `boxes` (n, 4) cxcywh in 0..1, `iscrowd` (n,) where known.

        Returns:
            scalars: `total`, weighted, over all layers; the unweighted parts of the last layer,
            `class`, `box`, `giou`; and of the layers before it `class_0`, `box_0`, `giou_0`, ...

        Raises:
            InputError: as the matcher.
        """
        outputs = outputs if self.auxiliary else outputs[-1:]
        targets = [without_crowds(target) for target in targets]
        matches = self.matcher(outputs, targets)
        parts = self.parts(outputs, targets, matches)  # (L,) each

        weighted = (weight * parts[key].sum() for key, weight in self.weights.items())
        losses = {"total": reduce(add, weighted)}
        for key, values in parts.items():
            *auxiliary, losses[key] = values.unbind()
            losses |= {f"{key}_{layer}": value for layer, value in enumerate(auxiliary)}
        return losses

    def parts(
        self,
        outputs: Outputs,
        targets: Targets,
        matches: Matches,
        pairs: int | None = None,
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each term of each of the L layers, all layers at once; every layer has as many pairs.

        Args:
            pairs: what the terms are divided by; the number of objects when not given.
            counted: (B, Q) bool, which queries have a class term; all when not given.
        """
        logits = torch.stack([layer["logits"] for layer in outputs]).float()
        boxes = torch.stack([layer["boxes"] for layer in outputs]).float()
        labels = torch.cat([target["labels"] for target in targets]).to(logits.device)
        objects = torch.cat([target["boxes"] for target in targets]).to(boxes)
        query, matched = (
            index.to(logits.device) for index in flat_indices(matches, targets, logits.shape)
        )

        classes = labels.new_full(logits.shape[:3], self.num_classes).flatten()
        classes[query] = labels[matched]
        count = logits.new_tensor([len(labels) if pairs is None else pairs])
        class_term, count = self.class_term(logits, classes, count, counted)

        predicted, wanted = boxes.flatten(0, 2)[query], objects[matched]
        distance = (predicted - wanted).abs().sum(1)
        corners = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (predicted, wanted))
        overlap = giou(*corners)
        per_layer = (len(outputs), len(query) // len(outputs))
        return {
            "class": class_term,
            "box": distance.view(per_layer).sum(1) / count,
            "giou": (1 - overlap).view(per_layer).sum(1) / count,
        }

    def class_term(
        self, logits: Tensor, classes: Tensor, count: Tensor, counted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The class term of each layer (L,), and the number of pairs over all processes.

        Args:
            logits: (L, B, Q, num_classes + 1).
            classes: (L B Q,), `num_classes` for no-object.
            count: (1,), pairs of this process.
            counted: as in `parts`; None here.
        """
        errors = F.cross_entropy(
            logits.flatten(0, 2), classes, self.weight_of_class, reduction="none"
        )
        weights = self.weight_of_class[classes].unflatten(0, (len(logits), -1)).sum(1)
        if self.sync_class_weight:
            weights, count = mean_over_processes(torch.cat((weights, count))).split(
                (len(logits), 1)
            )
        else:
            count = mean_over_processes(count)
        # Without objects and with a no-object weight of 0 nothing weighs: 0, not 0 / 0.
        errors = errors.unflatten(0, (len(logits), -1)).sum(1) / weights.where(weights > 0, 1)
        return errors, count.clamp(1)


@checked
class FocalSetCriterion(SetCriterion):
    """`SetCriterion` for a sigmoid per class (Deformable DETR, arXiv 2010.04159, as released).

    * class: the focal loss (arXiv 1708.02002, eq. 5) of every class of every query, summed and
      divided by the number of objects, averaged over processes;
    * box and giou: as in DETR.

    The encoder's proposals have the same terms, as `class_proposals` and so on, with one class for
    all objects unless `class_aware`. So have noised objects (DINO, arXiv 2203.03605, section 3.3),
    as `class_noised`, which know their object and need no matcher, divided by the number of them
    that are to be found, averaged over processes: each has as many groups as it has room for.
    Padded places have no loss, where DINO's code trains them as no objects.

    Args:
        num_classes, auxiliary: see `SetCriterion`.
        matcher: assigns objects to queries; a `FocalMatcher`.
        class_weight, box_weight, giou_weight: of the three terms, wherever they are taken.
        class_aware: proposals are trained on their class, as DINO's are.
    """

    def __init__(
        self,
        num_classes: NonNegativeInt,
        matcher: HungarianMatcher,
        class_weight: NonNegative = 2.0,
        box_weight: NonNegative = 5.0,
        giou_weight: NonNegative = 2.0,
        auxiliary: bool = True,
        class_aware: bool = False,
    ):
        super().__init__(
            num_classes, matcher, 1.0, class_weight, box_weight, giou_weight, auxiliary
        )
        self.class_aware = class_aware

    def forward(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        losses = super().forward(outputs, targets)
        targets = [without_crowds(target) for target in targets]
        if not self.auxiliary:  # processes wait for the gradients of all heads
            untrained = (layer[key].sum() for layer in outputs for key in ("logits", "boxes"))
            losses["total"] = losses["total"] + 0 * reduce(add, untrained)
            outputs = outputs[-1:]
        if "proposal_logits" in outputs[-1]:
            proposals = renamed(outputs[-1:], "proposal_")
            objects = targets
            if not self.class_aware:
                objects = [one | {"labels": torch.zeros_like(one["labels"])} for one in targets]
            matches = self.matcher(proposals, objects)
            self.add(losses, self.parts(proposals, objects, matches), "proposals")
        if "noised_logits" in outputs[-1]:
            places = outputs[-1]["noised_objects"]  # on the CPU
            matches = [
                [(image.ge(0).nonzero()[:, 0], image[image >= 0]) for image in places]
            ] * len(outputs)
            parts = self.parts(
                renamed(outputs, "noised_"),
                targets,
                matches,
                pairs=int((places >= 0).sum()),
                counted=places != PADDED,
            )
            self.add(losses, parts, "noised")
        return losses

    def add(self, losses: dict[str, Tensor], parts: dict[str, Tensor], name: str) -> None:
        """Add the terms of further outputs to the losses, and to their total."""
        for key, values in parts.items():
            losses["total"] = losses["total"] + self.weights[key] * values.sum()
            *auxiliary, losses[f"{key}_{name}"] = values.unbind()
            losses |= {f"{key}_{name}_{layer}": one for layer, one in enumerate(auxiliary)}

    def class_term(
        self, logits: Tensor, classes: Tensor, count: Tensor, counted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        present = F.one_hot(classes, self.num_classes + 1)[:, :-1].view(logits.shape).to(logits)
        errors = sigmoid_focal_loss(logits, present, FOCAL_ALPHA, FOCAL_GAMMA)
        if counted is not None:
            errors = errors * counted.to(errors.device)[..., None]
        count = mean_over_processes(count).clamp(1)
        return errors.flatten(1).sum(1) / count, count


def renamed(outputs: Outputs, prefix: str) -> Outputs:
    """Further outputs of each layer, under the names of the queries' own."""
    return [{key: layer[prefix + key] for key in ("logits", "boxes")} for layer in outputs]


def without_crowds(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target with its single objects alone, which a loss is taken on."""
    if "iscrowd" not in target:
        return target
    single = target["iscrowd"] == 0
    objects = ("boxes", "labels", "area", "iscrowd")
    return target | {key: target[key][single] for key in objects if key in target}


def flat_indices(matches: Matches, targets: Targets, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Matches as indices into all queries of all layers, L B Q, and into all objects of a batch."""
    _, images, queries = shape[:3]
    counts = [len(target["labels"]) for target in targets]
    first = [sum(counts[:image]) for image in range(images)]
    query, matched = [], []
    for layer, pairs in enumerate(matches):
        for image, (of_query, of_object) in enumerate(pairs):
            query.append(of_query + (layer * images + image) * queries)
            matched.append(of_object + first[image])
    return torch.cat(query), torch.cat(matched)
