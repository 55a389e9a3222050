"""Weights of the classes in the cross-entropy, against imbalance."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative

ClassWeights = Literal["balanced"] | list[NonNegative] | dict[str, NonNegative]


def class_weights(
    chosen: Literal["balanced"] | Sequence[float] | Mapping[str, float],
    labels: Sequence[int],
    names: Sequence[str],
) -> Tensor:
    """Weight of each class, scaled to a mean of 1 over the training images. Shape: (num_classes,)

    "balanced" is n / (k n_c), as in scikit-learn's `compute_class_weight`: n images, n_c of the
    class, k classes that have images. A class without images weighs 1.

    Args:
        chosen: "balanced", a weight for each class in the order of `names`, or weights by name; a
            class that is not named weighs 1 before the scaling.
        labels: of the training images.
        names: of the classes.

    Raises:
        InputError: an unknown name, another number of weights than classes, a weight that is
            negative or not finite, or weights of 0 for all images.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=len(names)).double()
    if chosen == "balanced":
        return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts), 1.0).float()
    if isinstance(chosen, Mapping):
        chosen = {str(name): weight for name, weight in chosen.items()}  # YAML reads 3 as a number
        names = [str(name) for name in names]
        if unknown := [name for name in chosen if name not in names]:
            raise InputError(
                f"model.class_weights: there is no class {unknown[0]}; the data has"
                f" {', '.join(map(str, names[:10]))}{' ...' if len(names) > 10 else ''}"
            )
        weights = torch.tensor([chosen.get(name, 1.0) for name in names], dtype=torch.double)
    elif len(chosen) == len(names):
        weights = torch.tensor(chosen, dtype=torch.double)
    else:
        raise InputError(
            f"model.class_weights has {len(chosen)} weights, the data {len(names)} classes"
        )
    if not weights.isfinite().all() or (weights < 0).any():
        raise InputError("model.class_weights: a weight is negative or not finite")
    total = (counts * weights).sum()
    if not total:
        raise InputError("model.class_weights: every training image has a weight of 0")
    return (weights * len(labels) / total).float()


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float
) -> Tensor:
    """Mean over the images of -Σ_c w_c y_c log p_c, a scalar; y is smoothed first.

    torch divides by the weights of the labels in a batch if targets are numbers, which cancels the
    weights of a batch with a single class, and by the number of images if they are mixed. Here it
    is the number of images in both cases: weights with a mean of 1 over the data keep the scale of
    the loss, in batches of any size and at any number of processes.

    Args:
        logits: (B, num_classes).
        targets: labels (B,), or (B, num_classes) where images are mixed.
        weights: (num_classes,), see `class_weights`; None for plain cross-entropy.
        label_smoothing: share of a target that is spread over all classes.
    """
    if weights is None:
        return cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if targets.ndim == 1:
        targets = one_hot(targets, logits.shape[1])
    return cross_entropy(
        logits.float(), targets.float(), weights.float(), label_smoothing=label_smoothing
    )
