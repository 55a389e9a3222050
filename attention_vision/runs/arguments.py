"""The arguments of `attention-vision TASK VERB`: files and flags, parsed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import Trainer

from attention_vision import __version__
from attention_vision.claims.claim import Claim
from attention_vision.config.build import add_nodes
from attention_vision.config.parser import ArgumentParser, kept_arguments, parse_words
from attention_vision.config.ranges import check_ranges
from attention_vision.config.trust import (
    imports,
    trusts_everything,
)
from attention_vision.errors import ConfigError
from attention_vision.ranges import Count, Seed, Threads
from attention_vision.runs.resume import (
    flags_of_run,
    read_config,
    split_words,
    words_of_run,
    words_on_resume,
)
from attention_vision.runs.tasks import TASKS, Task
from attention_vision.runs.weights import weights_by_flag

TRUST = "--trust"  # a word of the command alone: a file cannot ask to be trusted


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
        run_by_flag: whether a flag, not a file alone, names the run folder.
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
    run_by_flag: bool
    trusted: bool


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
    elif verb != "fit":
        words, lines = words_of_run(words)
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
    lines += leave_out_claim((content for file, content in given if file), config)
    by_flag = weights_by_flag(content for file, content in given if file is None)
    flags = flags_of_run(words)
    run_by_flag = any(file is None and "run" in content for file, content in given)
    return Parsed(name, verb, task, parser, config, lines, flags, by_flag, run_by_flag, trusted)


def leave_out_claim(files: Iterable[dict[str, Any]], config: Namespace) -> list[str]:
    """Remove the claim of an experiment whose data was exchanged; return the line that says so."""
    claims = [content for content in files if content.get("claim")]
    data = claims[-1].get("data") if claims else None
    stated = data.get("class_path") if isinstance(data, dict) else data
    if config.claim is None or not isinstance(stated, str):
        return []
    theirs, ours = (path.rpartition(".")[2] for path in (stated, config.data.class_path))
    if theirs == ours:
        return []
    config.claim = None
    return [f"claim: left out, it was measured on {theirs} and the data is {ours}"]


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
        "--compile",
        type=Literal["inductor", "reduce-overhead", "max-autotune", "aot_eager", "eager"] | None,
        default=None,
        help="torch.compile the networks: by inductor, with CUDA graphs too (reduce-overhead, for"
        " images of one size), with a search for kernels too (max-autotune), or traced only"
        " (aot_eager, eager) (default: not compiled)",
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
