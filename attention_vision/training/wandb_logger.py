"""Weights & Biases for run folders: online if a key is found, otherwise offline; never prompts."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.training.wandb_mode import how_to_sync, one_sentence, start_run, tell


def without_failure(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a method of `WeightsAndBiases` to repeat a call that failed, offline.

    After a second failure of the run its calls do nothing.
    """

    @rank_zero_only
    @wraps(method)
    def call(self: "WeightsAndBiases", *values: Any, **options: Any) -> None:
        while self.failures < 2:
            try:
                return method(self, *values, **options)
            except Exception as error:
                self.fall_back(error)

    return call


class WeightsAndBiases(WandbLogger):
    """Lightning's logger with its files in the run folder.

    Upload an offline run later with `wandb sync RUN/wandb/offline-run-*`. A training does not
    depend on W&B: without an answer of the server within seconds the run is offline, and so it goes
    on if W&B's own process is killed; a second failure ends its logging. Either is told in one
    line. The end of a run waits for the upload, as long as wandb's `finish_timeout` allows.

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

        self.failures = 0

    @rank_zero_only
    def write_to(self, run: Path) -> None:
        """Point the logger at a run folder before it starts; a resumed run keeps its W&B id."""
        self._save_dir = str(run)
        name = self._wandb_init["name"] or run.name
        # One of its own, so that a run that falls back to offline keeps it.
        identity = uuid4().hex[:8]
        earlier = sorted((run / "wandb").glob("*run-*-*"))  # offline-run-TIME-ID or run-TIME-ID
        if earlier:
            identity = earlier[-1].name.rpartition("-")[2]
        self._id = identity
        self._wandb_init |= {"dir": str(run), "name": name, "id": identity}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        if self._experiment is None:
            options = {key: value for key, value in self._wandb_init.items() if key != "dir"}
            run = start_run(Path(self._save_dir or "."), **options)
            run.define_metric("trainer/global_step")  # as Lightning's
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            self._experiment = run
        return self._experiment

    @without_failure
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        super().log_hyperparams(params)

    @without_failure
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @without_failure
    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **options: Any
    ) -> None:
        super().log_image(key, images, step, **options)

    @without_failure
    def log_summary(self, facts: dict[str, Any]) -> None:
        """Set values of the run's summary, such as what became of its claim."""
        self.experiment.summary.update(facts)

    @without_failure
    def finalize(self, status: str) -> None:
        """End the W&B run; logging again would resume it."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None

    def fall_back(self, error: Exception) -> None:
        """Go on offline after the first failure, without W&B after the second; say so."""
        self.failures += 1
        self._experiment, self._wandb_init["mode"] = None, "offline"
        with suppress(Exception):
            wandb.teardown()  # of its process, which may have been killed
        folder = Path(self._save_dir or ".")
        goes_on = "the run goes on offline" if self.failures < 2 else "W&B gets nothing more"
        tell(f"{one_sentence(error)}; {goes_on}: {how_to_sync(folder)}")
