"""`attention-vision TASK VERB`: LightningCLI with run folders and one-line errors."""

import json
import os
import shutil
import signal
import sys
import time
from argparse import ArgumentError
from contextlib import suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision import __version__
from attention_vision.attention import attention_backend
from attention_vision.callbacks import WholeFiles, run_checkpoints
from attention_vision.claim import Claim
from attention_vision.config_errors import ConfigError, explain, kept_arguments
from attention_vision.config_parser import (
    ArgumentParser,
    SaveConfig,
    config_files,
    input_error,
    read_config,
    sources,
    spelled_out,
)
from attention_vision.errors import InputError, one_line
from attention_vision.metrics_csv import MetricsCSV
from attention_vision.progress import ProgressLines, quiet, say
from attention_vision.reproduction import Reproduction
from attention_vision.runs import (
    default_run,
    find_checkpoint,
    holds_run,
    is_requeued,
    read_state,
)
from attention_vision.tasks import TASKS

RUN = "ATTENTION_VISION_RUN"  # tells the processes that Lightning starts for DDP the run folder


class Command(LightningCLI):
    """Parses, then builds data, model and trainer; `execute` does the work.

    Args:
        name: a key of `TASKS`.
        verb: fit, validate, test or predict.
        arguments: the rest of the command line.

    Raises:
        ConfigError: the arguments or a config file do not parse.
        InputError: anything else that is wrong with what the user gave.
    """

    def __init__(self, name: str, verb: str, arguments: list[str]):
        self.name, self.verb, self.task = name, verb, TASKS[name]()
        super().__init__(
            self.task.model,
            self.task.data,
            save_config_callback=SaveConfig if verb == "fit" else None,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=ArgumentParser,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"attention-vision {name} {verb}",
                "description": None,
                "allow_abbrev": False,  # or `--trainer.max_epoch 3` passes for something else
                "exit_on_error": False,
                "dump_header": [
                    f"attention-vision {__version__}, lightning {lightning.__version__}, "
                    f"torch {torch.__version__}"
                ],
            },
            subclass_mode_model=self.task.choose_model,
            subclass_mode_data=True,
            args=[spelled_out(word) for word in arguments],
            run=False,  # one parser instead of one per verb: the verb is no part of the config
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `load_run` reads config.yaml instead
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--task", type=Literal[self.name], default=self.name, help="fixed")
        parser.add_argument(
            "--run", type=str | None, default=None,
            help="the run folder (default: a new one, runs/TASK/TIME_FILE)",
        )  # fmt: skip
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None,
            help="'last', 'best' or a file: fit continues there, the other verbs measure it",
        )  # fmt: skip
        parser.add_argument(
            "--checkpoint_every_n_steps", type=int | None, default=None,
            help="steps between two saves of last.ckpt inside an epoch (default: ten minutes)",
        )  # fmt: skip
        parser.add_argument(
            "--attention_backend", type=Literal["fused", "eager", "fp8"], default="fused",
            help="how attention weights are computed, see attention_vision.attention",
        )  # fmt: skip
        parser.add_argument(
            "--compile", type=Literal["inductor", "aot_eager", "eager"] | None, default=None,
            help="torch.compile the networks with this backend; inductor makes them faster, the"
            " others only trace them (default: as written)",
        )  # fmt: skip
        parser.add_argument(
            "--threads", type=int | None, default=None,
            help="CPU threads of each process (default: torch's own choice)",
        )  # fmt: skip
        parser.add_argument(
            "--claim", type=Claim | None, default=None, help="what the run reproduces"
        )
        super().add_default_arguments_to_parser(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        model = "model.init_args" if self.task.choose_model else "model"
        for network in self.task.networks:
            key = f"{model}.{network}.init_args.num_classes"
            parser.link_arguments("data.num_classes", key, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        for file in config_files(args):
            task = read_config(file).get("task", self.name)
            if task != self.name:
                raise ConfigError(f"{file} is for `attention-vision {task}`, not for {self.name}")
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            roots = {"model": self.task.model, "data": self.task.data, "trainer": Trainer}
            raise ConfigError(explain(error, parser, roots)) from error
        self.kept = kept_arguments(sources(args), self.config.as_dict())

    def before_instantiate_classes(self) -> None:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.run_folder = self.choose_run()
        if self.verb == "fit" and is_requeued() and holds_run(self.run_folder):
            self.config.ckpt_path = self.config.ckpt_path or "last"
        self.checkpoint = self.choose_checkpoint()
        self.config.run = str(self.run_folder)

    def instantiate_classes(self) -> None:
        try:
            self.config_init = self.parser.instantiate(self.config)
        except (TypeError, ValueError) as error:  # what a constructor refuses
            raise input_error(error) or InputError(" ".join(str(error).split())) from error
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.settle_classes()
        if self.checkpoint:
            read_state(self.checkpoint, self.model)
        if self.config.compile:
            for name in filter(partial(hasattr, self.model), self.task.networks):
                network = getattr(self.model, name)
                network.compile(backend=self.config.compile)  # in place: its names stay
        self.trainer = self.instantiate_trainer()

    def settle_classes(self) -> None:
        """Puts the data's number of classes into the config, so that `load_run` needs no data.

        Raises:
            InputError: the config names another number, which the link to the data would hide.
        """
        arguments = self.config.model.get("init_args") or self.config.model
        for name in self.task.networks:
            network = arguments.get(name)
            if network is None:
                continue
            number = signature(type(getattr(self.model, name))).parameters.get("num_classes")
            if number is None:
                continue
            # Inside a model that is chosen by class_path, a key that was not given is absent.
            default, actual = number.default, self.datamodule.num_classes
            given = network.init_args.get("num_classes", default)
            if given not in (actual, default):
                raise InputError(
                    f"model.{name}.num_classes is {given}, but {type(self.datamodule).__name__} has"
                    f" {actual} classes: leave it out, the data sets it"
                )
            network.init_args.num_classes = actual

    def choose_run(self) -> Path:
        """The run folder: of `--run`, of the config, of the config's own place, or a new one.

        Raises:
            InputError: `--run` is a file, or `fit` without `--ckpt_path` into a folder that holds a
                run.
        """
        if rank_zero_only.rank and RUN in os.environ:
            return Path(os.environ[RUN])
        files = [Path(str(path)) for path in self.config.config or []]
        run = Path(self.config.run) if self.config.run else None
        for file in files:
            if file.name == "config.yaml" and read_config(file).get("run") == self.config.run:
                run = file.parent  # the same folder, unless it was moved
        if run is None and self.config.ckpt_path in ("best", "last"):
            raise InputError(f"--ckpt_path {self.config.ckpt_path}: of which run? give --run RUN")
        if run is None:
            run = default_run(self.name, files[0].stem if files else self.name)
        if run.is_file():
            raise InputError(f"--run {run} is a file: give the folder of the run")
        fresh = not (self.config.ckpt_path or self.config.trainer.fast_dev_run)
        first = rank_zero_only.rank == 0  # the others may come when rank zero has begun to write
        if self.verb == "fit" and first and fresh and not is_requeued() and holds_run(run):
            raise InputError(
                f"{run} holds a run: continue it by --ckpt_path last, or give another --run"
            )
        os.environ[RUN] = str(run)
        return run

    def choose_checkpoint(self) -> Path | None:
        """The file to start from; None for fresh weights or the official ones of `model.weights`.

        Raises:
            InputError: there is no such checkpoint, or nothing to measure.
        """
        if self.config.ckpt_path:
            return find_checkpoint(self.run_folder, self.config.ckpt_path)
        if self.verb == "fit":
            return None
        for name in ("best", "last"):
            with suppress(InputError):
                return find_checkpoint(self.run_folder, name)
        if self.official_weights() is None:
            run = "give -c RUN/config.yaml"
            if self.config.run:
                run = f"{self.run_folder} holds none, train it to its first one by fit"
            raise InputError(
                f"no checkpoint to {self.verb}: {run}, --ckpt_path FILE or --weights FILE"
            )
        return None

    def official_weights(self) -> str | None:
        model = self.config.model
        return (model.get("init_args") or model).get("weights")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the config, with the run folder's own loggers and callbacks."""
        wanted = self.config_init.trainer
        loggers = []  # the curves of a run belong to its training
        if self.verb == "fit":
            loggers = [MetricsCSV(str(self.run_folder)), *as_list(wanted.logger, Logger)]
        for logger in loggers:
            if hasattr(logger, "write_to"):  # W&B's, which is imported by those alone who use it
                logger.write_to(self.run_folder)
        wanted.callbacks = as_list(wanted.callbacks, Callback) + self.checkpoints()
        if self.config_init.claim and not wanted.fast_dev_run:
            wanted.callbacks.append(Reproduction(self.config_init.claim, self.run_folder))
        if self.verb != "fit":
            wanted.enable_checkpointing = False
            wanted.callbacks = [one for one in wanted.callbacks if not isinstance(one, Checkpoint)]
        if wanted.enable_model_summary is None:
            wanted.enable_model_summary = False  # `execute` says what its table comes to
        if wanted.enable_progress_bar is None and not sys.stdout.isatty():
            wanted.enable_progress_bar = False
            wanted.callbacks.append(ProgressLines())
        try:
            trainer = super().instantiate_trainer(
                logger=loggers, default_root_dir=str(self.run_folder)
            )
        except (MisconfigurationException, ValueError) as error:  # no GPU, no such strategy, ...
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin of the config
            trainer.strategy.checkpoint_io = WholeFiles()
        self.is_new = not self.run_folder.exists()
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self.run_folder.mkdir(parents=True, exist_ok=True)
        return trainer

    def checkpoints(self) -> list[Callback]:
        config = self.config
        if self.verb != "fit" or config.trainer.enable_checkpointing is False:
            return []
        folder, steps = self.run_folder / "checkpoints", config.checkpoint_every_n_steps
        return run_checkpoints(folder, self.task.best, self.task.higher_is_better, steps)

    def execute(self) -> None:
        """Trains or measures; validate and test also write RUN/VERB.json."""
        if not self.config.trainer.fast_dev_run:
            say(f"run folder: {self.run_folder}")
        if self.checkpoint and self.verb != "fit":
            say(f"checkpoint: {self.checkpoint}")
        if self.verb == "fit":
            for line in self.kept:
                say(line)
            say(parameter_count(self.model))
        work = getattr(self.trainer, self.verb)
        # Not by argument, of which `setup` would not know: it then leaves `weights` unread.
        self.trainer.ckpt_path = self.checkpoint
        options = {"weights_only": True}
        try:
            with attention_backend(self.config.attention_backend):
                results = work(self.model, datamodule=self.datamodule, **options)
        except InputError:
            if launcher := self.trainer.strategy.launcher:
                launcher.kill(signal.SIGTERM)  # the other processes would say the same
            if self.is_new and self.trainer.is_global_zero:
                self.remove_start()
            raise
        except SystemExit:  # Lightning's end of a run after Ctrl-C
            if self.verb == "fit" and self.trainer.interrupted:
                say(self.how_to_go_on())
            raise
        exact = self.cost_of_fp8(results) if self.config.attention_backend == "fp8" else {}
        if self.verb in ("validate", "test") and self.trainer.is_global_zero:
            file = self.run_folder / f"{self.verb}.json"
            metrics = merged(results)
            source = str(self.checkpoint or self.official_weights())
            images, total = self.measured()
            report = {"checkpoint": source, "images": images, "metrics": metrics}
            if exact:
                report["metrics_fused"] = exact
            file.write_text(json.dumps(report, indent=2) + "\n")
            part = f" ({images} of {total} images: trainer.limit_*_batches)"
            say(f"written: {file}{part if images < total else ''}")
        elif self.verb == "predict":
            say(f"written: {self.run_folder / self.task.predictions}")
        elif not self.config.trainer.fast_dev_run:
            say(f"finished: {self.run_folder}")

    def remove_start(self) -> None:
        """Removes the run folder where it holds no more than the config of a start that failed."""
        if all(path.name == "config.yaml" for path in self.run_folder.glob("*")):
            shutil.rmtree(self.run_folder, ignore_errors=True)

    def cost_of_fp8(self, results: list[dict[str, float]] | None) -> dict[str, float]:
        """Prints what fp8 attention changes in each metric -> the metrics of fused attention.

        Of a training its last weights are validated, both ways, and RUN/fp8.json is written.

        Args:
            results: of validate or test in fp8; None of fit and predict.
        """
        trainer = self.trainer
        if self.verb == "predict" or trainer.fast_dev_run:
            return {}
        work = trainer.test if self.verb == "test" else trainer.validate
        options = {"verbose": False, "weights_only": True}
        if self.verb == "fit":
            trainer.loggers = []  # the curves end with the training
            trainer.ckpt_path = None  # its last weights, not those it went on from
            with attention_backend("fp8"):
                results = work(self.model, datamodule=self.datamodule, **options)
        with attention_backend("fused"):
            exact = merged(work(self.model, datamodule=self.datamodule, **options))
        rounded = merged(results)
        say(f"{'attention in':<24}{'fp8':>12}{'fused':>12}{'difference':>12}")
        for key, value in exact.items():
            change = rounded[key] - value
            say(f"{key:<24}{rounded[key]:>12.5f}{value:>12.5f}{change:>+12.5f}")
        if self.verb == "fit" and trainer.is_global_zero:
            file = self.run_folder / "fp8.json"
            report = {"metrics": rounded, "metrics_fused": exact}
            file.write_text(json.dumps(report, indent=2) + "\n")
        return exact

    def measured(self) -> tuple[int, int]:
        """Images that validate or test measured, and all there are."""
        trainer = self.trainer
        loader, (batches,) = (
            (trainer.val_dataloaders, trainer.num_val_batches)
            if self.verb == "validate"
            else (trainer.test_dataloaders, trainer.num_test_batches)
        )
        total = len(loader.dataset)
        return min(total, batches * loader.batch_size * trainer.world_size), total

    def how_to_go_on(self) -> str:
        if not (self.run_folder / "checkpoints" / "last.ckpt").is_file():
            return "stopped before the first checkpoint"
        config = self.run_folder / "config.yaml"
        command = f"attention-vision {self.name} fit -c {config} --ckpt_path last"
        return f"stopped: go on with {command}"


def run_task(name: str, verb: str, arguments: list[str]) -> int:
    """Runs one verb of one task; returns the exit code."""
    quiet()
    try:
        Command(name, verb, arguments).execute()
    except InputError as error:
        if rank_zero_only.rank:
            time.sleep(3)  # rank zero meets most errors too, and then ends the others
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def merged(results: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of all data that was measured."""
    return {key: value for result in results for key, value in result.items()}


def parameter_count(model: LightningModule) -> str:
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
    return f"parameters: {total:,}" + (f", {trained:,} trained" if trained < total else "")


def as_list(value: Any, kind: type) -> list:
    """Trainer takes one, several, true or none of its loggers and callbacks."""
    return [value] if isinstance(value, kind) else list(value) if isinstance(value, list) else []
