"""The path of `attention-vision TASK VERB`: parse, open_run, build, make_trainer, then the verb."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger

from attention_vision.attention import attention_backend
from attention_vision.checkpoints.load import labels_of
from attention_vision.claims.check import ClaimCheck
from attention_vision.claims.claim import Claim
from attention_vision.config.build import instantiate
from attention_vision.config.trainer import check_after, check_before, refusals_of_trainer
from attention_vision.config.trust import imports
from attention_vision.data.loading import TaskData
from attention_vision.errors import InputError
from attention_vision.runs.arguments import Parsed, parse
from attention_vision.runs.data_summary import ReportData
from attention_vision.runs.folder import OpenRun, open_run, stay_below, take_over
from attention_vision.runs.fp8 import compare_after_fit, merged, metrics_in, print_difference
from attention_vision.runs.measured import identity_of, other_data_line
from attention_vision.runs.resume import changes_of_measurement, record_of, shown
from attention_vision.runs.run_config import RunConfig, plain_config
from attention_vision.runs.weights import (
    named_weights,
    other_function,
    settle_preprocessing,
    unread_weights,
)
from attention_vision.training.checkpoint_io import AtomicCheckpointIO
from attention_vision.training.compiled import MODES, GraphsOfBatch, compiled_by
from attention_vision.training.finite import FiniteSteps
from attention_vision.training.heartbeat import Heartbeat
from attention_vision.training.labels import read_labels
from attention_vision.training.last_validation import validate_at_end
from attention_vision.training.logging import RunFolderLogger, WithoutPictures
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.metrics_sum import MetricsSum
from attention_vision.training.progress import ProgressLines, RunBar, say
from attention_vision.training.resume import BestCheckpoint, checkpoint_callbacks
from attention_vision.training.run_folder import read_checkpoint, read_state
from attention_vision.training.signals import Stopped, signals_end_the_run
from attention_vision.training.steps import step_number
from attention_vision.training.unprofiled import Unprofiled
from attention_vision.yaml_json import write_atomically

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was")


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
        if run.checkpoint is None:
            parsed.notices.extend(other_function(parsed.parser, parsed.config))
        settled = settle_preprocessing(parsed.config, objects.module, objects.data, run.checkpoint)
        parsed.notices.extend(settled)
        return Work(parsed, run, objects, make_trainer(parsed, run, objects, callbacks))
    except BaseException:
        run.give_up()
        raise


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
            getattr(built.model, name).compile(**compiled_by(config.compile))  # names stay
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
        if type(logger) is WandbLogger:
            parsed.notices.append(
                "WandbLogger ends a run to which W&B does not answer; -c"
                " experiments/profiles/wandb.yaml has a logger that goes on offline"
            )
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
    if parsed.config.compile in MODES:
        options.callbacks.append(GraphsOfBatch())
    if not parsed.config.pictures:
        options.callbacks.append(WithoutPictures())
    if options.profiler is None:
        options.profiler = Unprofiled()
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
    if work.objects.trainer.fast_dev_run:
        return
    for best in work.trainer.checkpoint_callbacks:
        if isinstance(best, BestCheckpoint) and best.best_model_score is not None:
            score = f"{float(best.best_model_score):.4g}"
            say(f"best {best.monitor} {score}: {work.run.folder}/checkpoints/best.ckpt")
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
        exact = metrics_in("fused", trainer, parsed.verb, work.objects.module, work.objects.data)
        report["metrics_fused"] = exact
        print_difference(metrics, exact)
    if work.objects.trainer.fast_dev_run:
        return  # one batch to try it, as for fit
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
        write_atomically(work.run.folder / name, json.dumps(report, indent=2) + "\n")


def evaluated_images(work: Work) -> tuple[int, int]:
    """Images that validate or test evaluated, and all there are."""
    trainer = work.trainer
    loader: Any  # the data's own, see `evaluation_loader`
    loader, (batches,) = (
        (trainer.val_dataloaders, trainer.num_val_batches)
        if work.parsed.verb == "validate"
        else (trainer.test_dataloaders, trainer.num_test_batches)
    )
    total = len(loader.dataset)
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
