"""Weights & Biases for run folders: online if a key is found, otherwise offline; never prompts."""

from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.training.wandb_mode import mode


class WeightsAndBiases(WandbLogger):
    """Lightning's logger with its files in the run folder.

    Upload an offline run later with `wandb sync RUN/wandb/offline-run-*`.

    Args:
        project: the W&B project.
        group: the W&B group of runs that belong together, such as the seeds of one experiment.
        tags: words to filter by.
        entity: the W&B team; the default is the account's own.
        notes: free text.
        name: name of the run; the default is the run folder's.
    """

    def __init__(
        self,
        project: str = "attention-vision",
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        notes: str | None = None,
        name: str | None = None,
    ):
        super().__init__(
            name=name, project=project, group=group, tags=tags, entity=entity, notes=notes
        )
        self._wandb_init.pop("anonymous")  # Lightning passes it, wandb warns of it

    @rank_zero_only
    def write_to(self, run: Path) -> None:
        """Point the logger at a run folder before it starts; a resumed run keeps its W&B id."""
        self._save_dir = str(run)
        name = self._wandb_init["name"] or run.name
        self._wandb_init |= {"dir": str(run), "name": name, "mode": mode()}
        earlier = sorted((run / "wandb").glob("*run-*-*"))  # offline-run-TIME-ID or run-TIME-ID
        if earlier:
            self._id = self._wandb_init["id"] = earlier[-1].name.rpartition("-")[2]
