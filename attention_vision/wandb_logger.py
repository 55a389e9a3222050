"""Weights & Biases for run folders: online with a key, offline without, never a question."""

import os
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from wandb.errors import AuthenticationError
from wandb.sdk.lib import wbauth

from attention_vision.errors import InputError


def mode() -> str | None:
    """`WANDB_MODE` where it is set; otherwise None (online) with credentials, "offline" without.

    Credentials are those that wandb itself finds: `WANDB_API_KEY`, an identity token, netrc or its
    settings. Nothing is sent anywhere here: `wandb.login` would ask the server for the name of the
    account, and wait for minutes where a firewall swallows the question.

    Raises:
        InputError: credentials that wandb calls malformed.
    """
    if os.environ.get("WANDB_MODE"):
        return None  # wandb reads it
    try:
        found = wbauth.authenticate_session(
            host=wandb.setup().settings.base_url, source="wandb.login()", prompt=False
        )
    except AuthenticationError as error:
        raise InputError(f"W&B: {error}; correct the key, or set WANDB_MODE=offline") from error
    return None if found else "offline"


class WeightsAndBiases(WandbLogger):
    """Lightning's logger with its files in the run folder.

    An offline run is sent later by `wandb sync RUN/wandb/offline-run-*`.

    Args:
        project: the W&B project.
        group: collects runs that belong together, such as the seeds of one experiment.
        tags: words to filter by.
        entity: the W&B team; None is the account's own.
        notes: one free remark.
        name: of the run; the run folder's where none is given.
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
        """Points the logger at a run folder before it starts; a continued run keeps its W&B id."""
        self._save_dir = str(run)
        name = self._wandb_init["name"] or run.name
        self._wandb_init |= {"dir": str(run), "name": name, "mode": mode()}
        earlier = sorted((run / "wandb").glob("*run-*-*"))  # offline-run-TIME-ID or run-TIME-ID
        if earlier:
            self._id = self._wandb_init["id"] = earlier[-1].name.rpartition("-")[2]
