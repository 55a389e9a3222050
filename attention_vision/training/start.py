"""Weights that a training starts from are not loaded over what was learned."""

from typing import Any

from lightning.pytorch import LightningModule


class StartsFromWeights(LightningModule):
    """A module that may start from weights of another network or run.

    Lightning sets a module up for each of `fit`, `validate`, `test` and `predict`. `load_start` is
    called as long as nothing would be lost: not after a training, nor where a state was or will be
    loaded.

    Attributes:
        is_new: whether nothing had been learned when the module was set up.
    """

    is_new = True
    _has_learned = False

    def setup(self, stage: str) -> None:
        self.is_new = not self._has_learned and self.trainer.ckpt_path is None
        if self.is_new:
            self.load_start(stage)
        self._has_learned = self._has_learned or stage == "fit"

    def load_start(self, stage: str) -> None:
        """Load the weights to start from, if there are any."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; what it has loaded is not lost in `setup`."""
        result = super().load_state_dict(*args, **kwargs)
        self._has_learned = True
        return result
