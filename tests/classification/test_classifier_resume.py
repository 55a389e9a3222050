"""A run that is cut anywhere and resumed equals the run that was not: weights, averages, curves."""

import multiprocessing
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from tiny_run import EPOCHS, STEPS_PER_EPOCH, curves, train, train_until_killed

from attention_vision.training.logging import StepLogger
from attention_vision.training.resume import StepCheckpoint, checkpoint_callbacks
from attention_vision.training.steps import SeedEveryStep


class SaveEverywhere(Checkpoint):
    """A checkpoint at every point where one can be saved, with the curves at that moment."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)

    def save(self, trainer: Trainer, event: str) -> None:
        stem = self.folder / f"{trainer.global_step:02d}_{event}"
        trainer.save_checkpoint(stem.with_suffix(".ckpt"))
        shutil.copy(trainer.logger.file, stem.with_suffix(".csv"))

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if not trainer.is_last_batch:
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        self.save(trainer, "epoch")


def assert_equal(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    ("num_workers", "cuts"),
    [
        (0, ((0, "validation"), (0, "epoch"), (2, "batch"), (9, "batch"))),
        (2, ((0, "validation"), (2, "batch"))),  # which loaders know of, at and inside an epoch
    ],
)
def test_resumes_from_every_kind_of_checkpoint(
    tmp_path: Path, num_workers: int, cuts: tuple[tuple[int, str], ...]
) -> None:
    saved = tmp_path / "saved"
    whole = train(tmp_path / "whole", num_workers, None, [SaveEverywhere(saved)]).state_dict()
    rows = curves(tmp_path / "whole")
    assert [int(row["step"]) for row in rows] == list(range(EPOCHS * STEPS_PER_EPOCH))

    for step, event in cuts:
        cut = f"{STEPS_PER_EPOCH + step:02d}_{event}"
        folder = tmp_path / cut
        folder.mkdir()
        shutil.copy(saved / f"{cut}.csv", folder / "metrics.csv")
        assert_equal(train(folder, num_workers, saved / f"{cut}.ckpt").state_dict(), whole)
        assert curves(folder) == rows, cut


def test_resumes_under_max_steps(tmp_path: Path) -> None:
    """Where Lightning takes an epoch that has ended for one that runs."""
    saved, steps = tmp_path / "saved", {"max_epochs": -1, "max_steps": 12}
    whole = train(tmp_path / "whole", 0, None, [SaveEverywhere(saved)], **steps).state_dict()
    for cut in ("05_validation", "05_epoch", "07_batch"):
        folder = tmp_path / cut
        folder.mkdir()
        shutil.copy(saved / f"{cut}.csv", folder / "metrics.csv")
        assert_equal(train(folder, 0, saved / f"{cut}.ckpt", **steps).state_dict(), whole)
        assert curves(folder) == curves(tmp_path / "whole"), cut


def test_killed_twice(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 2)
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"

    def run(checkpoint: Path | None, kill_at: int) -> int:
        arguments = (folder, 2, checkpoint, kill_at)
        process = multiprocessing.get_context("fork").Process(
            target=train_until_killed, args=arguments
        )
        process.start()
        process.join()
        return process.exitcode

    # In the second epoch, one step behind its checkpoint; then in the third.
    assert run(None, kill_at=7) == -signal.SIGKILL
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert run(last, kill_at=13) == -signal.SIGKILL
    assert torch.load(last, weights_only=True)["global_step"] == 12
    assert run(last, kill_at=-1) == 0

    assert_equal(torch.load(folder / "final.pt", weights_only=True), whole.state_dict())
    assert curves(folder) == curves(tmp_path / "whole")


class Noted(StepCheckpoint):
    """Notes what it would save, and then takes it for not saved."""

    def __init__(self, folder: Path, **when: object):
        super().__init__(folder, save_on_train_epoch_end=False, **when)
        self.saved: list[tuple[int, bool]] = []

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.saved.append((trainer.global_step, trainer.validating))


def test_step_checkpoint_waits_for_the_validation_that_follows(tmp_path: Path) -> None:
    """Every step is asked for; those between a step and its validation are moved behind it."""
    steps = Noted(tmp_path, every_n_train_steps=1)
    train(tmp_path, 0, None, [steps], val_check_interval=2, max_steps=STEPS_PER_EPOCH)
    assert steps.saved == [(1, False), (2, True), (3, False), (4, True)]


def test_step_checkpoint_waits_for_all_gradients_of_a_step(tmp_path: Path) -> None:
    """Every moment is asked for; the gradients of half a step would be lost."""
    moments = Noted(tmp_path, train_time_interval=timedelta(0))
    train(tmp_path, 0, None, [moments], accumulate_grad_batches=2, max_epochs=1)
    assert moments.saved == [(1, False), (2, False)]


def test_callbacks_with_a_state_keep_their_keys(tmp_path: Path) -> None:
    """A renamed class would not find its state in the checkpoints that were written before."""
    callbacks = checkpoint_callbacks(tmp_path, "val/top1", higher_is_better=True, steps=5)
    callbacks += [SeedEveryStep(), StepLogger()]
    keys = {one.state_key.partition("{")[0] for one in callbacks if one.state_dict()}
    assert keys == {"BestCheckpoint", "EpochCheckpoint", "StepCheckpoint", "SeedEveryStep"}
