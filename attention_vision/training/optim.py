"""Schedules and parameter groups, shared by all tasks.

Recipes of transformers differ from torch's schedulers in two ways: the learning rate changes with
every optimiser step, not every epoch, and norms, biases and position tables have no weight decay,
unless a recipe says otherwise.
"""

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked

ParameterKind = Literal["norms", "biases", "positions"]
NO_WEIGHT_DECAY: tuple[ParameterKind, ...] = ("norms", "biases", "positions")

# Tables that are added to features or to scores: decay would pull them to zero as if they were
# filters.
POSITIONS = ("token", "table")


@checked
class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to `min_lr` at the last step of the run.

        lr(t) = base t / W                                          t < W
        lr(t) = min_lr + (base - min_lr) (1 + cos(pi (t - W) / (T - W))) / 2

    A group with an `lr_factor` has the base rate and `min_lr` times this factor.

    Step t of T optimiser steps, W of them warm-up. T is known once the training data is:
    `configure` sets `horizon`, which is called from step 1 on. Step 0 needs neither T nor W: its
    rate is 0 with warm-up, the base rate without. The horizon is not part of the state, so that a
    run resumed with more epochs follows the longer cosine.

    Raises:
        InputError: `min_lr` is above the learning rate.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_epochs: NonNegative = 0.0, min_lr: NonNegative = 0.0
    ):
        groups = optimizer.param_groups
        rates = [group["lr"] / (group.get("lr_factor", 1.0) or 1.0) for group in groups]
        if min_lr > max(rates):
            raise InputError(f"min_lr {min_lr} is above the learning rate {max(rates):g}")
        self.warmup_epochs, self.min_lr = warmup_epochs, min_lr
        self.horizon: Callable[[], tuple[int, int]] | None = None  # () -> (T, steps per epoch)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        step = self.last_epoch
        if step == 0:
            warmup = self.warmup_epochs
            return [self.rise(base, 0, warmup) if warmup else base for base in self.base_lrs]
        if self.horizon is None:
            raise RuntimeError("WarmupCosine does not know the length of the run: use configure()")
        time, warmup, total = self.clock(step, *self.horizon())
        if time < warmup:
            return [self.rise(base, time, warmup) for base in self.base_lrs]
        progress = min(1.0, (time - warmup) / max(1, total - warmup))
        fall = (1 + math.cos(math.pi * progress)) / 2
        factors = (group.get("lr_factor", 1.0) for group in self.optimizer.param_groups)
        ends = (self.min_lr * factor for factor in factors)
        return [end + (base - end) * fall for base, end in zip(self.base_lrs, ends, strict=True)]

    def clock(self, step: int, total: int, per_epoch: int) -> tuple[float, float, float]:
        """Return the time of a step, the end of warm-up and the end of the run, in one unit."""
        return step, round(self.warmup_epochs * per_epoch), total

    def rise(self, base: float | Tensor, time: float, warmup: float) -> float | Tensor:
        """Return the rate at a time before the end of warm-up."""
        return base * time / warmup

    def state_dict(self) -> dict:
        return {key: value for key, value in super().state_dict().items() if key != "horizon"}


@checked
class EpochWarmupCosine(WarmupCosine):
    """Warm-up and cosine that change once per epoch.

        lr(e) = base (e + 1) / W, or base / (W - e)                 e < W
        lr(e) = min_lr + (base - min_lr) (1 + cos(pi (e - W) / (E - W))) / 2

    Epoch e of E is counted from 0, W epochs are warm-up. The last epoch lies above `min_lr`.

    Args:
        warmup: "linear", as torch's `LinearLR`, or "harmonic", as Compact-Transformers' `main.py`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: NonNegative = 0.0,
        min_lr: NonNegative = 0.0,
        warmup: Literal["linear", "harmonic"] = "linear",
    ):
        self.warmup = warmup
        super().__init__(optimizer, warmup_epochs, min_lr)

    def clock(self, step: int, total: int, per_epoch: int) -> tuple[float, float, float]:
        return step // per_epoch, self.warmup_epochs, total / per_epoch

    def rise(self, base: float | Tensor, time: float, warmup: float) -> float | Tensor:
        if self.warmup == "linear":
            return base * min(1.0, (time + 1) / warmup)
        return base / max(1.0, warmup - time)


def parameter_groups(
    module: nn.Module,
    lr_factors: Mapping[str, float] | None = None,
    no_weight_decay: Collection[ParameterKind] = NO_WEIGHT_DECAY,
) -> list[dict]:
    """Build parameter groups with and without weight decay.

    Args:
        no_weight_decay: kinds of parameters without it, see `parameter_kinds`; empty to decay all.
        lr_factors: start of a parameter's name, or all of it -> factor of its learning rate, such
            as {"backbone.": 0.1}. These parameters have groups of their own, with the factor under
            `lr_factor`, which `configure` applies.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    kinds = parameter_kinds(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spared = kinds.get(name) in no_weight_decay
            factors = (f for start, f in (lr_factors or {}).items() if name.startswith(start))
            groups.setdefault((next(factors, 1.0), spared), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor} | ({"weight_decay": 0.0} if spared else {})
        for (factor, spared), parameters in sorted(groups.items(), key=lambda group: group[0][1])
    ]


