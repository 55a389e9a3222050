"""Checkpoints of a run, written when a resume from them is bit-exact."""

from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from attention_vision.training.slurm import SlurmRequeue
from attention_vision.training.steps import ends_inside_epoch, is_validated_next


class KeyedCheckpoint(ModelCheckpoint):
    """A checkpoint callback whose key is formatted once, not for each of its 18 hooks a step."""

    @cached_property
    def state_key(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().state_key


class StepCheckpoint(KeyedCheckpoint):
    """Save inside epochs, every n steps or minutes, where Lightning can resume bit-exactly.

    It never saves between a step and its validation: Lightning 2.6 resumes after the validation,
    and from the last batch of an epoch even without the epoch's row. It saves after the validation
    instead; the epoch's end is left to `EpochCheckpoint`. Nor does it save between batches whose
    gradients are accumulated: gradients are not saved. Where the run ends inside an epoch, it
    always saves: a longer run goes on there.

    To be built with save_on_train_epoch_end=False.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        if is_validated_next(trainer):
            self._defer_save_until_validation = True
            return
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        self._save_at_end(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_validation_end(trainer, module)
        if not trainer.sanity_checking:
            self._save_at_end(trainer)

    def _save_at_end(self, trainer: Trainer) -> None:
        if ends_inside_epoch(trainer) and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class EpochCheckpoint(KeyedCheckpoint):
    """Save at the end of each epoch, but not of one that the end of the run cuts short.

    The state after that would be of an epoch that is over: `StepCheckpoint` saves before it.
    """

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not ends_inside_epoch(trainer):
            super().on_train_epoch_end(trainer, module)


class BestCheckpoint(KeyedCheckpoint):
    """Keep the best score if the run folder was moved, where Lightning would start again.

    Nothing is saved if a validation does not log the key: a GAN may be trained without a score. A
    score that is not finite is never the best one, and does not stand in the way of a better one.
    """

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        assert self.monitor is not None  # see `checkpoint_callbacks`
        score = monitor_candidates.get(self.monitor)
        if score is not None and torch.isfinite(score):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(self.dirpath or ".", "best.ckpt")
        if best.is_file() and state_dict["best_k_models"]:
            (score,) = state_dict["best_k_models"].values()
            path = str(best)
            state_dict |= {"dirpath": self.dirpath, "best_k_models": {path: score}}
            state_dict |= {"best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # which Lightning leaves out


def checkpoint_callbacks(
    folder: Path, best: str, higher_is_better: bool, steps: int | None
) -> list[Callback]:
    """Build the callbacks that write best.ckpt, and last.ckpt each epoch and inside long ones.

    Args:
        folder: the folder of the checkpoints.
        best: the logged key that chooses best.ckpt.
        higher_is_better: whether a higher value of it is better.
        steps: steps between two saves of last.ckpt inside an epoch; None for every ten minutes.
    """
    mode = "max" if higher_is_better else "min"
    return [
        BestCheckpoint(folder, "best", monitor=best, mode=mode, enable_version_counter=False),
        EpochCheckpoint(
            folder,
            "last",
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        StepCheckpoint(
            folder,
            "last",
            every_n_train_steps=steps,
            train_time_interval=None if steps else timedelta(minutes=10),
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
        SlurmRequeue(folder / "last.ckpt"),
    ]
