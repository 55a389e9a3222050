"""Which checkpoints a run keeps, and when they are written so that a resume is bit-exact."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from attention_vision.training.slurm import SlurmRequeue
from attention_vision.training.steps import is_validated_next


class StepCheckpoint(ModelCheckpoint):
    """Saves inside epochs, every so many steps or minutes, where Lightning can resume bit by bit.

    That is never between a step and its validation: Lightning 2.6 resumes behind the validation,
    and from the last batch of an epoch even without the epoch's row. It is done after the
    validation instead; the epoch's end is left to a checkpoint with `every_n_epochs`. Nor is it
    between batches whose gradients add up: gradients are not saved.

    Give it save_on_train_epoch_end=False.
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


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best score when the run folder was moved, where Lightning would begin anew.

    Saves nothing where a validation does not log its key: a GAN may be trained without a score.
    """

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(self.dirpath, "best.ckpt")
        if best.is_file() and state_dict["best_k_models"]:
            (score,) = state_dict["best_k_models"].values()
            path = str(best)
            state_dict |= {"dirpath": self.dirpath, "best_k_models": {path: score}}
            state_dict |= {"best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict)


def checkpoint_callbacks(
    folder: Path, best: str, higher_is_better: bool, steps: int | None
) -> list[Callback]:
    """Of a training: best.ckpt, and last.ckpt at the end of each epoch and inside long ones.

    Args:
        folder: where they are written.
        best: the logged key that chooses best.ckpt.
        higher_is_better: whether more of it is better.
        steps: between two saves of last.ckpt inside an epoch; ten minutes where none are given.
    """
    mode = "max" if higher_is_better else "min"
    return [
        BestCheckpoint(folder, "best", monitor=best, mode=mode, enable_version_counter=False),
        ModelCheckpoint(
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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place first: a kill leaves the old one or the new one.

    Lightning's own goes by way of the system's folder for temporary files; where that is another
    file system, the last step copies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        part = path.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, part)
        os.replace(part, path)
