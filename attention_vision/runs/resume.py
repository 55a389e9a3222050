"""Resuming a run: which of its arguments may change, and which of its flags hold on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml

from attention_vision import __version__
from attention_vision.config.moved_paths import with_current_paths
from attention_vision.errors import ConfigError, InputError
from attention_vision.training.changes import Change
from attention_vision.training.run_folder import (
    is_requeued,
    read_checkpoint,
    resumable_checkpoint,
    whole_checkpoint,
)
from attention_vision.yaml_json import read_yaml, write_atomically

RECORD = "attention_vision"  # key of a checkpoint: the run that it belongs to, see `RunConfig`
OF_THE_CALL = ("config", "ckpt_path", "run", "task")  # keys that are not arguments of the run
FILE_FLAGS = ("-c", "--config")
NOT_KEPT = (*FILE_FLAGS, "--run", "--ckpt_path")  # flags that hold for one command only
ABSENT = object()

FROM_0 = "applied, not to or from 0"
Effect = Literal["applied", "applied, not to or from 0", "at an epoch's end", "refused"]


@dataclass(frozen=True)
class Rule:
    """What a resume does with a changed argument.

    Args:
        name: of the arguments, for the documentation.
        keys: patterns of dotted keys, without `init_args`; the key of a class is that of its node.
        effect: of a change.
        reason: why, or what follows; part of a message.
    """

    name: str
    keys: tuple[str, ...]
    effect: Effect
    reason: str


# The first rule with a matching pattern decides.
RULES = (
    Rule(
        "seed", ("seed_everything", "data.seed"), "refused",
        "order, augmentation and held-out images follow from it",
    ),
    Rule(
        "class of the optimizer or the schedule",
        ("model.optimizer", "model.*_optimizer", "model.schedule"),
        "refused", "the checkpoint has the state of the other class",
    ),
    Rule(
        "numbers of the optimizer and the schedule",
        ("model.optimizer.*", "model.*_optimizer.*", "model.schedule.*", "model.layer_decay",
         "model.no_weight_decay", "model.backbone_lr_factor"),
        "applied",
        "from the next step on, with the learning rate that a run with these numbers from its"
        " start would have there",
    ),
    Rule(
        "moving average of the weights", ("model.ema_decay",), FROM_0,
        "a checkpoint has the averaged weights or none",
    ),
    Rule(
        "weights to start from", ("model.weights", "model.backbone_weights", "model.fine_tune"),
        "refused", "the checkpoint has all weights",
    ),
    Rule(
        "images that a step takes",
        ("data.batch_size", "model.accumulate", "model.discriminator_steps",
         "trainer.accumulate_grad_batches", "data.balanced", "data.repeats", "data.group_by_shape",
         "data.patches_per_image"),
        "at an epoch's end", "the position in an epoch is counted in them",
    ),
    Rule(
        "length of an epoch", ("trainer.limit_train_batches", "trainer.overfit_batches"),
        "at an epoch's end", "the position in an epoch is counted in them",
    ),
    Rule(
        "processes and workers",
        ("trainer.devices", "trainer.num_nodes", "data.num_workers"),
        "at an epoch's end", "each of them has a position of its own in the epoch",
    ),
    Rule(
        "length of the run",
        ("trainer.max_*", "trainer.min_*"),
        "applied", "`WarmupCosine` falls to the new end from the next step on, and says so",
    ),
    Rule(
        "network",
        ("model", "model.network", "model.network.*", "model.generator", "model.generator.*",
         "model.discriminator", "model.discriminator.*", "model.spectral_norm_*"),
        "refused", "the weights belong to that network",
    ),
    Rule(
        "objective and score", ("model.objective", "model.scorer", "model.scorer.*",
                                "model.size_limits"),
        "refused", "best.ckpt compares scores of the whole run",
    ),
    Rule(
        "losses and other numbers of the model", ("model.*",), "applied", "from the next step on",
    ),
    Rule(
        "place of the data",
        ("data.root", "data.*_images", "data.*_masks", "data.*_annotations",
         "data.*_csv", "data.download", "data.in_memory", "data.on_bad_image",
         "data.resident_gib"),
        "applied", "classes, samples and held-out images are compared with the run's",
    ),
    Rule(
        "augmentation", ("data.recipe", "data.recipe.*", "data.flip", "data.flips", "data.cache"),
        "applied",
        "from the next image on",
    ),
    Rule(
        "what `predict` alone reads", ("data.images", "data.count", "data.degrade"), "applied",
        "training and its validations do not",
    ),
    Rule("data", ("data", "data.*"), "refused", "the run is of those images"),
    Rule(
        "intervals, limits of validation, precision, hardware, logger, callbacks, pictures, claim",
        ("*",), "applied", "from the next step on",
    ),
)  # fmt: skip

MEASURED = ("seed", "network", "objective and score", "data")  # rules of what decides a number


def table() -> str:
    """The rules as a table of the documentation."""
    rows = ["| changed | on resume | |", "|---|---|---|"]
    for rule in RULES:
        keys = ", ".join(f"`{key}`" for key in rule.keys if key != "*")
        name = f"{rule.name}: {keys}" if keys else rule.name
        rows.append(f"| {name} | {rule.effect} | {rule.reason} |")
    return "\n".join(rows)


def rule_of(key: str) -> Rule:
    return next(rule for rule in RULES if any(fnmatchcase(key, pattern) for pattern in rule.keys))


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a run by dotted key, without `init_args`; a class stands at its node's key."""
    return dict(flattened({k: v for k, v in config.items() if k not in OF_THE_CALL}))


