"""Training of detectors: the module that DETR and R-CNN share, and one module of each."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.ops import box_convert

from attention_vision.checkpoints import load_backbone, load_official
from attention_vision.checkpoints.load import labels_of
from attention_vision.data.loading import check_channels, check_classes, data_of, length
from attention_vision.detection.attention_rcnn import AttentionRCNN, PlainBoxHead
from attention_vision.detection.average_precision import COCO_SIZES, COCOAveragePrecision
from attention_vision.detection.batch_picture import BoxedBatch
from attention_vision.detection.criterion import FocalSetCriterion, SetCriterion, without_crowds
from attention_vision.detection.data import Batch, Target
from attention_vision.detection.deformable_detr import DeformableDETR
from attention_vision.detection.detr import DETR
from attention_vision.detection.matcher import FocalMatcher, HungarianMatcher
from attention_vision.detection.panel import DetectionPanel
from attention_vision.detection.predictions import DetectionResults
from attention_vision.detection.report import DetectionReport
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked
from attention_vision.training.finite import finite_steps
from attention_vision.training.logging import (
    ResumableMean,
    StepLogger,
    log_epoch_mean,
    log_finite,
    log_now,
)
from attention_vision.training.optim import (
    NO_WEIGHT_DECAY,
    ParameterKind,
    StepOnPlateau,
    WarmupCosine,
    configure,
    horizon,
)
from attention_vision.training.progress import say
from attention_vision.training.start import StartsFromWeights
from attention_vision.training.steps import SeedEveryStep, step_number

Detections = dict[str, Tensor]
MOST_DETECTIONS = 100  # of an image, as in COCO's AP
MOST_CLASSES = 100  # COCO has 80; with more, metrics.csv would be nothing but them


class FromNothing(NamedTuple):
    """Steps and images that a start from random weights needs; a run with less is warned of."""

    network: str
    steps: int
    images: int
    warning: str


@checked
class Detector(StartsFromWeights):
    """Base of all detectors: batches, predictions, the metric, the optimizer.

    A subclass defines `losses` and `detect`, with a criterion of its own. Batches are those of
    `DetectionData`. Logs what `COCOAveragePrecision` measures, as `val/ap` and so on, but the
    numbers without ground truth, which COCO writes as -1; of up to 100 classes each one's AP too,
    as `val/ap_of/NAME`.

    Args:
        network: has `num_classes` and a `backbone`.
        optimizer: built with groups of parameters, see `optim.parameter_groups`.
        schedule: `WarmupCosine` moves with every step, torch's own schedules with every epoch,
            `ReduceLROnPlateau` with every validation, by `val/ap`.
        backbone_lr_factor: the backbone's learning rate over that of the rest.
        no_weight_decay: kinds of parameters without weight decay; `[]` decays all, as DETR's
            release and torchvision's recipes do.
        weights: state dict of the whole network to start from, as `load_official` reads it; with
            `fine_tune` what belongs to its classes is left out, so that they may be others.
        backbone_weights: a run folder of classification, or an official state dict of the backbone;
            not read where there are `weights`, which hold the backbone too.
        fine_tune: see `weights`; a training without any is refused.
        engine: of the metric, "faster_coco_eval" or "pycocotools"; None is the fastest installed.
        size_limits: of the metric, sides in pixels of the squares up to which objects are small
            and medium. Those of COCO leave images of 64 pixels without a large one.
    """

    def __init__(
        self,
        network: DETR | DeformableDETR | AttentionRCNN,
        optimizer: OptimizerCallable,
        schedule: LRSchedulerCallable,
        backbone_lr_factor: NonNegative,
        no_weight_decay: Sequence[ParameterKind],
        weights: str | None,
        backbone_weights: str | None,
        fine_tune: bool,
        engine: str | None,
        size_limits: tuple[NonNegative, NonNegative],
    ):
        super().__init__()
        self.network = network
        self.optimizer, self.schedule = optimizer, schedule
        self.backbone_lr_factor = backbone_lr_factor
        self.no_weight_decay = no_weight_decay
        self.weights, self.backbone_weights, self.fine_tune = weights, backbone_weights, fine_tune
        self.train_loss = ResumableMean()
        self.average_precision = nn.ModuleDict(
            {
                split: COCOAveragePrecision(engine=engine, size_limits=size_limits)
                for split in ("val", "test")
            }
        )

    monitor = "val/ap"  # which ReduceLROnPlateau follows
    step_losses: dict[str, Tensor]  # of the last training step, without the total
    of_classes: tuple[str, ...]  # starts of the keys that belong to the classes, for `fine_tune`
    from_nothing: FromNothing | None = None

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> list[Detections]:
        """`detect`, for use outside of training; without a mask nothing is padded."""
        if padding_mask is None:
            padding_mask = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        return self.detect(images, padding_mask)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars, among them `total`, which is trained on."""
        raise NotImplementedError

    def detect(self, images: Tensor, padding_mask: Tensor) -> list[Detections]:
        """Per image `boxes` (k, 4) xyxy in 0..1 without padding, `scores` and `labels` (k,)."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Raises InputError when network and data disagree, or the precision is half throughout."""
        data, network = data_of(self.trainer), self.network
        if (precision := str(self.trainer.precision)) in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision is {precision}: the boxes of a detector need float32, take"
                f" {precision.removesuffix('true')}mixed"
            )
        check_classes(network, data)
        if stage == "fit":
            check_channels(network.backbone, data, "model.network.backbone")
        if data is not None:
            for split in self.average_precision:
                self._metric(split).names = list(data.class_names)
        super().setup(stage)

    def load_start(self, stage: str) -> None:
        network = self.network
        loaded = ""
        if self.weights is not None:
            left_out = self.of_classes if self.fine_tune else ()
            load_official(network, self.weights, left_out)
            new = f", new for these classes: {', '.join(left_out)}" if left_out else ""
            loaded = f"weights: {self.weights} loaded{new}"
            if stage == "fit" and not self.fine_tune:
                self._compare_labels(self.weights)
        elif self.backbone_weights is not None:
            load_backbone(network.backbone, self.backbone_weights)
            loaded = f"weights: {self.backbone_weights} loaded into the backbone"
        elif self.fine_tune and stage == "fit":
            raise InputError(
                "model.fine_tune is true, and nothing is there to fine-tune: name released weights"
                " or a run with model.weights, or a backbone's with model.backbone_weights"
            )
        if loaded and stage == "fit":  # other verbs say what they measure
            rank_zero_only(say)(loaded)

    def _compare_labels(self, weights: str) -> None:
        """Warn where a label of the data had another name when the weights were trained."""
        data = data_of(self.trainer)
        labels = labels_of(weights)
        if data is None or labels is None:
            return
        for label, (was, now) in enumerate(zip(labels.class_names, data.class_names, strict=True)):
            if was != now:
                rank_zero_warn(
                    f"{weights} was trained with label {label} as {was}, here it is {now}: its"
                    " heads begin with other classes than the data's; model.fine_tune leaves them"
                    " out"
                )
                return

    def configure_callbacks(self) -> list[Callback]:
        return [
            *finite_steps(self.trainer),
            StepOnPlateau(),
            SeedEveryStep(),
            StepLogger(),
            BoxedBatch(),
            DetectionPanel(),
            DetectionReport(),
            DetectionResults(),
        ]

    def configure_optimizers(self) -> dict:
        factors = {"backbone.": self.backbone_lr_factor} | self.lr_factors()
        return configure(
            self, self.network, self.optimizer, self.schedule, factors, self.no_weight_decay
        )

    def lr_factors(self) -> dict[str, float]:
        """Parameters of the network with a learning rate of their own, and its factor."""
        return {}

    def on_train_start(self) -> None:
        """Warns of a start from random weights that is too short to learn much."""
        need, data, trainer = self.from_nothing, data_of(self.trainer), self.trainer
        endless = trainer.max_steps == -1 and trainer.max_epochs in (None, -1)
        given = self.weights or self.backbone_weights or not self.is_new
        if need is None or given or endless or data is None:
            return
        steps, images = horizon(trainer)[0], length(data.train_images)
        if steps < need.steps and images < need.images:
            rank_zero_warn(
                f"a {need.network} from random weights on {images:,} images in {steps:,.0f} steps"
                f" {need.warning}. Fine-tune released weights (model.weights with model.fine_tune),"
                " start from a trained backbone (model.backbone_weights), or train RCNNDetector,"
                " which learns from a hundred images"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.step_losses = losses = self.losses(batch)
        total = losses.pop("total")
        self.train_loss.update(total.detach())
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] set from afar
        if (step_number(self.trainer) + 1) % every == 0:
            values = torch.stack(list(losses.values())).tolist()  # one transfer for all
            named = zip(losses, values, strict=True)
            log_now(self.trainer, {f"train/{name}": value for name, value in named})
        return total

    def on_train_epoch_end(self) -> None:
        log_epoch_mean(self, "train/loss", self.train_loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._metric("val").update(self.predict_step(batch, batch_idx), batch[2])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._metric("test").update(self.predict_step(batch, batch_idx), batch[2])

    def on_validation_epoch_end(self) -> None:
        self._log_average_precision("val")

    def on_test_epoch_end(self) -> None:
        self._log_average_precision("test")

    def _metric(self, split: str) -> COCOAveragePrecision:
        return cast(COCOAveragePrecision, self.average_precision[split])

    def _log_average_precision(self, split: str) -> None:
        metric = self._metric(split)
        numbers = metric.compute()  # of all processes
        measured = {f"{split}/{name}": value for name, value in numbers.items() if value >= 0}
        if not measured and not self.trainer.sanity_checking:
            rank_zero_warn(f"the images of {split} have no objects to find: there is no {split}/ap")
        log_finite(self, measured, prog_bar=(f"{split}/ap", f"{split}/ap50"))
        per_class = metric.per_class()
        if len(per_class) <= MOST_CLASSES:
            self.log_dict({f"{split}/ap_of/{name}": ap for name, ap in per_class.items()})
        metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Per image `boxes` (k, 4) xyxy in pixels of its file, `scores` (k,) and `labels` (k,)."""
        images, padding_mask, targets = batch
        found = self.detect(images, padding_mask)
        return [in_pixels(one, target) for one, target in zip(found, targets, strict=True)]


@checked
class DETRDetector(Detector):
    """Trains DETR on the set loss, and reads its detections.

    Every query has one detection: its likeliest class other than no-object, as the release's
    evaluation; nothing is cut off by score, since AP would lose by it.

    Args:
        network: DETR.
        class_cost, box_cost, giou_cost: of the matching, see `HungarianMatcher`.
        no_object_weight, class_weight, box_weight, giou_weight, auxiliary, sync_class_weight: of
            the loss, see `SetCriterion`.
        optimizer, schedule, backbone_lr_factor, no_weight_decay, weights, backbone_weights,
            fine_tune, engine, size_limits: see `Detector`.
    """

    network: DETR
    of_classes = ("class_head.",)
    # facebookresearch/detr, issues 22 (300,000 steps) and 125 (2,000 images fail, 10,000 work).
    from_nothing = FromNothing(
        "DETR",
        steps=300_000,
        images=10_000,
        warning="will hardly learn: its authors name 300,000 steps and 10,000 images",
    )

    def __init__(
        self,
        network: DETR,
        class_cost: NonNegative = 1.0,
        box_cost: NonNegative = 5.0,
        giou_cost: NonNegative = 2.0,
        no_object_weight: NonNegative = 0.1,
        class_weight: NonNegative = 1.0,
        box_weight: NonNegative = 5.0,
        giou_weight: NonNegative = 2.0,
        auxiliary: bool = True,
        sync_class_weight: bool = False,
        optimizer: OptimizerCallable = AdamW,
        schedule: LRSchedulerCallable = WarmupCosine,
        backbone_lr_factor: NonNegative = 0.1,
        no_weight_decay: Sequence[ParameterKind] = NO_WEIGHT_DECAY,
        weights: str | None = None,
        backbone_weights: str | None = None,
        fine_tune: bool = False,
        engine: str | None = None,
        size_limits: tuple[NonNegative, NonNegative] = COCO_SIZES,
    ):
        super().__init__(
            network, optimizer, schedule, backbone_lr_factor, no_weight_decay, weights,
            backbone_weights, fine_tune, engine, size_limits,
        )  # fmt: skip
        self.criterion = SetCriterion(
            network.num_classes,
            HungarianMatcher(class_cost, box_cost, giou_cost),
            no_object_weight,
            class_weight,
            box_weight,
            giou_weight,
            auxiliary,
            sync_class_weight,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, padding_mask, targets = batch
        return self.criterion(self.network(images, padding_mask), targets)

    def detect(self, images: Tensor, padding_mask: Tensor) -> list[Detections]:
        last = self.network(images, padding_mask)[-1]
        scores, labels = last["logits"].float().softmax(-1)[..., :-1].max(-1)
        boxes = box_convert(last["boxes"].float(), "cxcywh", "xyxy")
        return [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]


@checked
class DeformableDETRDetector(Detector):
    """Trains Deformable DETR on the focal set loss, and reads its detections.

    The 100 best pairs of a query and a class are detections, as in the release's evaluation; each
    has the index of its query, as `queries`.

    Args:
        network: DeformableDETR.
        class_cost, box_cost, giou_cost: of the matching, see `FocalMatcher`.
        class_weight, box_weight, giou_weight, auxiliary: of the loss, see `FocalSetCriterion`.
        offset_lr_factor: learning rate of what finds the points, the sampling offsets and reference
            points, over that of the rest.
        optimizer, schedule, backbone_lr_factor, no_weight_decay, weights, backbone_weights,
            fine_tune, engine, size_limits: see `Detector`.
    """

    network: DeformableDETR
    of_classes = ("class_head.", "label_embedding.")
    # 50 epochs of 118,287 images by 32 (arXiv 2010.04159, section 5); 12 by 16 (2203.03605, 4.1).
    from_nothing = FromNothing(
        "Deformable DETR",
        steps=88_000,
        images=118_000,
        warning="may learn little: its authors train 185,000 steps, those of DINO 88,000, on"
        " COCO's 118,000 images, and from a backbone trained on ImageNet",
    )

    def __init__(
        self,
        network: DeformableDETR,
        class_cost: NonNegative = 2.0,
        box_cost: NonNegative = 5.0,
        giou_cost: NonNegative = 2.0,
        class_weight: NonNegative = 2.0,
        box_weight: NonNegative = 5.0,
        giou_weight: NonNegative = 2.0,
        auxiliary: bool = True,
        offset_lr_factor: NonNegative = 0.1,
        optimizer: OptimizerCallable = AdamW,
        schedule: LRSchedulerCallable = WarmupCosine,
        backbone_lr_factor: NonNegative = 0.1,
        no_weight_decay: Sequence[ParameterKind] = NO_WEIGHT_DECAY,
        weights: str | None = None,
        backbone_weights: str | None = None,
        fine_tune: bool = False,
        engine: str | None = None,
        size_limits: tuple[NonNegative, NonNegative] = COCO_SIZES,
    ):
        super().__init__(
            network, optimizer, schedule, backbone_lr_factor, no_weight_decay, weights,
            backbone_weights, fine_tune, engine, size_limits,
        )  # fmt: skip
        self.offset_lr_factor = offset_lr_factor
        self.criterion = FocalSetCriterion(
            network.num_classes,
            FocalMatcher(class_cost, box_cost, giou_cost),
            class_weight,
            box_weight,
            giou_weight,
            auxiliary,
            network.mixed_queries,
        )

    def lr_factors(self) -> dict[str, float]:
        names = [name for name, _ in self.network.named_parameters()]
        slow = [one for one in names if "attention.offsets." in one or one.startswith("reference.")]
        return dict.fromkeys(
            (one for one in slow if not one.startswith("backbone.")), self.offset_lr_factor
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, padding_mask, targets = batch
        targets = [without_crowds(target) for target in targets]
        return self.criterion(self.network(images, padding_mask, targets), targets)

    def detect(self, images: Tensor, padding_mask: Tensor) -> list[Detections]:
        last = self.network(images, padding_mask)[-1]
        classes = last["logits"].shape[-1]
        scores = last["logits"].float().sigmoid().flatten(1)
        scores, pairs = scores.topk(min(MOST_DETECTIONS, scores.shape[1]), 1)
        boxes = box_convert(last["boxes"].float(), "cxcywh", "xyxy")
        return [
            {
                "boxes": box[pair // classes],
                "scores": score,
                "labels": pair % classes,
                "queries": pair // classes,
            }
            for box, score, pair in zip(boxes, scores, pairs, strict=True)
        ]


@checked
class RCNNDetector(Detector):
    """Trains Faster R-CNN, with attention in its box head or without.

    Args:
        network: AttentionRCNN.
        optimizer, schedule, backbone_lr_factor, no_weight_decay, weights, backbone_weights,
            fine_tune, engine, size_limits: see `Detector`.
    """

    network: AttentionRCNN

    def __init__(
        self,
        network: AttentionRCNN,
        optimizer: OptimizerCallable = AdamW,
        schedule: LRSchedulerCallable = WarmupCosine,
        backbone_lr_factor: NonNegative = 1.0,
        no_weight_decay: Sequence[ParameterKind] = NO_WEIGHT_DECAY,
        weights: str | None = None,
        backbone_weights: str | None = None,
        fine_tune: bool = False,
        engine: str | None = None,
        size_limits: tuple[NonNegative, NonNegative] = COCO_SIZES,
    ):
        super().__init__(
            network, optimizer, schedule, backbone_lr_factor, no_weight_decay, weights,
            backbone_weights, fine_tune, engine, size_limits,
        )  # fmt: skip

    @property
    def of_classes(self) -> tuple[str, ...]:
        """The predictor of a plain head; another head as a whole, which plain weights lack."""
        plain = isinstance(self.network.roi_heads.box_head, PlainBoxHead)
        return ("roi_heads.box_head.predictor." if plain else "roi_heads.box_head.",)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.network(*batch)

    def detect(self, images: Tensor, padding_mask: Tensor) -> list[Detections]:
        return self.network(images, padding_mask)


def in_pixels(found: Detections, target: Target) -> Detections:
    """Boxes xyxy in 0..1 -> in pixels of the image's file, inside of it."""
    height, width = (float(length) for length in target["orig_size"])
    size = found["boxes"].new_tensor([width, height, width, height])
    return found | {"boxes": found["boxes"].clamp(0, 1) * size}
