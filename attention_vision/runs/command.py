"""The path of `attention-vision TASK VERB`: parse, open_run, build, make_trainer, then the verb."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from jsonargparse import ActionConfigFile, Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from attention_vision import __version__
from attention_vision.attention import attention_backend
from attention_vision.claims.check import ClaimCheck
from attention_vision.claims.claim import Claim
from attention_vision.config.build import add_nodes, instantiate
from attention_vision.config.parser import ArgumentParser, kept_arguments, parse_words
from attention_vision.config.ranges import check_ranges
from attention_vision.config.trainer import check_after, check_before, refusals_of_trainer
from attention_vision.config.trust import (
    imports,
    is_below,
    refuse_links,
    refuse_writes,
    trusts_everything,
)
from attention_vision.data.labels import read_labels
from attention_vision.data.loading import TaskData
from attention_vision.errors import RUN_VARIABLE, ConfigError, InputError
from attention_vision.ranges import Count, Seed, Threads
from attention_vision.runs.data_summary import DATA_FILES, ReportData
from attention_vision.runs.fp8 import compare_after_fit, merged, metrics_in, print_difference
from attention_vision.runs.measured import identity_of, other_data_line
from attention_vision.runs.resume import (
    changed_arguments,
    changes_of_measurement,
    earlier_flags,
    flags_of_run,
    in_words,
    is_inside_epoch,
    read_config,
    record_of,
    shown,
    split_words,
    words_on_resume,
)
from attention_vision.runs.run_config import RunConfig, plain_config
from attention_vision.runs.tasks import TASKS, Task
from attention_vision.runs.weights import (
    labels_of,
    measures_weights,
    named_weights,
    settle_preprocessing,
    unread_weights,
    weights_by_flag,
)
from attention_vision.training.changes import ApplyChanges
from attention_vision.training.checkpoint_io import AtomicCheckpointIO
from attention_vision.training.finite import FiniteSteps
from attention_vision.training.heartbeat import Heartbeat
from attention_vision.training.last_validation import validate_at_end
from attention_vision.training.logging import RunFolderLogger, WithoutPictures
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.metrics_sum import MetricsSum
from attention_vision.training.progress import ProgressLines, RunBar, say
from attention_vision.training.resume import checkpoint_callbacks
from attention_vision.training.run_folder import (
    best_or_last,
    default_run,
    find_checkpoint,
    holds_run,
    is_requeued,
    new_run,
    read_checkpoint,
    read_state,
    resumable_checkpoint,
    whole_checkpoint,
)
from attention_vision.training.run_lock import RunLock
from attention_vision.training.signals import Stopped, signals_end_the_run
from attention_vision.training.steps import step_number
from attention_vision.yaml_json import read_yaml

TRUST = "--trust"  # a word of the command alone: a file cannot ask to be trusted
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was")


@dataclass(frozen=True)
class Parsed:
    """A command line that parses.

    Args:
        name: a key of `TASKS`.
        verb: fit, validate, test or predict.
        config: of all files and flags, defaults filled in.
        notices: lines on what the arguments do not say by themselves.
        flags: that hold on when the run is resumed.
        weights_by_flag: whether a flag, not a file alone, names weights.
        trusted: whether the config may name any class: that of fit, or by --trust.
    """

    name: str
    verb: str
    task: Task
    parser: ArgumentParser
    config: Namespace
    notices: list[str]
    flags: list[str]
    weights_by_flag: bool
    trusted: bool


@dataclass(frozen=True)
class OpenRun:
    """Folder of a run, and the checkpoint it starts from.

    Args:
        folder: the run folder.
        is_new: whether it was not there before this command.
        lock: of the folder while it is trained in; None for the other verbs and processes.
        checkpoint: None for fresh or named weights.
        displaced: the run's own checkpoint where named weights are measured in its place.
    """

    folder: Path
    is_new: bool
    lock: RunLock | None
    checkpoint: Path | None = None
    displaced: Path | None = None

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


@dataclass(frozen=True)
class Built:
    """Objects of a config; `trainer` holds the trainer's arguments, with its callbacks built."""

    module: LightningModule
    data: LightningDataModule
    trainer: Namespace
    claim: Claim | None


@dataclass(frozen=True)
class Work:
    """Config, run folder, objects and trainer: the argument of every verb."""

    parsed: Parsed
    run: OpenRun
    objects: Built
    trainer: Trainer