def flattened(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and isinstance(node.get("class_path"), str):
        yield key, node["class_path"]
        node = node.get("init_args") or {}
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from flattened(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        yield key, [item.get("class_path") for item in node if isinstance(item, Mapping)]
        for number, item in enumerate(node):
            yield from flattened(item, f"{key}.{number}")
    else:
        yield key, node


def differences(
    config: Mapping[str, Any], now: Mapping[str, Any], same_version: bool = True
) -> dict[str, Change]:
    """Arguments that differ between two configs, by dotted key.

    What the data or the checkpoint settles is not compared, nor are the arguments of a class that
    is another one, nor, of a config of another version, those that only one of the two has.
    """
    before, after = arguments(with_current_paths(config)), arguments(now)
    found: dict[str, Change] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        absent = old is ABSENT or new is ABSENT
        above = [one for node, one in found.items() if key.startswith(f"{node}.")]
        of_another_class = any(isinstance(one, str) for change in above for one in change)
        settled = key.endswith(".num_classes") or (
            key.startswith("data.preprocessing.") and None in (old, new)
        )
        unknown = absent and (above or not same_version)
        if old != new and not (of_another_class or settled or unknown):
            found[key] = Change(*(None if one is ABSENT else one for one in (old, new)))
    return found


def changed_arguments(
    record: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Path, inside: bool
) -> dict[str, Change]:
    """Compare a config with that of the run that a checkpoint belongs to.

    Args:
        record: what the checkpoint says of its run: `config` and `version`.
        config: of this command.
        checkpoint: the file, for messages.
        inside: whether it lies inside an epoch.

    Returns:
        by dotted key what changed.

    Raises:
        InputError: a change that `RULES` refuse.
    """
    same_version = record.get("version") == __version__
    changes = differences(record["config"], config, same_version)
    for key, change in changes.items():
        if reason := refusal(key, change, inside):
            old, new = map(shown, change)
            raise InputError(f"{key} is {new} here and {old} in {checkpoint}: {reason}")
    return changes


def changes_of_measurement(
    record: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Change]:
    """Arguments of data, network and score that a run was not trained with, by dotted key.

    What is measured with them is not the run's number. Places, batches and optimizers are left
    out, and all of a checkpoint that does not know its config.
    """
    if "config" not in record:
        return {}
    changes = differences(record["config"], config, record.get("version") == __version__)
    return {
        key: change
        for key, change in changes.items()
        if key.startswith(("data", "model")) and rule_of(key).name in MEASURED
    }


def refusal(key: str, change: Change, inside: bool) -> str | None:
    """Why a resume refuses a change, and what to do; None where it does not."""
    rule = rule_of(key)
    from_or_to_0 = bool(change.old) != bool(change.new)
    if rule.effect == "refused" or (rule.effect == FROM_0 and from_or_to_0):
        return f"{rule.reason}; leave it out, or start a new run with --weights RUN"
    if rule.effect == "at an epoch's end" and inside:
        return (
            f"{rule.reason}, and this checkpoint lies inside one; leave it out, and stop the run"
            " behind an epoch to change it"
        )
    return None


def is_inside_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint lies between two batches of one epoch."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    return (
        epochs["ready"] > epochs["processed"]
        and not (loop["epoch_loop.batch_progress"]["is_last_batch"])
    )


def split_words(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Flags of a command line with their values, which follow as a word or behind an equals sign.

    A word that belongs to no flag comes as one without a value.
    """
    split: list[tuple[str, str | None]] = []
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        follows = not equals and rest and flag.startswith("-") and not rest[0].startswith("--")
        split.append((flag, value if equals else rest.pop(0) if follows else None))
    return split


def joined(flags: Sequence[tuple[str, str | None]]) -> list[str]:
    """Words of flags; `split_words` is the inverse."""
    words = ([f] if v is None else [f, v] if f == "-c" else [f"{f}={v}"] for f, v in flags)
    return [word for pair in words for word in pair]


def key_of(flag: str) -> str:
    """Dotted key of a flag, without `init_args` and the mark of a list that is extended."""
    key = flag.removeprefix("--").removesuffix("+").replace(".init_args", "")
    return "model.weights" if key == "weights" else key.removesuffix(".class_path")


def words_on_resume(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a `fit` with those of the run that it resumes.

    Without a file, the run's own config is read. With other files than that, flags that the run
    was started with and that are not given again hold on: they were meant to override the files.

    Returns:
        all words, and lines on what was added.
    """
    flags = split_words(words)
    given = {key_of(flag): value for flag, value in flags}
    files = [Path(value) for flag, value in flags if flag in FILE_FLAGS and value]
    configs = [given, *(read_config(file) for file in reversed(files) if file.is_file())]
    run, name = (
        next((str(config[key]) for config in configs if config.get(key)), None)
        for key in ("run", "ckpt_path")
    )
    name = name or ("last" if is_requeued() else None)
    if run is None or name is None:
        return [*words], []
    if any(is_own_config(file, run) for file in files):  # of the run, or of a copy of it
        return [*words], []
    if not files:
        return words_of_run(words, run)
    try:
        checkpoint, _ = whole_checkpoint(resumable_checkpoint(Path(run), name))
        record = record_of(read_checkpoint(checkpoint))
    except InputError:  # which `open_run` reports
        return [*words], []
    kept = [flag for flag in split_words(record.get("flags", [])) if key_of(flag[0]) not in given]
    behind = 1 + max(number for number, (flag, _) in enumerate(flags) if flag in FILE_FLAGS)
    lines = [f"flags of the run that hold on: {' '.join(joined(kept))}"] if kept else []
    return joined([*flags[:behind], *kept, *flags[behind:]]), lines


def words_of_run(words: Sequence[str], run: str | None = None) -> tuple[list[str], list[str]]:
    """The words of a command with the config of the run, where they name no file.

    Args:
        words: of the command.
        run: the folder; that of `--run` if None.

    Returns:
        all words, and a line on what was added.
    """
    flags = split_words(words)
    run = run or next((value for flag, value in flags if flag == "--run"), None)
    own = Path(run or "", "config.yaml")
    if not run or any(flag in FILE_FLAGS for flag, _ in flags) or not own.is_file():
        return [*words], []
    return ["-c", str(own), *words], [f"arguments of the run: {own}"]


def is_own_config(file: Path, run: str | None) -> bool:
    """Whether a file is the config.yaml of a run, also of one that was moved or copied since."""
    if file.name != "config.yaml" or run is None or not file.is_file():
        return False
    return file.parent.resolve() == Path(run).resolve() or read_yaml(file).get("run") == run


def flags_of_run(words: Sequence[str]) -> list[str]:
    """The flags of a command line that hold on when its run is resumed."""
    return joined([flag for flag in split_words(words) if flag[0] not in NOT_KEPT])


def earlier_flags(
    record: Mapping[str, Any], flags: Sequence[str], changes: Mapping[str, Change]
) -> list[str]:
    """Flags of the run before that config.yaml has, for a resume with the files of its start."""
    given = {key_of(flag) for flag, _ in split_words(flags)} | changes.keys()
    known = split_words(record.get("flags", []))
    return joined([flag for flag in known if key_of(flag[0]) not in given])


def in_words(changes: Mapping[str, Change]) -> list[str]:
    """A line on what changed, if anything did."""
    parts = [f"{key} {shown(one.old)} -> {shown(one.new)}" for key, one in changes.items()]
    return [f"changed on resume: {', '.join(parts)}"] if parts else []


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def record_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its run; empty where an earlier version wrote it."""
    record = checkpoint.get(RECORD)
    return record if isinstance(record, dict) else {}


def read_config(file: Path) -> dict[str, Any]:
    """Read a YAML file; for a damaged config.yaml of a run, write the one its checkpoints know.

    Raises:
        ConfigError: the file is not valid; the message names the earlier one.
    """
    try:
        return read_yaml(file)
    except ConfigError as error:
        if file.name != "config.yaml":
            raise
        for name in ("last", "previous", "best"):
            config = None
            with suppress(InputError):
                checkpoint = read_checkpoint(file.parent / "checkpoints" / f"{name}.ckpt")
                config = record_of(checkpoint).get("config")
            if config:
                earlier = file.with_name("config.earlier.yaml")
                write_atomically(earlier, yaml.safe_dump(config, sort_keys=False))
                raise ConfigError(f"{error}; that of {name}.ckpt is {earlier}") from error
        raise
