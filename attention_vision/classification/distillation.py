"""Knowledge distillation: logits and maps of a trained teacher as further targets."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from attention_vision.backbones import Backbone
from attention_vision.checkpoints import load_official
from attention_vision.checkpoints.load import labels_of
from attention_vision.checkpoints.preprocessing import Preprocessing, channels, find_release
from attention_vision.checkpoints.run_network import trained_classifier
from attention_vision.classification.attention_transfer import MapTransfer
from attention_vision.classification.data import ClassificationData
from attention_vision.classification.loss_terms import Maps, Output, blank_image, trial
from attention_vision.data.labels import labels_by_name
from attention_vision.errors import InputError
from attention_vision.ranges import Positive, Probability, checked


@checked
class Distillation:
    """A frozen teacher that sees the images that the student sees, mixed as they are.

    loss = (1 - α) CE(student, labels) + α · logits + maps, as the release of DeiT weighs them

    With `logits: hard` the student learns the teacher's likeliest class, CE(Z_s, argmax Z_t)
    (Touvron et al., arXiv 2012.12877, eq. 3, where α is 1/2). With `soft` it learns the teacher's
    distribution, τ² KL(softmax(Z_t / τ), softmax(Z_s / τ)) (Hinton et al., arXiv 1503.02531,
    section 2; DeiT, eq. 2). The release divides the KL divergence by all numbers of the batch's
    logits, where the papers take the mean over images: `soft` counts 1 / num_classes of the papers'
    term. A student with a distillation token learns the labels by its class token and the teacher
    by the other.

    Classes are compared by name: the logits of a teacher that a run of this package trained on
    them in another order are put into that of the data.

    The teacher is not part of the student: neither its checkpoints nor its average contain it, and
    a resumed run loads it again. It stays in eval mode and has no gradient.

    Args:
        teacher: run folder of classification, whose best checkpoint is taken; or else ...
        network: ... a network, its num_classes given, ...
        weights: ... and the official state dict that it loads, as `load_official` does.
        logits: `"hard"`, `"soft"` or `"none"`; with `none`, α counts as 0.
        alpha: share of the teacher's logits in the loss, 0..1.
        temperature: τ of `soft`.
        maps: `AttentionMapDistillation`, `GateTransfer` or `AttentionTransfer`.

    Raises:
        InputError: a number out of its range, no teacher or two, or nothing to learn from it.
    """

    network: Backbone  # of a run folder set by `prepare`
    weights: str

    def __init__(
        self,
        teacher: str | None = None,
        network: Backbone | None = None,
        weights: str | None = None,
        logits: Literal["hard", "soft", "none"] = "hard",
        alpha: Probability = 0.5,
        temperature: Positive = 1.0,
        maps: MapTransfer | None = None,
    ):
        if (teacher is None) == (network is None) or (network is None) != (weights is None):
            raise InputError(
                "model.distillation: give either teacher, a run folder, or network and weights"
            )
        if logits not in ("hard", "soft", "none"):
            raise InputError(f"model.distillation.logits {logits!r} is none of hard, soft, none")
        if logits == "none" and maps is None:
            raise InputError("model.distillation: logits is none and there are no maps to learn")
        self.teacher = teacher
        if network is not None and weights is not None:
            self.network, self.weights = network, weights
        self.logits, self.temperature, self.maps = logits, temperature, maps
        self.alpha = 0.0 if logits == "none" else alpha
        self.order: list[int] | None = None  # of the teacher's logits, see `prepare`

    def __deepcopy__(self, memo: dict) -> "Distillation":
        return self  # a copy of the student, such as its average, has the same teacher

    def prepare(self, network: Backbone, data: ClassificationData | None) -> None:
        """Loads the teacher and checks it against the student and the data.

        Raises:
            InputError: there is no such teacher, it knows other classes, takes no images of this
                size or was trained on others; a layer is missing, or maps cannot be compared.
        """
        if self.teacher is not None:
            self.network, _ = trained_classifier(Path(self.teacher))
        else:
            load_official(self.network, self.weights)
        self._check_images(data)
        self.network.requires_grad_(False).eval()
        self.prefixes = network.num_prefix_tokens, self.network.num_prefix_tokens
        ours, theirs = network.num_classes, self.network.num_classes
        if self.logits != "none" and theirs != ours:
            raise InputError(
                f"model.distillation: the teacher {self.name} has {theirs} classes, the student"
                f" {ours}: take one of the same classes, or set logits to none and give maps"
            )
        if self.logits != "none" and data is not None:
            self.order = self._order(data)
        if self.maps is not None:
            self.maps.check(network, self.network)
        if data is not None:
            self._try(network, blank_image(network, data))

    def record(self, network: Backbone) -> AbstractContextManager[Maps]:
        if self.maps is None:
            return nullcontext({})
        return self.maps.record(network, self.maps.student_layers)

    def __call__(self, images: Tensor, output: Output, maps: Maps) -> Tensor:
        answer, theirs = self.teach(images)
        student = output[1] if isinstance(output, tuple) else output
        loss = student.new_zeros(())
        if self.logits == "hard":
            loss = loss + self.alpha * hard_loss(student, answer)
        if self.logits == "soft":
            loss = loss + self.alpha * soft_loss(student, answer, self.temperature)
        if self.maps is not None:
            size = images.shape[2], images.shape[3]
            loss = loss + self.maps(maps, theirs, self.prefixes, size)
        return loss

    def teach(self, images: Tensor) -> tuple[Tensor, Maps]:
        """The teacher's logits (B, num_classes), and those maps that the student learns from."""
        teacher = self.network.to(images)  # device and precision; at once where it is there already
        record = nullcontext({})
        if self.maps is not None:
            record = self.maps.record(teacher, self.maps.teacher_layers)
        with torch.no_grad(), record as maps:
            logits = teacher(images)
        return (logits if self.order is None else logits[:, self.order]), maps

    @property
    def name(self) -> str:
        return self.weights if self.teacher is None else self.teacher

    def _order(self, data: ClassificationData) -> list[int] | None:
        """The teacher's label of each label of the data, by their names.

        None if they are equal, or the weights have no names: those of a release.

        Raises InputError when the teacher was trained on other classes, however many.
        """
        labels = labels_of(self.name)
        here = [str(name) for name in data.class_names]
        if labels is None or list(labels.class_names) == here:
            return None
        return labels_by_name(
            labels.class_names, here, f"model.distillation: {self.name}: the data"
        )

    def _check_images(self, data: ClassificationData | None) -> None:
        """Raises InputError when the teacher was trained on images normalized in another way."""
        release = find_release(self.name)
        if data is None or release is None:
            return
        stated, here = release.preprocessing, Preprocessing(channels(data.mean), channels(data.std))
        theirs = Preprocessing(stated.mean, stated.std).completed_by(here)
        if theirs != here:
            raise InputError(
                f"model.distillation: the teacher {self.name} was trained on images of {theirs},"
                f" these have {here}: set data.preprocessing.mean and data.preprocessing.std"
            )

    def _try(self, student: Backbone, image: Tensor) -> None:
        """One image through both, so that what does not fit is said before training begins."""
        height, width = image.shape[2:]
        try:
            with torch.no_grad():
                self.network(image)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"model.distillation: the teacher {self.name} takes no images of {height} x {width}"
                f" pixels, which the data has: {' '.join(str(error).split())}"
            ) from error
        if self.maps is not None:
            with trial(student):
                with self.record(student) as maps:
                    output = student(image)
                self(image, output, maps)


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's class (DeiT, eq. 3). Shape: (B, classes) of both -> ()"""
    return cross_entropy(student, teacher.argmax(1))


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ² KL(teacher, student) over all numbers of the logits, as DeiT's release divides it.

    Shape: (B, classes) of both -> ()
    """
    student, teacher = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    divergence = kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / student.numel()
