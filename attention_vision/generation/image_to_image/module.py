"""Training of image-to-image networks: restoration and segmentation."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.segmentation import DiceScore

from attention_vision.errors import InputError
from attention_vision.generation.data import Batch
from attention_vision.generation.image_to_image.batch_picture import PairedBatch
from attention_vision.generation.image_to_image.figures import ImageToImagePanel
from attention_vision.generation.image_to_image.mask_codes import IGNORED
from attention_vision.generation.image_to_image.predictions import ImageToImageResults
from attention_vision.generation.image_to_image.unet import AttentionUNet
from attention_vision.generation.module import GenerationModule
from attention_vision.ranges import Fraction, NonNegative, checked
from attention_vision.training.finite import StepAverage, finite_images, require_finite
from attention_vision.training.logging import (
    FiniteMean,
    ResumableMean,
    log_epoch_mean,
    log_finite,
)
from attention_vision.training.optim import (
    NO_WEIGHT_DECAY,
    ParameterKind,
    WarmupCosine,
    configure,
)

MOST_DB = 100.0  # of an image: an error of 1e-5 of its range, far below a step of 8 bits


class RestorationMetrics(nn.Module):
    """PSNR and SSIM of each image, averaged over images; `psnr_input` is the PSNR of the input.

    Values are clipped to 0..1 first. The PSNR of equal images would be infinite: it is 100 dB at
    most, and `psnr_bounded` and `psnr_input_bounded` count the images with that much, where there
    are any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.psnr, self.psnr_input = BoundedPSNR(), BoundedPSNR()
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)

    def update(self, inputs: Tensor, output: Tensor, targets: Tensor) -> None:
        restored, targets = output.float().clamp(0, 1), targets.float()
        self.psnr.update(restored, targets)
        self.psnr_input.update(inputs[:, : targets.shape[1]].float().clamp(0, 1), targets)
        self.ssim.update(restored, targets)

    def compute(self) -> dict[str, Tensor]:
        metrics: dict[str, Any] = {
            "psnr": self.psnr,
            "psnr_input": self.psnr_input,
            "ssim": self.ssim,
        }
        numbers = {name: metric.compute() for name, metric in metrics.items()}
        bounded = {f"{name}_bounded": metrics[name].bounded for name in ("psnr", "psnr_input")}
        return (
            {"score": numbers["psnr"]} | numbers | {key: n for key, n in bounded.items() if n > 0}
        )

    def reset(self) -> None:
        for metric in (self.psnr, self.psnr_input, self.ssim):
            metric.reset()


class BoundedPSNR(PeakSignalNoiseRatio):
    """Mean over images of their PSNR in dB, of each 100 at most; `bounded` counts these images.

    Shape: images (B, C, H, W) in 0..1, and the same.
    """

    bounded: Tensor  # () float, of the last `compute`, over all processes

    def __init__(self) -> None:
        # Without `dim` it would be the PSNR of the mean error.
        super().__init__(data_range=1.0, dim=(1, 2, 3), reduction="none")

    def compute(self) -> Tensor:
        of_images = super().compute()
        self.bounded = (of_images >= MOST_DB).sum().float()
        return of_images.clamp(max=MOST_DB).mean()


