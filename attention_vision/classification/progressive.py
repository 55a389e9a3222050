"""Progressive activation: attention joins a network in training, stage by stage.

The articles that this project started from advise it; no source is known that measures it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked
from attention_vision.training.logging import log_now
from attention_vision.training.optim import steps_per_epoch
from attention_vision.training.steps import step_number


@checked
@dataclass(frozen=True)
class GateSchedule:
    """When the attention of which stage takes effect.

    The k-th stage, k = 0, 1, ..., has the gate clamp((t - start_epoch - k epochs_per_stage) / ramp)
    in 0..1 at time t, counted in epochs and parts of them.

    Attributes:
        start_epoch: when the first stage's turn begins.
        epochs_per_stage: from one stage's turn to the next.
        ramp: epochs in which a gate goes from 0 to 1; with 0 it opens at once.
        first: whether low stages, near the image, have the first turn, or high ones.

    Raises:
        InputError: a negative number, or another `first`.
    """

    start_epoch: NonNegative = 0.0
    epochs_per_stage: NonNegative = 1.0
    ramp: NonNegative = 1.0
    first: Literal["low", "high"] = "low"

    def __post_init__(self) -> None:
        if self.first not in ("low", "high"):
            raise InputError(f"model.progressive.first {self.first!r} is neither low nor high")

    def gates(self, stages: int, epoch: float) -> list[float]:
        """Gates of all stages at a time in epochs, from low to high."""
        elapsed = (epoch - self.start_epoch - k * self.epochs_per_stage for k in range(stages))
        gates = [min(1.0, max(0.0, t / self.ramp)) if self.ramp else float(t >= 0) for t in elapsed]
        return gates if self.first == "low" else gates[::-1]


class ProgressiveActivation(nn.Module):
    """Gates on the attention slots of a finished network, which does not know of them.

    Attention of maps is y = g a(x) + (1 - g) x, attention of tokens, which stands on the branch of
    a residual block, y = g a(x). With g = 0 the map is the identity and the branch empty, with
    g = 1 the network is what it is without gates; both exactly. The names of the network's
    parameters stay. While its gate is 0 attention gets gradients of zero: what an optimizer does
    with those, such as weight decay, it does.

    A stage is what the first number in a slot's name counts: the stages of ResNet, Swin and
    EfficientNet, the blocks of ViT and CCT. Stages without attention have no turn.

    `gates`, on the CPU, is not a buffer but extra state, and a copy shares it: it belongs to the
    step, and an average of weights over steps must not average it.

    Args:
        network: with attention in slots that are called `attention`.

    Raises:
        InputError: there is none.
    """

    def __init__(self, network: nn.Module, progression: GateSchedule):
        super().__init__()
        slots = attention_slots(network)
        if not slots:
            raise InputError(
                "model.progressive: the network has no attention to activate: leave it out, or set"
                " model.network.attention"
            )
        numbers = {name: stage_number(name) for name in slots}
        self.stages = sorted(set(numbers.values()))
        self.progression = progression
        self.gates = torch.ones(len(self.stages))  # without a training all of it is active
        for name, attention in slots.items():
            stage = self.stages.index(numbers[name])
            attention.register_forward_hook(partial(self.gated, stage))

    def gated(
        self, stage: int, attention: nn.Module, inputs: Sequence[Tensor], output: Tensor
    ) -> Tensor:
        """The gated output of a slot of the stage; a forward hook."""
        gate = self.gates[stage]
        if output.ndim == 3:  # (B, N, C)
            return gate * output
        return gate * output + (1 - gate) * inputs[0]

    def go_to(self, epoch: float) -> None:
        """Sets the gates to those of a time, in epochs since the start."""
        self.gates.copy_(torch.tensor(self.progression.gates(len(self.stages), epoch)))

    def get_extra_state(self) -> Tensor:
        return self.gates

    def set_extra_state(self, state: Tensor) -> None:
        self.gates.copy_(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class GateScheduler(Callback):
    """Sets the gates before every batch from the number of the step; logs them as train/gate/STAGE.

    Stages are counted from 1.
    """

    def __init__(self, activation: ProgressiveActivation):
        self.activation = activation

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.ckpt_path is None:
            self.activation.go_to(0.0)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # By epochs: a resumed run may have other batches, and other steps in an epoch.
        per_epoch, accumulated = steps_per_epoch(trainer), trainer.accumulate_grad_batches
        steps = trainer.current_epoch * per_epoch + batch_idx // accumulated
        self.activation.go_to(steps / per_epoch)
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] set from afar
        if (step_number(trainer) + 1) % every == 0:
            stages, gates = self.activation.stages, self.activation.gates.tolist()
            rows = zip(stages, gates, strict=True)
            log_now(trainer, {f"train/gate/{stage + 1}": gate for stage, gate in rows})


def attention_slots(network: nn.Module) -> dict[str, nn.Module]:
    """The mechanisms that stand in the slots of a network's blocks and stages, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if name.endswith(".attention")
        and name.count("attention") == 1  # none inside another
        and not isinstance(module, nn.Identity)
    }


def stage_number(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())
