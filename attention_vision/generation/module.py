"""Base of the modules of generation: callbacks, and the check of classes against the data."""

from typing import Any

from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from attention_vision.data.loading import check_classes
from attention_vision.training.finite import finite_steps
from attention_vision.training.logging import StepLogger
from attention_vision.training.optim import StepOnPlateau
from attention_vision.training.steps import SeedEveryStep


class GenerationModule(LightningModule):
    """Base of every module of this task: the check of classes and the callbacks of steps.

    A subclass returns its `networks` and `losses`, adds its pictures to `configure_callbacks`, and
    logs `val/score`, which chooses the best checkpoint: more is better. Without it there is none.
    """

    monitor = "val/score"  # which ReduceLROnPlateau follows
    step_losses: dict[str, Tensor]  # of the last backward pass

    def networks(self) -> list[nn.Module]:
        """The networks whose `num_classes` must be that of the data."""
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of the loss of a training batch by name, scalars; nothing is changed."""
        raise NotImplementedError

    @property
    def datamodule(self) -> Any:
        """The trainer's data; None where it was handed loaders alone."""
        return getattr(self.trainer, "datamodule", None)

    def setup(self, stage: str) -> None:
        """Raise InputError if a network and the data disagree about the number of classes."""
        for network in self.networks():
            check_classes(network, self.datamodule)

    def configure_callbacks(self) -> list[Callback]:
        return [*finite_steps(self.trainer), StepOnPlateau(), SeedEveryStep(), StepLogger()]
