"""Arguments that change when a run is resumed, where its checkpoint would restore the old ones."""

import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from attention_vision.errors import InputError
from attention_vision.training.optim import WarmupCosine, steps_per_epoch
from attention_vision.training.progress import say

RATES = (
    "model.optimizer.*",
    "model.*_optimizer.*",
    "model.schedule.*",
    "model.layer_decay",
    "model.no_weight_decay",
    "model.backbone_lr_factor",
)
# What ReduceLROnPlateau has seen of the run; the rest of its state are arguments.
SEEN = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
KEPT = ("params", "fused")  # of a group: the optimizer's state lies where its kernel wants it


class Change(NamedTuple):
    """Value of an argument before and after."""

    old: Any
    new: Any


class ApplyChanges(Callback):
    """Make changed arguments hold, of which a checkpoint restores the old values.

    Optimizer and schedule get the numbers that a run with the new arguments from its start would
    have at this step; what depends on the losses, such as moments, stays. States of callbacks get
    the arguments that changed. `WarmupCosine` follows the new length of the run.

    Args:
        changes: by dotted key, see `runs.resume.changed_arguments`; empty without a change.
        inside_epoch: whether the checkpoint lies inside an epoch.
        processes: that wrote the checkpoint; None if it does not say.

    Raises:
        InputError: from the start of fit: other processes inside an epoch, or other groups of
            parameters than the checkpoint has.
    """

    def __init__(self, changes: Mapping[str, Change], inside_epoch: bool, processes: int | None):
        self.changes, self.inside_epoch, self.processes = changes, inside_epoch, processes
        self._groups: list[list[int]] = []

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        before, now = self.processes or trainer.world_size, trainer.world_size
        if before != now and self.inside_epoch:
            raise InputError(
                f"the checkpoint lies inside an epoch of {before} processes, each with a position"
                f" of its own: resume with {before}, not {now} (trainer.devices and num_nodes)"
            )
        if self.changes and not self.inside_epoch:
            # An epoch that has ended; other workers could not read its position.
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        names = {key.rpartition(".")[2] for key in self.changes if "trainer.callbacks." in key}
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue] set from afar
            state = checkpoint["callbacks"].get(callback.state_key)
            given = callback.state_dict()
            if isinstance(state, dict):
                state |= {name: given[name] for name in names & state.keys() & given.keys()}
        states = checkpoint.get("optimizer_states", [])
        self._groups = [[len(g["params"]) for g in state["param_groups"]] for state in states]

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        now = [[len(g["params"]) for g in one.param_groups] for one in trainer.optimizers]
        if self._changed(RATES) and now != self._groups:
            keys = ", ".join(sorted(key for key in self.changes if key.startswith("model.")))
            raise InputError(
                f"{keys}: the optimizer has other groups of parameters than the checkpoint; leave"
                " it out, or start a new run with --weights RUN"
            )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.changes:
            return
        cosine = any(
            isinstance(config.scheduler, WarmupCosine) for config in trainer.lr_scheduler_configs
        )
        if not (self._changed(RATES) or cosine):
            return
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        for (live, schedule), (fresh, new) in zip(
            in_force(trainer), configured(module), strict=True
        ):
            if isinstance(new, ReduceLROnPlateau):
                self._keep_reductions(live, schedule, fresh, new)
            elif new is not None:
                go_to(new, position(trainer, schedule))
            for group, numbers in zip(live.param_groups, fresh.param_groups, strict=True):
                group |= {key: value for key, value in numbers.items() if key not in KEPT}
            if schedule is not None and new is not None:
                schedule.load_state_dict(new.state_dict())
        now = [group["lr"] for group in trainer.optimizers[0].param_groups]
        if now != rates:
            say(f"learning rate: {max(now):.6g} from here on, {max(rates):.6g} before")

    def _changed(self, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(key, pattern) for key in self.changes for pattern in patterns)

    def _keep_reductions(self, live: Optimizer, schedule: Any, fresh: Optimizer, new: Any) -> None:
        """Keep what the schedule has seen, and by how much it has reduced each rate."""
        for name in SEEN:
            setattr(new, name, getattr(schedule, name))
        for group, numbers in zip(live.param_groups, fresh.param_groups, strict=True):
            start = numbers["lr"] / numbers.get("lr_factor", 1.0)  # the `lr` of the config
            if "model.optimizer.lr" in self.changes:
                start = self.changes["model.optimizer.lr"].old
            start *= group.get("lr_factor", 1.0)
            numbers["lr"] *= group["lr"] / start if start else 1.0


def in_force(trainer: Trainer) -> Iterator[tuple[Optimizer, LRScheduler | None]]:
    """The optimizers that train, each with its schedule."""
    for optimizer in trainer.optimizers:
        schedules = (config.scheduler for config in trainer.lr_scheduler_configs)
        yield optimizer, next((one for one in schedules if one.optimizer is optimizer), None)


def configured(module: LightningModule) -> Iterator[tuple[Optimizer, Any]]:
    """The optimizers at the start of a run, each with its schedule, built anew."""
    built: Any = module.configure_optimizers()
    for one in built if isinstance(built, list) else [built]:
        schedule = one.get("lr_scheduler")
        yield one["optimizer"], schedule["scheduler"] if isinstance(schedule, dict) else schedule


def position(trainer: Trainer, schedule: Any) -> int:
    """Steps that a schedule has done, in steps of the length that they have now.

    Steps of `WarmupCosine` are parts of an epoch: where other batches make an epoch shorter, the
    run is at fewer of them.
    """
    if not isinstance(schedule, WarmupCosine) or trainer.max_epochs in (None, -1):
        return schedule.last_epoch
    fit_loop, per_epoch = trainer.fit_loop, steps_per_epoch(trainer)
    epochs: Any = fit_loop.epoch_progress.current
    if epochs.ready == epochs.processed:
        return epochs.processed * per_epoch
    batches = fit_loop.epoch_loop.batch_progress.current.ready
    return epochs.processed * per_epoch + -(-batches // trainer.accumulate_grad_batches)


def go_to(schedule: Any, steps: int) -> None:
    """Move a schedule that is at its start on by a number of steps."""
    if isinstance(schedule, WarmupCosine):  # in closed form
        schedule.last_epoch = max(0, steps - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer did no step
        while schedule.last_epoch < steps:
            schedule.step()