def prepare(
    name: str,
    verb: str,
    words: list[str],
    callbacks: Sequence[Callback] = (),
    hold_on: bool = True,
) -> Work:
    """Parse, choose the run folder, build the objects and the trainer.

    Args:
        name: a key of `TASKS`.
        verb: fit, validate, test or predict.
        words: the rest of the command line.
        callbacks: for the trainer, besides those of the config.
        hold_on: whether flags of the run that is resumed hold on, see `words_on_resume`.

    Raises:
        ConfigError: the arguments or a config file do not parse.
        InputError: anything else that is wrong with what the user gave.
    """
    parsed = parse(name, verb, words, hold_on)
    run = open_run(parsed)
    try:
        if not parsed.trusted:
            stay_below(parsed.config, run.folder)
        if verb == "fit" and run.checkpoint:
            callbacks = [take_over(parsed, run.checkpoint), *callbacks]
        objects = build(parsed, run.checkpoint)
        parsed.notices.extend(unread_weights(parsed.config, run.folder, run.checkpoint))
        settled = settle_preprocessing(parsed.config, objects.module, objects.data, run.checkpoint)
        parsed.notices.extend(settled)
        return Work(parsed, run, objects, make_trainer(parsed, run, objects, callbacks))
    except BaseException:
        run.give_up()
        raise


def stay_below(config: Namespace, folder: Path) -> None:
    """Raise ConfigError for a config that is not trusted and writes where it was not told to."""
    files = [Path(str(file)) for file in config.config or []]
    for file in files:
        named = read_yaml(file).get("run")
        if named == str(folder) and not is_below(folder, Path(), file.parent):
            raise ConfigError(f"{file}: run would write to {folder}: give --run RUN, or --trust")
    refuse_writes(config, folder)
    refuse_links(folder)


def parse(name: str, verb: str, words: list[str], hold_on: bool = True) -> Parsed:
    """Parse the files and flags of a command line.

    Raises:
        ConfigError: they do not parse, or a file is of another task.
    """
    task, lines = TASKS[name], []
    trusted = verb == "fit" or TRUST in words or trusts_everything()
    words = [word for word in words if word != TRUST]
    if verb == "fit" and hold_on:
        words, lines = words_on_resume(words)
    given = list(read_words(words))
    for file, content in given:
        if file is not None and (other := content.get("task", name)) != name:
            raise ConfigError(f"{file} is for `attention-vision {other}`, not for {name}")
    parser = make_parser(name, verb, task)
    roots = {"model": task.model, "data": task.data, "trainer": Trainer}
    with imports(trusted, ", ".join(str(file) for file, _ in given if file)):
        config = parse_words(parser, words, roots)
        check_ranges(parser, config)
    lines += kept_arguments((content for _, content in given), config.as_dict())
    by_flag = weights_by_flag(content for file, content in given if file is None)
    flags = flags_of_run(words)
    return Parsed(name, verb, task, parser, config, lines, flags, by_flag, trusted)


