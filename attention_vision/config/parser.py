"""Config files and flags: how they are read and parsed."""

import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from attention_vision.config.messages import NO_TEXT, explain, reason_and_line
from attention_vision.config.moved_paths import with_current_paths
from attention_vision.errors import ConfigError, InputError
from attention_vision.yaml_json import Loader, parse_yaml, read_yaml

MODE = "yaml, current class paths"
dumping = ContextVar("dumping", default=False)


def load(text: str) -> Any:
    """Read YAML as jsonargparse does, with class paths of older versions replaced.

    What is beyond the limits of this package's own loader is not read.
    """
    check(text)
    return with_current_paths(get_loader("yaml")(text))


@lru_cache  # jsonargparse asks once per branch of a union
def check(text: str) -> None:
    yaml.load(text, Loader)


set_loader(MODE, load, exceptions=(yaml.YAMLError,))

PACKAGE = "attention_vision."
paths_of_subclasses = _typehints.get_all_subclass_paths


def own_first(*arguments: Any, **options: Any) -> list[str]:
    """Import paths among which jsonargparse looks up a name: this package's hide others of a name.

    Timm has a SqueezeExcite and a WindowAttention too, which are there once a file imports timm.
    """
    paths = paths_of_subclasses(*arguments, **options)
    own = {path.rpartition(".")[2] for path in paths if path.startswith(PACKAGE)}
    return [
        path for path in paths if path.startswith(PACKAGE) or path.rpartition(".")[2] not in own
    ]


_typehints.get_all_subclass_paths = own_first


class ArgumentParser(LightningArgumentParser):
    """A class that the user names starts from its own defaults, not from those of another one.

    jsonargparse fills in the arguments of a default class before it merges what is given, and what
    the named class accepts of them stays: SGD in the place of AdamW would decay weights by 0.01.
    Here a default class is bare until then. The parser of each class inside is one of these too.

    Class paths of older versions are read as those of today, see `moved_paths`.
    """

    def __init__(self, *arguments: Any, parser_mode: str = MODE, **options: Any):
        super().__init__(*arguments, parser_mode=parser_mode, **options)

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


def parse_words(parser: ArgumentParser, words: list[str], roots: dict[str, type]) -> Namespace:
    """Parse the words of a command line; `--weights` is short for `--model.weights`.

    Args:
        roots: the class behind `model`, `data` and `trainer`, see `messages.explain`.

    Raises:
        ConfigError: they do not parse.
    """
    short, long = "--weights", "--model.weights"
    words = [
        word.replace(short, long, 1) if word.partition("=")[0] == short else word for word in words
    ]
    for key, value in flags_and_values(words):
        if value.lstrip()[:1] in ("[", "{"):
            parse_yaml(value, key)
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        line = explain(error, parser, roots)
        if found := re.search(NO_TEXT, str(error)):
            line = f"{file_with_key(words, found[1])}{line}"
        raise ConfigError(line) from error
    except (AssertionError, InputError, KeyboardInterrupt):
        raise
    except Exception as error:  # of a module of the user's own, while it is imported
        raise ConfigError(reason_and_line(error)) from error


def flags_and_values(words: list[str]) -> Iterator[tuple[str, str]]:
    """Each word as the value of the flag before it; `--flag=value` is both."""
    for flag, word in pairwise(["", *words]):
        key, _, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        yield key, value


def file_with_key(words: list[str], key: str) -> str:
    """Start of a line: the config file among the words that has a key, given as `repr` shows it."""

    def has_key(content: Any) -> bool:
        if isinstance(content, list):
            return any(map(has_key, content))
        return isinstance(content, dict) and (
            key in map(repr, content) or any(map(has_key, content.values()))
        )

    named = (value for flag, value in flags_and_values(words) if flag in ("-c", "--config"))
    return next((f"{file}: " for file in named if file and has_key(read_yaml(Path(file)))), "")


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError that jsonargparse wrapped, with others, into one of its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def kept_arguments(sources: Iterable[dict], config: dict) -> list[str]:
    """One line per class that a later source changed and that keeps arguments of the earlier one.

    jsonargparse merges: what both classes accept stays, which is right for a learning rate and may
    surprise for a `reduction`.

    Args:
        sources: files and flags in their order, a flag as {dotted key: value}.
        config: what they were parsed to.
    """
    seen: dict[str, tuple[str, dict]] = {}
    changed: dict[str, tuple[str, dict]] = {}
    for source in sources:
        for key, name, given in chosen_classes(source):
            before, old = seen.get(key, (name, {}))
            if name != before:
                changed[key] = before, {k: v for k, v in old.items() if k not in given}
            seen[key] = name, old | given
    lines = []
    for key, name, final in chosen_classes(config):
        before, old = changed.get(key, (name, {}))
        kept = [f"{k} {v}" for k, v in old.items() if k in final and final[k] == v]
        if name != before and kept:
            lines.append(f"{key}: {name} keeps {', '.join(kept)}, given for {before}")
    return lines


def chosen_classes(config: dict, above: str = "") -> Iterator[tuple[str, str, dict]]:
    """(key without init_args, name of the class, its init_args) wherever a class may be named."""
    for key, value in config.items():
        parts = [part for part in str(key).split(".") if part not in ("init_args", "class_path")]
        path = ".".join([*above.split("."), *parts] if above else parts)
        if isinstance(value, str):
            yield path, value.rpartition(".")[2], {}
        elif isinstance(value, dict):
            arguments = value.get("init_args") or {}
            if isinstance(value.get("class_path"), str):
                yield path, value["class_path"].rpartition(".")[2], arguments
                value = {"init_args": arguments}
            yield from chosen_classes(value, path)
