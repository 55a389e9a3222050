"""Steps of a run: their numbers, their seeds, and what makes a resume bit-exact.

Written against the loops of Lightning 2.6. A run that is killed and resumed must not differ from
one that was not. Lightning restores weights, optimiser, schedule and the position in the data;
three parts restore the rest: the random stream of each step (`SeedEveryStep`), the mean of an epoch
that is cut in two (`ResumableMean`), and the curves on disk (`StepLogger`).
"""

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop


def run_seed() -> int:
    """The run's `seed_everything`, which Lightning keeps in the environment; 0 if it is not set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mix(*numbers: int) -> int:
    """Mix several numbers into one 32-bit seed, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_streams(seed: int, device: torch.device) -> None:
    """Seed numpy, python, and torch on the CPU and on one device.

    The streams are those of `torch.manual_seed`, which asks every kind of accelerator in turn and
    formats the stack for those that are not in use: 0.3 ms, a tenth of a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global stream is meant)
    random.seed(seed)


class SeedEveryStep(Callback):
    """Seed torch, numpy and python before each training batch from (seed, rank, batch number).

    MixUp, dropout and stochastic depth then depend on the step, not on what the process did before.
    A run that resumes at the end of an epoch starts the next one, where Lightning 2.6 would take
    another batch first. Its state tells `adds_seeds` how the run draws its orders, and
    `draws_from_streams` how the augmentation of images in memory draws.
    """

    order: str = "mixed"
    draws: str = "counter"

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "draws": self.draws}

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["callbacks"].get(self.state_key, {})
        self.order, self.draws = state.get("order", "summed"), state.get("draws", "streams")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Under `max_steps` Lightning 2.6 resumes a finished epoch as if it were running, and takes
        # a batch of the next one in it. Here the next one begins, as it does under `max_epochs`.
        fit_loop = trainer.fit_loop
        if fit_loop.restarted_on_epoch_end:
            # The setter of the base class: FitLoop's own refuses.
            _Loop.restarting.fset(fit_loop, False)  # pyright: ignore[reportOptionalCall]
            fit_loop.reset()
            progress = fit_loop.epoch_progress.current  # annotated as its base class
            progress.completed = progress.processed  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = mix(run_seed(), trainer.global_rank, trainer.fit_loop.total_batch_idx)
        seed_streams(seed, module.device)


def adds_seeds(trainer: Trainer | None) -> bool:
    """Whether the run began with orders of the data drawn from seed + epoch, as before 0.2."""
    callbacks: list[Any] = [] if trainer is None else trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(isinstance(one, SeedEveryStep) and one.order == "summed" for one in callbacks)


def draws_from_streams(trainer: Trainer) -> bool:
    """Whether the run began before images were held in memory: each was read with its stream."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(isinstance(one, SeedEveryStep) and one.draws == "streams" for one in callbacks)


def is_validated_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that just ended."""
    data_fetcher = trainer.fit_loop._data_fetcher
    assert data_fetcher is not None  # there is one as long as batches are
    return trainer.fit_loop.epoch_loop._should_check_val_fx(data_fetcher)


def ends_inside_epoch(trainer: Trainer) -> bool:
    """Whether the run ends after the batch that just ended, and its epoch has more batches.

    By `max_steps`, by `max_time`, or because a callback such as EarlyStopping asks for it.
    """
    fit_loop = trainer.fit_loop
    loop = fit_loop.epoch_loop
    steps_are_done = 0 <= loop.max_steps <= loop.global_step
    is_over = steps_are_done or (trainer.should_stop and fit_loop._can_stop_early)
    return is_over and not loop._num_ready_batches_reached()


def step_number(trainer: Trainer) -> int:
    """The step number that Lightning would log now: steps finished before this one."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def last_step(checkpoint: Mapping[str, Any]) -> int | None:
    """The number of the last step before a checkpoint, as logged; None without a training."""
    try:
        loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
    except (KeyError, TypeError):
        return None
    return loop["_batches_that_stepped"] - 1
