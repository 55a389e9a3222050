"""The folder that a command works in, and the checkpoint that it starts from."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.config.trust import (
    is_below,
    refuse_links,
    refuse_writes,
)
from attention_vision.errors import RUN_VARIABLE, ConfigError, InputError
from attention_vision.runs.arguments import Parsed
from attention_vision.runs.data_summary import DATA_FILES
from attention_vision.runs.resume import (
    changed_arguments,
    earlier_flags,
    in_words,
    is_inside_epoch,
    record_of,
)
from attention_vision.runs.run_config import plain_config
from attention_vision.runs.weights import (
    measures_weights,
    named_weights,
)
from attention_vision.training.changes import ApplyChanges
from attention_vision.training.run_folder import (
    best_or_last,
    default_run,
    find_checkpoint,
    holds_run,
    is_requeued,
    make,
    missing_parents,
    new_run,
    read_checkpoint,
    remove_empty,
    resumable_checkpoint,
    whole_checkpoint,
)
from attention_vision.training.run_lock import RunLock
from attention_vision.yaml_json import read_yaml


@dataclass(frozen=True)
class OpenRun:
    """Folder of a run, and the checkpoint it starts from.

    Args:
        folder: the run folder.
        is_new: whether it was not there before this command.
        lock: of the folder while it is trained in; None for the other verbs and processes.
        checkpoint: None for fresh or named weights.
        displaced: the run's own checkpoint where named weights are measured in its place.
        parents: folders above it that this command made, the innermost first.
    """

    folder: Path
    is_new: bool
    lock: RunLock | None
    checkpoint: Path | None = None
    displaced: Path | None = None
    parents: Sequence[Path] = ()

    def close(self) -> None:
        """Let others train in the folder."""
        if self.lock:
            self.lock.release()

    def give_up(self) -> None:
        """Close, and remove a new folder that contains only what a failed start wrote."""
        self.close()
        own = ("config.yaml", *DATA_FILES)
        failed = self.is_new and all(path.name in own for path in self.folder.glob("*"))
        if failed and not rank_zero_only.rank:
            shutil.rmtree(self.folder, ignore_errors=True)
            remove_empty(self.parents)


def open_run(parsed: Parsed) -> OpenRun:
    """Choose the run folder and the checkpoint to start from.

    The folder is that of `--run`, of the config, of the config's own place, or a new one. It is
    made here, and locked for `fit`: of several commands one has it.

    Raises:
        InputError: `--run` is a file, another process trains in it, `fit` without `--ckpt_path`
            into a folder that contains a run, there is no such checkpoint or it is of another run
            than the folder's, or nothing to evaluate.
    """
    run = claim_folder(parsed)
    try:
        checkpoint, displaced = choose_checkpoint(parsed, run)
    except BaseException:
        run.give_up()
        raise
    return replace(run, checkpoint=checkpoint, displaced=displaced)


def claim_folder(parsed: Parsed) -> OpenRun:
    """Choose the folder; make it, and lock it to train, in the first process."""
    config = parsed.config
    first, writes = rank_zero_only.rank == 0, not config.trainer.fast_dev_run
    folder = (
        choose_folder(parsed)
        if first or RUN_VARIABLE not in os.environ
        else Path(os.environ[RUN_VARIABLE])
    )
    is_new = folder is None or not folder.exists()
    parents = missing_parents(folder, parsed.name) if first else []
    if folder is None:
        stem = Path(str(config.config[0])).stem if config.config else parsed.name
        folder = (new_run if first and writes else default_run)(parsed.name, stem)
    if first:
        os.environ[RUN_VARIABLE] = str(folder)
    lock = None
    if parsed.verb == "fit" and first and writes:
        with suppress(OSError):  # which the lock reports
            make(folder, exist_ok=True)
        lock = RunLock(folder)
    return OpenRun(folder, is_new, lock, parents=parents)


def choose_folder(parsed: Parsed) -> Path | None:
    """The run folder that this command names; None for a new one."""
    config = parsed.config
    if config.run == "":
        raise InputError("--run is empty: give the folder of the run")
    run = Path(config.run) if config.run else None
    for file in (Path(str(path)) for path in config.config or [] if not parsed.run_by_flag):
        if file.name == "config.yaml" and read_yaml(file).get("run") == config.run:
            run = file.parent  # the same folder, unless it was moved
    if run is None and config.ckpt_path in ("best", "last"):
        raise InputError(f"--ckpt_path {config.ckpt_path}: of which run? give --run RUN")
    if run is not None and run.is_file():
        raise InputError(f"--run {run} is a file: give the folder of the run")
    return run


def choose_checkpoint(parsed: Parsed, run: OpenRun) -> tuple[Path | None, Path | None]:
    """The checkpoint to start from, and the one that named weights displace; see `OpenRun`."""
    config, folder = parsed.config, run.folder
    named, config.run = config.run is not None, str(folder)
    if parsed.verb == "fit":
        return checkpoint_to_resume(parsed, run), None
    if config.ckpt_path and parsed.weights_by_flag:
        raise InputError(f"{parsed.verb} measures --ckpt_path or --weights: leave one of them out")
    if config.ckpt_path:
        return find_checkpoint(folder, config.ckpt_path), None
    checkpoint = best_or_last(folder)
    if measures_weights(config, parsed.weights_by_flag, folder):
        return None, checkpoint
    if checkpoint is None and named_weights(config) is None:
        where = "give -c RUN/config.yaml"
        if named:
            where = f"{folder} does not contain one, train it to its first one by fit"
        raise InputError(
            f"no checkpoint to {parsed.verb}: {where}, --ckpt_path FILE or --weights FILE"
        )
    return checkpoint, None


def checkpoint_to_resume(parsed: Parsed, run: OpenRun) -> Path | None:
    """The checkpoint that `fit` goes on from; None for a run from its start."""
    config, folder = parsed.config, run.folder
    if is_requeued() and holds_run(folder):
        config.ckpt_path = config.ckpt_path or "last"
    # The other processes may come when the first one has begun to write.
    holds = rank_zero_only.rank == 0 and not config.trainer.fast_dev_run and holds_run(folder)
    if not config.ckpt_path:
        if holds:
            raise InputError(
                f"{folder} contains a run: resume it by --ckpt_path last, or give another --run"
            )
        return None
    wanted = resumable_checkpoint(folder, config.ckpt_path)
    checkpoint, lines = whole_checkpoint(wanted)
    parsed.notices.extend(lines)
    if folder.resolve() not in checkpoint.resolve().parents:
        if holds:
            raise InputError(
                f"{folder} contains a run, and {checkpoint} is of another: give a new --run to"
                " continue that one there"
            )
        parsed.notices.append(
            f"{folder} continues {checkpoint}: its weights, optimizer and position; --weights"
            f" {checkpoint} would take the weights alone"
        )
    elif config.ckpt_path == "last" and not (folder / "checkpoints" / "last.ckpt").is_file():
        parsed.notices.append(f"there is no last.ckpt: resumed from {checkpoint}")
    return checkpoint


def take_over(parsed: Parsed, checkpoint: Path) -> ApplyChanges:
    """Compare the arguments with those of the run to resume; see `runs.resume.RULES`.

    Raises:
        InputError: an argument changed that may not.
    """
    state, config = read_checkpoint(checkpoint), parsed.config
    record: dict[str, Any] = record_of(state)
    beside = checkpoint.resolve().parents[1] / "config.yaml"
    if not record and beside.is_file():  # by an earlier version
        record = {"config": read_yaml(beside)}
    inside = "loops" in state and is_inside_epoch(state)
    changes = {}
    if record:
        if config.seed_everything is True:  # a resume does not draw another one
            config.seed_everything = record["config"].get("seed_everything", True)
        changes = changed_arguments(record, plain_config(parsed.parser, config), checkpoint, inside)
    parsed.notices.extend(in_words(changes))
    parsed.flags[:0] = earlier_flags(record, parsed.flags, changes)
    return ApplyChanges(changes, inside, record.get("processes"))


def stay_below(config: Namespace, folder: Path) -> None:
    """Raise ConfigError for a config that is not trusted and writes where it was not told to."""
    files = [Path(str(file)) for file in config.config or []]
    for file in files:
        named = read_yaml(file).get("run")
        if named == str(folder) and not is_below(folder, Path(), file.parent):
            raise ConfigError(f"{file}: run would write to {folder}: give --run RUN, or --trust")
    refuse_writes(config, folder)
    refuse_links(folder)