def read_words(words: list[str]) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Read files and flags in the order they are given, a flag as {dotted key: value}.

    Yields the file, None for a flag, and what it says.
    """
    for flag, value in split_words(words):
        if flag in ("-c", "--config") and value and Path(value).is_file():
            yield Path(value), read_config(Path(value))
        elif flag.startswith("--"):
            yield None, {flag[2:]: value or ""}


def make_parser(name: str, verb: str, task: Task) -> ArgumentParser:
    """The parser of a verb of a task: its own flags, then trainer, model and data."""
    parser = ArgumentParser(
        prog=f"attention-vision {name} {verb}",
        description=None,
        epilog="--trust: configs may name classes outside of this package, torch and torchvision"
        " (those of fit always may)",
        allow_abbrev=False,  # or `--trainer.max_epoch 3` passes for something else
        exit_on_error=False,
        dump_header=[
            f"attention-vision {__version__}, lightning {lightning.__version__}, "
            f"torch {torch.__version__}"
        ],
    )
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="a config file; several are merged in order"
    )
    parser.add_argument("--task", type=Literal[name], default=name, help="fixed")
    parser.add_argument(
        "--run", type=str | None, default=None,
        help="the run folder (default: a new one, runs/TASK/TIME_FILE)",
    )  # fmt: skip
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None,
        help="'last', 'best' or a file: fit resumes from it, the other verbs evaluate it",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint_every_n_steps", type=Count | None, default=None,
        help="steps between two saves of last.ckpt inside an epoch (default: ten minutes)",
    )  # fmt: skip
    parser.add_argument(
        "--on_nonfinite", type=Literal["stop", "skip"], default="stop",
        help="at a loss or gradients that are NaN or infinite: stop, or leave the step out, which"
        " waits for the GPU in every step",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=bool, default=True,
        help="draw pictures: in training in RUN/pictures and W&B, and those of predict",
    )  # fmt: skip
    parser.add_argument(
        "--attention_backend", type=Literal["fused", "eager", "fp8"], default="fused",
        help="how attention weights are computed, see attention_vision.attention",
    )  # fmt: skip
    parser.add_argument(
        "--compile", type=Literal["inductor", "aot_eager", "eager"] | None, default=None,
        help="torch.compile the networks with this backend; inductor makes them faster, the"
        " others only trace them (default: not compiled)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=Threads | None, default=None,
        help="CPU threads of each process (default: torch's own choice)",
    )  # fmt: skip
    parser.add_argument(
        "--claim", type=Claim | None, default=None, help="the number that the run reproduces"
    )
    parser.add_argument(
        "--seed_everything", type=bool | Seed, default=0, help="the seed; true draws one"
    )
    parser.add_lightning_class_args(Trainer, "trainer")
    add_nodes(parser, task.nodes, task.links)
    return parser


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
    if folder is None:
        stem = Path(str(config.config[0])).stem if config.config else parsed.name
        folder = (new_run if first and writes else default_run)(parsed.name, stem)
    if first:
        os.environ[RUN_VARIABLE] = str(folder)
    lock = None
    if parsed.verb == "fit" and first and writes:
        with suppress(OSError):  # which the lock reports
            folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
    return OpenRun(folder, is_new, lock)


def choose_folder(parsed: Parsed) -> Path | None:
    """The run folder that this command names; None for a new one."""
    config = parsed.config
    if config.run == "":
        raise InputError("--run is empty: give the folder of the run")
    run = Path(config.run) if config.run else None
    for file in (Path(str(path)) for path in config.config or []):
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


def build(parsed: Parsed, checkpoint: Path | None = None) -> Built:
    """Build data, model and the trainer's callbacks; nothing is written.

    Args:
        checkpoint: whose weights have to fit the model.

    Raises:
        InputError: what a constructor refuses, or a checkpoint of another model.
    """
    config = parsed.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.seed_everything is not False:
        seed = None if config.seed_everything is True else config.seed_everything
        config.seed_everything = seed_everything(seed, workers=True)
    labels = read_labels(checkpoint) if checkpoint else None
    if checkpoint is None and parsed.verb != "fit" and (weights := named_weights(config)):
        labels = labels_of(weights)

    def with_labels(kind: type[TaskData], **arguments: Any) -> TaskData:
        data = kind(**arguments)
        if labels is not None:  # before the networks ask for their number
            data.use_labels(labels)
        return data

    if parsed.verb != "fit":
        config.trainer.logger = None  # the curves of a run belong to its training
    with imports(parsed.trusted, ", ".join(map(str, config.config or []))):
        built = instantiate(parsed.parser, config, [(with_labels, TaskData, True)])
    settle_classes(parsed, built.model, built.data)
    if checkpoint:
        read_state(checkpoint, built.model)
    if config.compile:
        for name in filter(partial(hasattr, built.model), parsed.task.networks):
            getattr(built.model, name).compile(backend=config.compile)  # in place: its names stay
    return Built(built.model, built.data, built.trainer, built.claim)


def settle_classes(parsed: Parsed, module: LightningModule, data: Any) -> None:
    """Put the data's number of classes into the config, so that `load_run` needs no data.

    Raises:
        InputError: the config names another number, which the link to the data would hide.
    """
    arguments = parsed.config.model.get("init_args") or parsed.config.model
    for name in parsed.task.networks:
        network = arguments.get(name)
        if network is None:
            continue
        number = signature(type(getattr(module, name))).parameters.get("num_classes")
        if number is None:
            continue
        # Inside a model that is chosen by class_path, a key that was not given is absent.
        default, actual = number.default, data.num_classes
        given = network.init_args.get("num_classes", default)
        if given not in (actual, default):
            raise InputError(
                f"model.{name}.num_classes is {given}, but {type(data).__name__} has"
                f" {actual} classes: leave it out, the data sets it, or set it to {actual}"
            )
        network.init_args.num_classes = actual


def make_trainer(
    parsed: Parsed, run: OpenRun, objects: Built, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """The trainer of the config, with the run folder's own loggers and callbacks.

    Creates the run folder.

    Raises:
        InputError: what the trainer refuses, such as a device that is not here.
    """
    fits, options = parsed.verb == "fit", objects.trainer
    loggers = []
    if fits:
        loggers = [MetricsCSV(str(run.folder)), *as_list(options.logger, Logger)]
    for logger in loggers:
        if isinstance(logger, RunFolderLogger):
            logger.write_to(run.folder)
    options.callbacks = [
        FiniteSteps(parsed.config.on_nonfinite),  # first: the others see no such step
        *callbacks,
        ReportData(),
        *as_list(options.callbacks, Callback),
    ]
    for one in options.callbacks:  # Lightning's place for them is a folder in the run folder
        if isinstance(one, ModelCheckpoint) and one.dirpath is None:
            one.dirpath = str(run.folder / "checkpoints")
    if fits and options.enable_checkpointing is not False:
        options.callbacks.append(MetricsSum(run.folder))
        options.callbacks += checkpoint_callbacks(
            run.folder / "checkpoints",
            parsed.task.best,
            parsed.task.higher_is_better,
            parsed.config.checkpoint_every_n_steps,
        )
    if objects.claim and not options.fast_dev_run and run.displaced is None:
        options.callbacks.append(ClaimCheck(objects.claim, run.folder))
    if not fits:
        options.enable_checkpointing = False
        options.callbacks = [one for one in options.callbacks if not isinstance(one, Checkpoint)]
    options.callbacks.append(Heartbeat())
    if not parsed.config.pictures:
        options.callbacks.append(WithoutPictures())
    if options.enable_model_summary is None:
        options.enable_model_summary = False  # `fit` says what its table comes to
    if options.enable_progress_bar is not False and not any(
        isinstance(one, ProgressBar) for one in options.callbacks
    ):
        shows_bar = options.enable_progress_bar or sys.stdout.isatty()
        options.enable_progress_bar = shows_bar
        options.callbacks.append(RunBar() if shows_bar else ProgressLines())
    if fits and not options.fast_dev_run:
        options.callbacks.append(RunConfig(parsed.parser, parsed.config, parsed.flags))
    options.logger, options.default_root_dir = loggers, str(run.folder)
    check_before(options)
    with refusals_of_trainer():  # no such GPU, ...
        trainer = validate_at_end(Trainer(**options))
    check_after(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin of the config
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if trainer.is_global_zero and not options.fast_dev_run:
        run.folder.mkdir(parents=True, exist_ok=True)
        say(f"run folder: {run.folder}")
    return trainer


def fit(work: Work) -> None:
    """Train; the run folder is written."""
    module, data = work.objects.module, work.objects.data
    for line in work.parsed.notices:
        say(line)
    say(parameter_count(module))
    with running(work):
        work.trainer.fit(module, datamodule=data, weights_only=True)
    trained = [one for one in work.trainer.callbacks if isinstance(one, RunConfig)]  # pyright: ignore[reportAttributeAccessIssue] set from afar
    if trained and not trained[0].has_begun:
        say(
            f"nothing trained, {work.run.folder} has all of its epochs or steps: raise"
            " trainer.max_epochs or max_steps"
        )
    if work.parsed.config.attention_backend == "fp8" and not work.objects.trainer.fast_dev_run:
        step = {"step": step_number(work.trainer) - 1}
        write_json(work, "fp8.json", step | compare_after_fit(work.trainer, module, data))
    if not work.objects.trainer.fast_dev_run:
        say(f"finished: {work.run.folder}")


def evaluate(work: Work) -> None:
    """Validate or test; RUN/VERB.json is written."""
    parsed, trainer = work.parsed, work.trainer
    changed = say_what_is_measured(work)
    verb = getattr(trainer, parsed.verb)
    with running(work):
        results = verb(work.objects.module, datamodule=work.objects.data, weights_only=True)
    metrics = merged(results)
    images, total = evaluated_images(work)
    source = str(work.run.checkpoint or named_weights(parsed.config))
    origin = identity_of(source, work.objects.data)
    if line := other_data_line(work.run.folder, work.objects.data):
        say(line)
    report = {**origin, **changed, "images": images, "metrics": metrics}
    if parsed.config.attention_backend == "fp8" and not work.objects.trainer.fast_dev_run:
        exact = metrics_in("fused", verb, work.objects.module, work.objects.data)
        report["metrics_fused"] = exact
        print_difference(metrics, exact)
    write_json(work, f"{parsed.verb}.json", report)
    part = f" ({images} of {total} images: trainer.limit_*_batches)"
    say(f"written: {work.run.folder / parsed.verb}.json{part if images < total else ''}")


def predict(work: Work) -> None:
    """Apply the network to images; the task writes its own files."""
    changed = say_what_is_measured(work)
    source = work.run.checkpoint or named_weights(work.parsed.config)
    if work.trainer.is_global_zero:  # a prediction that is stopped has not the origin of another
        (work.run.folder / "predict.json").unlink(missing_ok=True)
    with running(work):
        work.trainer.predict(work.objects.module, datamodule=work.objects.data, weights_only=True)
    images = {"images": getattr(work.objects.data, "images", None)}
    origin = identity_of(source, None) | changed | images
    write_json(work, "predict.json", origin)
    files = (work.run.folder / name for name in work.parsed.task.predictions)
    say(f"written: {', '.join(str(file) for file in files if file.exists())}")


def say_what_is_measured(work: Work) -> dict[str, dict[str, str]]:
    """Print the notices of a command that does not train, and the source of its weights.

    Returns:
        {"changed": "BEFORE -> NOW" by dotted key}, for the file of results, of arguments that the
        checkpoint was not trained with; empty without any.
    """
    for line in work.parsed.notices:
        say(line)
    checkpoint = work.run.checkpoint
    if checkpoint is None:
        other = f", not {work.run.displaced}" if work.run.displaced else ""
        say(f"weights: {named_weights(work.parsed.config)}{other}")
        return {}
    say(f"checkpoint: {checkpoint}")
    config = plain_config(work.parsed.parser, work.parsed.config)
    changes = changes_of_measurement(record_of(read_checkpoint(checkpoint)), config)
    if not changes:
        return {}
    words = {key: f"{shown(old)} -> {shown(new)}" for key, (old, new) in changes.items()}
    text = ", ".join(f"{key} {change}" for key, change in words.items())
    say(f"WARNING: not as {checkpoint} was trained: {text}")
    return {"changed": words}


@contextmanager
def running(work: Work) -> Iterator[None]:
    """Context in which the trainer works; a failed start leaves no empty run folder."""
    trainer = work.trainer
    # Not by argument, of which `setup` would not know: it then leaves `weights` unread.
    trainer.ckpt_path = work.run.checkpoint
    launcher = trainer.strategy.launcher
    try:
        backend = attention_backend(work.parsed.config.attention_backend)
        with backend, signals_end_the_run(), refusals_of_trainer():
            yield
    except InputError:
        if launcher:
            launcher.kill(signal.SIGTERM)  # the other processes would say the same
        work.run.give_up()
        raise
    except Exception as error:
        if trainer.world_size > 1 and any(words in str(error) for words in LOST_PEER):
            line = "another process of this run has ended; its own line says why"
            raise InputError(line) from None
        if launcher:
            launcher.kill(signal.SIGTERM)  # most would say the same, the others wait for this one
        raise
    except SystemExit as end:  # by a signal
        if launcher and not isinstance(end, Stopped):
            launcher.kill(signal.SIGKILL)  # the other processes may wait for this one
        if work.parsed.verb == "fit":
            with suppress(OSError):  # SIGHUP: the terminal is gone
                say(how_to_resume(work))
        # Lightning kills the first process when another one fails: this one's code is the run's.
        raise SystemExit(0 if trainer.global_rank else end.code) from None
    finally:
        work.run.close()


def how_to_resume(work: Work) -> str:
    """One line for a run that was interrupted."""
    if not (work.run.folder / "checkpoints" / "last.ckpt").is_file():
        return "stopped before the first checkpoint"
    config = work.run.folder / "config.yaml"
    command = f"attention-vision {work.parsed.name} fit -c {config} --ckpt_path last"
    return f"stopped: resume with {command}"


def write_json(work: Work, name: str, report: dict[str, Any]) -> None:
    if work.trainer.is_global_zero:
        (work.run.folder / name).write_text(json.dumps(report, indent=2) + "\n")


def evaluated_images(work: Work) -> tuple[int, int]:
    """Images that validate or test evaluated, and all there are."""
    trainer = work.trainer
    loader, (batches,) = (
        (trainer.val_dataloaders, trainer.num_val_batches)
        if work.parsed.verb == "validate"
        else (trainer.test_dataloaders, trainer.num_test_batches)
    )
    assert isinstance(loader, DataLoader)  # the data's own, see `evaluation_loader`
    assert loader.batch_size is not None
    total = len(loader.dataset)  # pyright: ignore[reportArgumentType] (Dataset has no length)
    return int(min(total, batches * loader.batch_size * trainer.world_size)), total


def parameter_count(model: LightningModule) -> str:
    """One line: parameters, and those that are trained."""
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
    return f"parameters: {total:,}" + (f", {trained:,} trained" if trained < total else "")


def as_list(value: Any, kind: type) -> list:
    """Trainer takes one, several, true or none of its loggers and callbacks."""
    return [value] if isinstance(value, kind) else list(value) if isinstance(value, list) else []


VERBS = {"fit": fit, "validate": evaluate, "test": evaluate, "predict": predict}