class SegmentationMetrics(nn.Module):
    """Dice of each class but the background, averaged over images, then over classes.

    An image with a class neither in its mask nor in its prediction does not count for the class;
    pixels without a class (`IGNORED`) do not count. A class that no image counts for has no number,
    and without any there is no score.

    Args:
        num_classes: background included.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.per_class = DiceScore(
            num_classes, include_background=False, average="none", input_format="index"
        )

    def update(self, inputs: Tensor, output: Tensor, targets: Tensor) -> None:
        classed = targets != IGNORED  # else both are background, which is not measured
        self.per_class.update(output.argmax(1) * classed, targets * classed)

    def compute(self) -> dict[str, Tensor]:
        per_class = self.per_class.compute().view(-1)  # (num_classes - 1,), which may be 1
        dice = per_class.nanmean()
        numbers = {"score": dice, "dice": dice}
        if len(per_class) > 1:
            of_classes = {f"dice_of/{k}": value for k, value in enumerate(per_class, 1)}
            numbers |= {key: value for key, value in of_classes.items() if not value.isnan()}
        return numbers

    def reset(self) -> None:
        self.per_class.reset()


class Restoration(nn.Module):
    """Objective: the image that the input was degraded from.

    Args:
        loss: torch's, of (output, target). PSNR measures the mean squared error.
    """

    def __init__(self, loss: Callable[[], nn.Module] = nn.MSELoss):
        super().__init__()
        self.criterion = loss()

    def check(self, num_classes: int) -> None:
        """Raise InputError for data with classes."""
        if num_classes:
            raise InputError(
                f"Restoration is for images as targets, the data has {num_classes} classes: set"
                " model.objective to Segmentation"
            )

    def losses(self, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars, which are added up."""
        return {"loss": self.criterion(output, targets)}

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return self.losses(output, targets)["loss"]

    def metrics(self, num_classes: int) -> RestorationMetrics:
        return RestorationMetrics()

    def result(self, output: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1."""
        return output.float().clamp(0, 1)


@checked
class Segmentation(nn.Module):
    """Objective: the class of each pixel or voxel; where the target is `IGNORED` there is none.

    Args:
        dice_weight: weight of the soft Dice loss, which the release trains on.
        cross_entropy_weight: weight of the cross-entropy.
    """

    def __init__(self, dice_weight: NonNegative = 1.0, cross_entropy_weight: NonNegative = 1.0):
        super().__init__()
        weights = dice_weight, cross_entropy_weight
        if not any(weights):
            raise InputError("Segmentation: dice_weight or cross_entropy_weight has to be above 0")
        self.dice_weight, self.cross_entropy_weight = weights

    def check(self, num_classes: int) -> None:
        """Raise InputError for data without classes."""
        if num_classes < 2:
            raise InputError(
                f"Segmentation is for classes as targets, the data has {num_classes}: set"
                " model.objective to Restoration"
            )

    def losses(self, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars, which are added up."""
        terms = {}
        if self.dice_weight:
            terms["dice"] = self.dice_weight * dice_loss(output, targets)
        if self.cross_entropy_weight:
            terms["cross_entropy"] = self.cross_entropy_weight * cross_entropy(output, targets)
        return terms

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return reduce(add, self.losses(output, targets).values())

    def metrics(self, num_classes: int) -> SegmentationMetrics:
        return SegmentationMetrics(num_classes)

    def result(self, output: Tensor) -> Tensor:
        """Class numbers (B, H, W)."""
        return output.argmax(1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that have a class; 0 where none has."""
    mean = F.cross_entropy(logits, targets, ignore_index=IGNORED)
    return torch.where((targets != IGNORED).any(), mean, logits.sum() * 0)


def dice_loss(logits: Tensor, targets: Tensor, smooth: float = 0.01) -> Tensor:
    """1 - soft Dice, mean over images and all classes, background included, as released.

    Shape: logits (B, K, *size), targets (B, *size) int64 -> scalar

        dice = 2 (sum p t + smooth) / (sum p + sum t + smooth)

    The sums are over the pixels that have a class. An image without such a pixel does not count,
    and a batch of nothing else has a loss of 0.
    """
    classed = targets != IGNORED
    chances = (logits.float().softmax(1) * classed[:, None]).flatten(2)  # (B, K, pixels)
    truth = F.one_hot(targets * classed, logits.shape[1]) * classed[..., None]
    truth = truth.movedim(-1, 1).flatten(2).to(chances)
    both, each = (chances * truth).sum(2), chances.sum(2) + truth.sum(2)
    dice = 2 * (both + smooth) / (each + smooth)
    counts = classed.flatten(1).any(1)
    images = counts.sum()
    mean = dice.where(counts[:, None], 0.0).sum() / (images.clamp(1) * logits.shape[1])
    return (1 - mean) * (images > 0)


@checked
class ImageToImage(GenerationModule):
    """Trains a network that maps images or volumes to images, or to the class of each pixel.

    Logs `val/score`, which is `val/psnr` (dB) or `val/dice`, and what else the objective measures.

    Args:
        network: as a rule `AttentionUNet`.
        objective: `Restoration` or `Segmentation`: loss, metrics and results.
        optimizer: built with two parameter groups, see `optim.parameter_groups`.
        schedule: `WarmupCosine` moves with every step, torch's own schedules with every epoch,
            `ReduceLROnPlateau` with every validation, by `val/score`.
        ema_decay: decay of the average of weights that is validated and saved as the model, 0 for
            no average.
        no_weight_decay: kinds of parameters without weight decay; `[]` decays all.

    Raises:
        InputError: a number out of its range; from `setup`, data that does not fit.
    """

    def __init__(
        self,
        network: AttentionUNet,
        objective: Restoration | Segmentation,
        optimizer: OptimizerCallable = AdamW,
        schedule: LRSchedulerCallable = WarmupCosine,
        ema_decay: Fraction = 0.0,
        no_weight_decay: Sequence[ParameterKind] = NO_WEIGHT_DECAY,
    ):
        super().__init__()
        objective.check(network.num_classes)
        self.network, self.objective = network, objective
        self.optimizer, self.schedule, self.ema_decay = optimizer, schedule, ema_decay
        self.no_weight_decay = no_weight_decay
        self.train_loss = ResumableMean()
        # Any: the values of a ModuleDict are typed as plain modules.
        self.mean_losses: Any = nn.ModuleDict({split: FiniteMean() for split in ("val", "test")})
        self.metrics: Any = nn.ModuleDict(
            {split: objective.metrics(network.num_classes) for split in ("val", "test")}
        )

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def setup(self, stage: str) -> None:
        """Raise InputError if network and data disagree about classes or channels."""
        super().setup(stage)
        data = self.datamodule
        channels = getattr(data, "channels", self.network.in_channels)
        if channels != self.network.in_channels:
            raise InputError(
                f"the network takes {self.network.in_channels} channels, {type(data).__name__} has"
                f" {channels}: set in_channels of model.network to {channels}"
            )

    def configure_callbacks(self) -> list[Callback]:
        callbacks = [
            *super().configure_callbacks(),
            PairedBatch(),
            ImageToImagePanel(),
            ImageToImageResults(),
        ]
        if self.ema_decay and self.trainer.state.fn == TrainerFn.FITTING:
            callbacks.append(StepAverage(decay=self.ema_decay))
        return callbacks

    def configure_optimizers(self) -> dict:
        return configure(
            self,
            self.network,
            self.optimizer,
            self.schedule,
            no_weight_decay=self.no_weight_decay,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        inputs, targets = batch
        return self.objective.losses(self(inputs), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.step_losses = self.losses(batch)
        loss = reduce(add, self.step_losses.values())
        self.train_loss.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        log_epoch_mean(self, "train/loss", self.train_loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("val", *batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("test", *batch)

    def _evaluate(self, split: str, inputs: Tensor, targets: Tensor) -> Tensor:
        """Measure a batch; whether the output of each image is finite, (B,)."""
        output = self(inputs)
        self.mean_losses[split].update(self.objective.loss(output, targets), len(inputs))
        self.log(f"{split}/loss", self.mean_losses[split])
        self.metrics[split].update(inputs, output, targets)
        return finite_images(output)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        metrics = self.metrics[split]
        numbers = metrics.compute()  # of all processes
        metrics.reset()
        named = {f"{split}/{self._named(name)}": value for name, value in numbers.items()}
        log_finite(self, named, prog_bar=(f"{split}/psnr", f"{split}/dice"))

    def _named(self, name: str) -> str:
        """`dice_of/2` -> `dice_of/NAME`, where the data has names."""
        start, slash, number = name.partition("/")
        names = getattr(self.datamodule, "class_names", ())
        return f"{start}/{names[int(number)]}" if slash and names else name

    def predict_step(self, batch: tuple[Tensor, list[str], list[torch.Size]], _: int) -> Tensor:
        """Images in 0..1 or class numbers."""
        output = self(batch[0])
        require_finite(output, batch[1])
        return self.objective.result(output)
