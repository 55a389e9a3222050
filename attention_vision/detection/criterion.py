"""The loss of DETR over a set of objects."""

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from attention_vision.detection.boxes import giou
from attention_vision.detection.matcher import HungarianMatcher, Matches, Outputs, Targets
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

    def parts(self, outputs: Outputs, targets: Targets, matches: Matches) -> dict[str, Tensor]:
        """Each term of each of the L layers, all layers at once; every layer has as many pairs."""
        logits = torch.stack([layer["logits"] for layer in outputs]).float()
        boxes = torch.stack([layer["boxes"] for layer in outputs]).float()
        labels = torch.cat([target["labels"] for target in targets]).to(logits.device)
        objects = torch.cat([target["boxes"] for target in targets]).to(boxes)
        query, matched = (
            index.to(logits.device) for index in flat_indices(matches, targets, logits.shape)
        )

        classes = labels.new_full(logits.shape[:3], self.num_classes).flatten()
        classes[query] = labels[matched]
        errors = F.cross_entropy(
            logits.flatten(0, 2), classes, self.weight_of_class, reduction="none"
        )
        weights = self.weight_of_class[classes].unflatten(0, (len(outputs), -1)).sum(1)
        count = weights.new_tensor([len(labels)])
        if self.sync_class_weight:
            weights, count = mean_over_processes(torch.cat((weights, count))).split(
                (len(outputs), 1)
            )
        else:
            count = mean_over_processes(count)
        count = count.clamp(1)

        predicted, wanted = boxes.flatten(0, 2)[query], objects[matched]
        distance = (predicted - wanted).abs().sum(1)
        corners = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (predicted, wanted))
        overlap = giou(*corners)
        per_layer = (len(outputs), len(query) // len(outputs))
        return {
            # Without objects and with a no-object weight of 0 nothing weighs: 0, not 0 / 0.
            "class": errors.unflatten(0, (len(outputs), -1)).sum(1) / weights.where(weights > 0, 1),
            "box": distance.view(per_layer).sum(1) / count,
            "giou": (1 - overlap).view(per_layer).sum(1) / count,
        }


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