def parameter_kinds(module: nn.Module) -> dict[str, ParameterKind]:
    """Sort the parameters by name that are not the weights of a map.

    Positions are tokens and tables that are added to features or scores. Norms are other scales of
    at most one dimension, with the biases beside them. Biases are those of linear layers and
    convolutions.
    """
    shapes = {name: parameter.ndim for name, parameter in module.named_parameters()}
    kinds: dict[str, ParameterKind] = {}
    for name, dimensions in shapes.items():
        owner, _, last = name.rpartition(".")
        scale = f"{owner}.weight".lstrip(".")
        if last in POSITIONS:
            kinds[name] = "positions"
        elif dimensions <= 1:
            of_map = last.endswith("bias") and shapes.get(scale, 2) > 1
            kinds[name] = "biases" if of_map else "norms"
    return kinds


def layer_decay(layers: Sequence[Sequence[str]], decay: float) -> dict[str, float]:
    """Layer-wise learning-rate decay: `lr_factors` (BEiT, arXiv 2106.08254; MAE, `lr_decay.py`).

    Layer i of 0..L has the factor decay^(L - i): the head learns at the full rate, the stem at the
    lowest.

    Args:
        layers: names of parameters, as `Backbone.layers` returns them.
        decay: factor from one layer to the layer before it.
    """
    deepest = len(layers) - 1
    return {
        name: decay ** (deepest - depth) for depth, names in enumerate(layers) for name in names
    }


def horizon(trainer: Trainer) -> tuple[int, int]:
    """Optimiser steps of the whole run, and of one epoch.

    Not `trainer.estimated_stepping_batches`: called in `configure_optimizers`, it builds the
    training loader before the checkpoint is read, and a resumed run then starts its epoch from the
    first batch.

    Raises:
        InputError: the run has no end.
    """
    per_epoch = steps_per_epoch(trainer)
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * per_epoch)
    if trainer.max_steps != -1:
        ends.append(trainer.max_steps)
    if not ends:
        raise InputError(
            "WarmupCosine needs an end of the run: set trainer.max_epochs or max_steps"
        )
    return min(ends), per_epoch


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimiser steps of one epoch; callable once the training data is known."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


class StepOnPlateau(Callback):
    """Moves torch's `ReduceLROnPlateau` after each validation, by the score of best.ckpt.

    The module has the key of this score in `monitor`; more is better. Lightning would move the
    schedule in every epoch, also without a validation.

    Raises:
        InputError: from `on_train_start`, a run without validation.
    """

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if plateaus(trainer) and not trainer.enable_validation:
            raise InputError(
                f"model.schedule ReduceLROnPlateau follows {module.monitor}, and this run has no"
                " validation: set trainer.limit_val_batches, or take another schedule"
            )

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        score = trainer.callback_metrics.get(module.monitor)
        if trainer.sanity_checking or score is None:
            return
        for schedule in plateaus(trainer):
            schedule.step(float(score))


def plateaus(trainer: Trainer) -> list[ReduceLROnPlateau]:
    schedules = (config.scheduler for config in trainer.lr_scheduler_configs)
    return [one for one in schedules if isinstance(one, ReduceLROnPlateau)]


FUSED: tuple[type[Optimizer], ...] = (Adam, AdamW, SGD)


def fuse(optimizer: Optimizer) -> None:
    """Let torch's Adam, AdamW and SGD do a step in one kernel, unless the user chose otherwise.

    A step of AdamW on the 65 parameters of a ResNet-20 takes a fifth of the time. Numbers differ
    in the last digit: a run that an earlier version began goes on as it was, since the choice is in
    its checkpoints. Set on the groups, not by the constructor, which would also take the unscaling
    of 16-mixed out of Lightning's hands, and with it the clipping.
    """
    if not isinstance(optimizer, FUSED):
        return
    for group in optimizer.param_groups:
        chosen = any(group[name] is not None for name in ("fused", "foreach"))
        chosen = chosen or group["differentiable"] or group.get("capturable", False)
        devices = {one.device.type for one in group["params"]}
        if not chosen and devices <= {"cpu", "cuda"}:
            group["fused"] = True


def configure(
    module: LightningModule,
    network: nn.Module,
    optimizer: OptimizerCallable,
    schedule: LRSchedulerCallable,
    lr_factors: Mapping[str, float] | None = None,
    no_weight_decay: Collection[ParameterKind] = NO_WEIGHT_DECAY,
) -> dict:
    """Build the result of `module.configure_optimizers` for the parameters of `network`.

    `WarmupCosine` steps with the optimiser, torch's own schedulers once per epoch, and
    `ReduceLROnPlateau` with each validation, see `StepOnPlateau`: its mode is "max" whatever was
    given.

    Raises:
        InputError: the optimiser or the schedule refuses a value.
    """
    groups = parameter_groups(network, lr_factors, no_weight_decay)
    try:
        built = optimizer(groups)
        fuse(built)
        for group in built.param_groups:
            group["lr"] *= group["lr_factor"]
        scheduler = schedule(built)
    except ValueError as error:  # such as a negative lr
        raise InputError(f"model.optimizer, model.schedule: {error}") from error
    per_step = isinstance(scheduler, WarmupCosine)
    if per_step:
        scheduler.horizon = lambda: horizon(module.trainer)
    timing: dict[str, Any] = {"interval": "step" if per_step else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.mode, scheduler.mode_worse, scheduler.best = "max", -math.inf, -math.inf
        # Lightning wants a monitor, and must not move it.
        timing |= {"monitor": getattr(module, "monitor", None), "frequency": sys.maxsize}
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, **timing}}
