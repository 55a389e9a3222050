"""Weights that a training starts from are loaded once."""

from typing import Any

from lightning.pytorch import LightningModule


class StartsFromWeights(LightningModule):
    """A module that may start from weights of another network or run.

    Lightning sets a module up for each of `fit`, `validate`, `test` and `predict`. Only the first
    time nothing is lost by loading weights to start from, and only if no state was loaded.
    """

    _has_weights = False

    def takes_weights(self) -> bool:
        """Whether weights to start from are to be loaded now; asked once in each setup."""
        has_weights, self._has_weights = self._has_weights, True
        return not has_weights and self.trainer.ckpt_path is None

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; from then on the module has its weights."""
        self._has_weights = True
        return super().load_state_dict(*args, **kwargs)
