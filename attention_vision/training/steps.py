"""Steps of a run: their numbers, their seeds, and what makes a resume bit-exact.

Written against the loops of Lightning 2.6. A run that is killed and resumed must not differ from
one that was not. Lightning restores weights, optimiser, schedule and the position in the data;
three parts restore the rest: the random stream of each step (`SeedEveryStep`), the mean of an epoch
that is cut in two (`ResumableMean`), and the curves on disk (`StepLogger`).
"""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop


def run_seed() -> int:
    """The run's `seed_everything`, kept by Lightning in the environment; 0 where it is not set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class SeedEveryStep(Callback):
    """Seeds torch, numpy and python before each training batch from (seed, rank, batches so far).

    MixUp, dropout and stochastic depth then depend on the step, not on what the process did before.
    A resumed run takes that step, too, where Lightning would take another.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Under `max_steps` Lightning 2.6 resumes a finished epoch as if it were running, and gives
        # it a batch of the next one. Here the next one begins, as it does under `max_epochs`.
        fit_loop = trainer.fit_loop
        if fit_loop.restarted_on_epoch_end:
            _Loop.restarting.fset(fit_loop, False)  # its own setter refuses
            fit_loop.reset()
            progress = fit_loop.epoch_progress.current
            progress.completed = progress.processed

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = mix(run_seed(), trainer.global_rank, trainer.fit_loop.total_batch_idx)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global stream is meant)
        random.seed(seed)


def is_validated_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that just ended."""
    fit_loop = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


def step_number(trainer: Trainer) -> int:
    """The number of the row that Lightning would write now: steps finished before this one."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
