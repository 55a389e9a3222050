"""The training of a classifier: loss, mixing of images, metrics, averages of weights."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from attention_vision.backbones import Backbone
from attention_vision.classification.batch_picture import LabeledBatch
from attention_vision.classification.class_weights import (
    ClassWeights,
    class_weights,
    weighted_cross_entropy,
)
from attention_vision.classification.confusion import (
    ClassAccuracy,
    ConfusionFigures,
    class_names,
    confusion_matrices,
    named_accuracies,
)
from attention_vision.classification.data import ClassificationData
from attention_vision.classification.distillation import Distillation
from attention_vision.classification.figures import ImagePanel
from attention_vision.classification.loss_terms import Output, Term, record_terms
from attention_vision.classification.penalties import AttentionPenalty
from attention_vision.classification.predictions import Predictions
from attention_vision.classification.progressive import (
    GateSchedule,
    GateScheduler,
    ProgressiveActivation,
)
from attention_vision.data.loading import LabeledDataset, check_channels, check_classes, data_of
from attention_vision.errors import InputError
from attention_vision.ranges import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    Probability,
    Share,
    checked,
)
from attention_vision.training.finite import (
    StepAverage,
    finite_images,
    finite_steps,
    require_finite,
)
from attention_vision.training.logging import (
    FiniteMean,
    ResumableMean,
    StepLogger,
    log_epoch_mean,
)
from attention_vision.training.optim import (
    NO_WEIGHT_DECAY,
    ParameterKind,
    StepOnPlateau,
    WarmupCosine,
    configure,
    layer_decay,
)
from attention_vision.training.progress import say
from attention_vision.training.start import StartsFromWeights
from attention_vision.training.steps import SeedEveryStep


@checked
class Classifier(StartsFromWeights):
    """Trains any backbone with a head on batches (images (B, 3, H, W), labels (B,)).

    Args:
        network: maps images to logits (B, num_classes).
        optimizer: built with two parameter groups, see `optim.parameter_groups`.
        schedule: `WarmupCosine` moves with every step, torch's own schedules with every epoch,
            `ReduceLROnPlateau` with every validation, by `val/top1`.
        label_smoothing: share of the target spread over all classes, also of mixed targets.
        mixup: alpha of MixUp's Beta distribution, 0 for none.
        cutmix: alpha of CutMix, 0 for none. With both on, each batch takes one, either with
            probability 0.5 (DeiT's "prob" 1 and "switch" 0.5).
        ema_decay: of the average of weights that is validated and saved as the model, 0 for none.
        weights: file, run folder or name of weights to start from, as `load_official` reads them,
            unless a checkpoint is loaded anyway. In fit a head of other classes starts anew, and
            positions of other image sizes are resized (`start_from`).
        channels_last: memory format of the convolutions; pays on GPUs with mixed precision.
        mix_epochs: images are mixed in so many epochs at the start, not from then on (CCT: 175 of
            300); in all where none is given.
        layer_decay: factor of the learning rate from each layer of the network to the one before
            it, see `optim.layer_decay`; 1 for none.
        no_weight_decay: kinds of parameters without weight decay; `[]` decays all, as most releases
            of convolutional networks do.
        progressive: when which stage's attention takes effect; all from the start where none is
            given.
        distillation: a trained teacher to learn from.
        penalty: on attention.
        test_time_flip: measure and predict by the mean of the logits of each image and its mirror
            image, which costs a second forward pass.
        class_weights: of the cross-entropy in training: "balanced", or a weight for each class, in
            order or by name; see `class_weights.class_weights` for the formula. val/loss has none.

    Logs the accuracy of the images, `val/top1`, its mean over the classes, `val/top1_macro`, and of
    up to 100 classes each one's, `val/top1_of/NAME`. With a teacher or a penalty the parts that
    train/loss is the sum of are logged as well: train/loss_ce, of the labels, train/distillation
    and train/penalty.

    Raises:
        InputError: a number that is out of its range.
    """

    def __init__(
        self,
        network: Backbone,
        optimizer: OptimizerCallable = AdamW,
        schedule: LRSchedulerCallable = WarmupCosine,
        label_smoothing: Probability = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        ema_decay: Fraction = 0.0,
        weights: str | None = None,
        channels_last: bool = False,
        mix_epochs: NonNegativeInt | None = None,
        layer_decay: Share = 1.0,
        no_weight_decay: Sequence[ParameterKind] = NO_WEIGHT_DECAY,
        progressive: GateSchedule | None = None,
        distillation: Distillation | None = None,
        penalty: AttentionPenalty | None = None,
        class_weights: ClassWeights | None = None,
        test_time_flip: bool = False,
    ):
        super().__init__()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=memory_format)
        self.memory_format = memory_format
        self.optimizer, self.schedule = optimizer, schedule
        if network.num_classes == 1:
            raise InputError("the data have one class: a classifier needs two or more")
        self.label_smoothing, self.ema_decay, self.weights = label_smoothing, ema_decay, weights
        self.mix_epochs, self.layer_decay = mix_epochs, layer_decay
        self.no_weight_decay = no_weight_decay
        self.progressive = ProgressiveActivation(network, progressive) if progressive else None
        self.mix = mixing(mixup, cutmix, network.num_classes)
        self.distillation = distillation
        slots = {"distillation": distillation, "penalty": penalty}
        self.terms: dict[str, Term] = {name: term for name, term in slots.items() if term}
        self.class_weights, self.test_time_flip = class_weights, test_time_flip
        # Of the data, set in fit. There from the start: an average of weights copies the module
        # before that, and pairs buffers by their order.
        weights_of_classes = torch.ones(network.num_classes) if class_weights is not None else None
        self.register_buffer("loss_weights", weights_of_classes, persistent=False)
        self.train_loss = ResumableMean()
        self.train_parts = nn.ModuleDict(
            {name: ResumableMean() for name in ("loss_ce", *self.terms) if self.terms}
        )
        self.mean_losses = nn.ModuleDict({split: FiniteMean() for split in ("val", "test")})
        self.accuracies = nn.ModuleDict(
            {split: accuracies(split, network.num_classes) for split in ("val", "test")}
        )
        self.class_accuracies = nn.ModuleDict(
            {split: ClassAccuracy(network.num_classes) for split in ("val", "test")}
        )
        self.confusions = confusion_matrices(network.num_classes)

    monitor = "val/top1"  # which ReduceLROnPlateau follows
    class_weights: ClassWeights | None
    step_losses: dict[str, Tensor]  # of the last training step
    loss_weights: Tensor | None  # (num_classes,)

    def setup(self, stage: str) -> None:
        """Raises InputError when network and data disagree about classes or channels."""
        data = data_of(self.trainer)
        check_classes(self.network, data)
        super().setup(stage)
        if stage == "fit":
            check_channels(self.network, data, "model.network")
            self._weigh_classes(data)
            for term in self.terms.values():
                term.prepare(self.network, data)

    def load_start(self, stage: str) -> None:
        if self.weights is None:
            return
        from attention_vision.checkpoints import load_official, start_from
        from attention_vision.checkpoints.load import labels_of

        if stage != "fit":
            load_official(self.network, self.weights)
            return
        line, data = start_from(self.network, self.weights), data_of(self.trainer)
        labels = labels_of(self.weights)
        if data is not None and labels is not None:
            line += head_by_name(self.network, labels.class_names, data.class_names)
        rank_zero_only(say)(line)

    def _weigh_classes(self, data: ClassificationData | None) -> None:
        """Raises InputError when the weights do not fit the data."""
        if self.class_weights is None:
            return
        if data is None:
            raise InputError("model.class_weights: a data module is needed, which knows the labels")
        if data.balanced and self.class_weights == "balanced":
            raise InputError(
                "model.class_weights balanced and data.balanced both balance: leave one out"
            )
        labels = cast(LabeledDataset, data.train_images).targets
        weights = class_weights(self.class_weights, labels, data.class_names)
        cast(Tensor, self.loss_weights).copy_(weights)

    def configure_callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = [
            *finite_steps(self.trainer),
            StepOnPlateau(),
            SeedEveryStep(),
            StepLogger(),
            LabeledBatch(),
            ImagePanel(),
            ConfusionFigures(),
            Predictions(),
        ]
        if self.ema_decay and self.trainer.state.fn == TrainerFn.FITTING:
            callbacks.append(StepAverage(decay=self.ema_decay))
        if self.progressive:
            callbacks.append(GateScheduler(self.progressive))
        return callbacks

    def configure_optimizers(self) -> dict:
        factors = layer_decay(self.network.layers(), self.layer_decay)
        return configure(
            self, self.network, self.optimizer, self.schedule, factors, self.no_weight_decay
        )

    def forward(self, images: Tensor) -> Output:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def measured(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images to evaluate or to predict, see `test_time_flip`."""
        logits = self(images)
        return (logits + self(images.flip(-1))) / 2 if self.test_time_flip else logits

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch after MixUp or CutMix, in epochs that mix: targets are (B, num_classes)."""
        mixes = self.mix_epochs is None or self.current_epoch < self.mix_epochs
        return self.mix(images, labels) if mixes else (images, labels)

    def batch_augmentation(self) -> list[str]:
        """MixUp and CutMix, if they are on."""
        parts = self.mix.transforms if isinstance(self.mix, v2.RandomChoice) else ()
        epochs = "" if self.mix_epochs is None else f", in the first {self.mix_epochs} epochs"
        return [f"{type(part).__name__}: alpha {part.alpha}{epochs}" for part in parts]

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars, which are added up."""
        images, targets = self.mixed(*batch)
        with record_terms(self.terms, self.network) as maps:
            output = self(images)
        taught = self.distillation.alpha if self.distillation else 0.0
        logits = class_logits(output, taught > 0)
        loss = weighted_cross_entropy(logits, targets, self.loss_weights, self.label_smoothing)
        parts = {"loss_ce": (1 - taught) * loss}
        return parts | {name: term(images, output, maps[name]) for name, term in self.terms.items()}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.step_losses = self.losses(batch)
        loss = reduce(add, self.step_losses.values())
        self.train_loss.update(loss.detach())
        for name, mean in self._part_means().items():
            mean.update(self.step_losses[name].detach())
        return loss

    def on_train_epoch_end(self) -> None:
        log_epoch_mean(self, "train/loss", self.train_loss)
        for name, mean in self._part_means().items():
            log_epoch_mean(self, f"train/{name}", mean)

    def _part_means(self) -> dict[str, ResumableMean]:
        return {name: cast(ResumableMean, mean) for name, mean in self.train_parts.items()}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate("val", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate("test", *batch)

    def _evaluate(self, split: str, images: Tensor, labels: Tensor) -> Tensor:
        """Measure a batch; whether the logits of each image are finite, (B,)."""
        logits = self.measured(images)
        loss = cast(FiniteMean, self.mean_losses[split])
        accuracy = cast(MetricCollection, self.accuracies[split])
        loss.update(cross_entropy(logits, labels), len(images))
        accuracy.update(logits, labels)
        for metrics in (self.class_accuracies, self.confusions):
            if split in metrics:
                cast(Metric, metrics[split]).update(logits, labels)
        # The metrics, not their values: Lightning computes them at the end over all processes.
        self.log(f"{split}/loss", loss)
        self.log_dict(accuracy, prog_bar=True)
        return finite_images(logits)

    def on_validation_epoch_end(self) -> None:
        self._log_classes("val")

    def on_test_epoch_end(self) -> None:
        self._log_classes("test")

    def _log_classes(self, split: str) -> None:
        metric = cast(Metric, self.class_accuracies[split])
        accuracy = metric.compute()  # of all processes
        metric.reset()
        if split in self.confusions:  # which `ConfusionFigures` has read
            cast(Metric, self.confusions[split]).reset()
        names = class_names(self.trainer, len(accuracy))
        values = named_accuracies(accuracy, names)
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def predict_step(
        self, batch: tuple[Tensor, list[str]], batch_idx: int
    ) -> tuple[list[str], Tensor, Tensor]:
        images, paths = batch
        logits = self.measured(images)
        require_finite(logits, paths)
        probabilities = logits.softmax(dim=1)
        top = probabilities.topk(min(5, self.network.num_classes))
        return paths, top.indices, top.values


def class_logits(output: Output, taught: bool) -> Tensor:
    """The logits that learn from the labels: of two tokens the class token's if a teacher is given.

    Without a teacher, both tokens learn from the labels through the mean of their logits (as timm).
    """
    if not isinstance(output, tuple):
        return output
    return output[0] if taught else (output[0] + output[1]) / 2


def head_by_name(network: Backbone, trained: Sequence[str], here: Sequence[str]) -> str:
    """Give each class the row of the head that was trained on its name, zeros to a new name.

    Nothing is changed if the names are equal, or their number is another: the head is a new one.

    Returns:
        a part of a line that says so.
    """
    here = [str(name) for name in here]
    if list(trained) == here or len(trained) != len(here):
        return ""
    rows = {name: row for row, name in enumerate(trained)}
    with torch.no_grad():
        for parameter in network.head.parameters():
            old = parameter.clone()
            for row, name in enumerate(here):
                parameter[row] = old[rows[name]] if name in rows else 0
    kept = sum(name in rows for name in here)
    return f"; classes of the head by name: {kept} kept, {len(here) - kept} new ones start at zero"


def mixing(mixup: float, cutmix: float, num_classes: int) -> nn.Module:
    """(images, labels) -> (images, labels), mixed with the alphas that are not 0."""
    mixes = [
        mix(alpha=alpha, num_classes=num_classes)
        for mix, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    return v2.RandomChoice(mixes) if mixes else v2.Identity()


def accuracies(split: str, num_classes: int) -> MetricCollection:
    """Top-1, and top-5 where there are more than five classes, of all images counted alike."""
    ranks = [1, 5] if num_classes > 5 else [1]
    return MetricCollection(
        {
            f"{split}/top{rank}": MulticlassAccuracy(num_classes, top_k=rank, average="micro")
            for rank in ranks
        }
    )
