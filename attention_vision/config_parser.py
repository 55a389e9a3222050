"""Config files and flags: how they are read, parsed and saved."""

from collections.abc import Iterator
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from attention_vision.config_errors import ConfigError
from attention_vision.errors import InputError

dumping = ContextVar("dumping", default=False)


class ArgumentParser(LightningArgumentParser):
    """A class that the user names starts from its own defaults, not from those of another one.

    jsonargparse fills in the arguments of a default class before it merges what is given, and what
    the named class accepts of them stays: SGD in the place of AdamW would decay weights by 0.01.
    Here a default class is bare until then. The parser of each class inside is one of these too.
    """

    def get_defaults(self, skip_validation: bool = False) -> Namespace:
        defaults = super().get_defaults(skip_validation)
        for action in self._actions:
            bare = isinstance(action.default, dict) and action.default.keys() == {"class_path"}
            if bare and action.dest in defaults and not dumping.get():
                defaults[action.dest] = Namespace(action.default)
        return defaults

    def parse_object(
        self,
        obj: Namespace | dict[str, Any],
        namespace: Namespace | None = None,
        env: bool | None = None,
        defaults: bool = True,
    ) -> Namespace:
        # The parser of an inner class fills in defaults when it has merged the namespace, but not
        # yet `obj`: what was given has to stand in both.
        if defaults and isinstance(obj, Namespace):
            namespace = namespace.clone() if namespace else Namespace()
            namespace.update(obj.clone())
        return super().parse_object(obj, namespace, env, defaults)

    def dump(self, *arguments: Any, **options: Any) -> str:
        token = dumping.set(True)  # `skip_default` compares with defaults that are filled in
        try:
            return super().dump(*arguments, **options)
        finally:
            dumping.reset(token)


class SaveConfig(SaveConfigCallback):
    """Writes RUN/config.yaml when training starts, and gives the config to the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        for key in ("config", "ckpt_path"):  # of this call, not of the run
            config.pop(key, None)
        text = self.parser.dump(config, skip_unset=False, skip_link_targets=False)
        plain = yaml.safe_load(text)
        # The dump drops what is linked into a model that is chosen by class_path.
        arguments = plain["model"].get("init_args") or plain["model"]
        for name, network in pl_module.named_children():
            if name in arguments and hasattr(network, "num_classes"):
                arguments[name]["init_args"].setdefault("num_classes", network.num_classes)
        if plain != yaml.safe_load(text):
            header = [line for line in text.splitlines() if line.startswith("#")]
            text = "\n".join([*header, yaml.safe_dump(plain, sort_keys=False)])
        Path(config.run, "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(plain)


def spelled_out(word: str) -> str:
    """`--weights` is short for `--model.weights`, of whichever model."""
    return word.replace("--", "--model.", 1) if word.partition("=")[0] == "--weights" else word


def config_files(arguments: list[str]) -> list[Path]:
    """The existing files among the values of -c and --config."""
    flags = ("-c", "--config")
    values = [value for flag, value in pairwise(arguments) if flag in flags]
    values += [word.partition("=")[2] for word in arguments if word.partition("=")[0] in flags]
    return [Path(value) for value in values if Path(value).is_file()]


def sources(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Files and flags in the order they are given, a flag as {dotted key: value}."""
    for word, following in pairwise([*arguments, ""]):
        flag, equals, value = word.partition("=")
        value = value if equals else following
        if flag in ("-c", "--config") and Path(value).is_file():
            yield read_config(Path(value))
        elif flag.startswith("--"):
            yield {flag[2:]: value}


def read_config(file: Path) -> dict[str, Any]:
    """The keys and values of a config file.

    Raises:
        ConfigError: the file is no YAML, or holds something else.
    """
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"{file}{where}: no valid YAML: {reason}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(config).__name__}")
    return config


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError that jsonargparse wrapped, with others, into one of its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error
