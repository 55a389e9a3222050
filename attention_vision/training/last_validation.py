"""Validation at the end of a run, whatever `check_val_every_n_epoch` says."""

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch, which also validates after the last batch of the run.

    Lightning validates at an epoch's or a step's multiple: a run of 10 epochs validated every 4, or
    one that `max_steps` or `max_time` ends inside an epoch, would end with weights that no
    validation has seen, and could end without best.ckpt.

    A run that `max_time` or a callback ends between batches whose gradients are accumulated does
    the step first: gradients are in no checkpoint, and a longer run would miss them.
    """

    @property
    def done(self) -> bool:
        return super().done and not self._finishes_step()

    def _finishes_step(self) -> bool:
        stops = self.trainer.should_stop and not self._is_training_done
        return stops and self._should_accumulate()

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if self._finishes_step():
            return False
        if super()._should_check_val_fx(data_fetcher):
            return True
        if self.restarting and self.restarted_on_last:
            return True  # a checkpoint of such a validation, in a run that is longer now: it was
        return self.trainer.enable_validation and self._is_last_batch_of_run()

    def _is_last_batch_of_run(self) -> bool:
        fit_loop = self.trainer.fit_loop
        if 0 <= self.max_steps <= self.global_step:
            return True
        if self.trainer.should_stop and fit_loop._can_stop_early:  # max_time
            return True
        epochs = fit_loop.epoch_progress.current  # annotated as its base class
        done = epochs.processed + 1  # pyright: ignore[reportAttributeAccessIssue]
        last_epoch = fit_loop.max_epochs not in (None, -1) and done >= fit_loop.max_epochs
        return last_epoch and self._num_ready_batches_reached()


def validate_at_end(trainer: Trainer) -> Trainer:
    """Give the trainer this epoch loop."""
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, trainer.min_steps, trainer.max_steps)
    return trainer
