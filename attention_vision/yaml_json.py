"""YAML and JSON: reading into dataclasses with one-line errors, and atomic writing."""

import json
import os
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from attention_vision.errors import ConfigError, InputError

T = TypeVar("T")


def read_dataclass(kind: type[T], content: Any, where: str) -> T:
    """Build a dataclass, nested ones included, from a mapping.

    Args:
        kind: a dataclass whose fields are str, float, bool, Literal, list, dataclass or None.
        content: the parsed YAML.
        where: file and key, for error messages.

    Raises:
        InputError: an unknown or missing key, a value of another type, or a value that the
            dataclass itself rejects.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys and values, found {type(content).__name__}")
    hints, any_kind = get_type_hints(kind), cast(Any, kind)  # there is no type of dataclasses
    for key in content:
        if key not in hints:
            raise InputError(f"{where}: unknown key '{key}'; known: {', '.join(hints)}")
    for item in fields(any_kind):
        if item.name not in content and item.default is item.default_factory is MISSING:
            raise InputError(f"{where}: '{item.name}' is missing")
    values = {key: convert(hints[key], value, f"{where}: {key}") for key, value in content.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def convert(hint: Any, value: Any, where: str) -> Any:
    """Convert a value to the type of an annotation; an int is accepted for a float.

    Raises:
        InputError: the value has another type.
    """
    if get_origin(hint) is UnionType:  # KIND | None
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if is_dataclass(hint):
        return read_dataclass(cast(type, hint), value, where)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise InputError(f"{where} is {value!r}, not a list")
        (inner,) = get_args(hint)
        return [convert(inner, one, f"{where}, item {n}") for n, one in enumerate(value, 1)]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{where} is {value!r}, none of {', '.join(get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise InputError(f"{where} is {value!r}, not of type {hint.__name__}")
    return value


Config = dict[str, Any]


class Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys; PyYAML silently keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys as they are written, before `<<` merges others into them."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key '{key.value}'", key.start_mark
                )
            seen.add(name)
        return node


Loader.add_implicit_resolver(  # 1e-3 is a number, as in jsonargparse; YAML 1.1 requires 1.0e-3
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(file: Path) -> Config:
    """Read a YAML file of keys and values.

    Raises:
        ConfigError: the file does not exist, is not valid YAML, has a duplicate key, or its
            content is not a mapping.
    """
    try:
        content = yaml.load(file.read_text(), Loader)
    except FileNotFoundError:
        raise ConfigError(f"no such file: {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{file}{where}: not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{file}: expected keys and values, found {kind}")
    return content


def mapping(content: Any, file: Path, what: str) -> dict[str, Any]:
    """Return a part of a file after checking that it is a mapping.

    Raises:
        InputError: it is not a mapping.
    """
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise InputError(f"{file}: {what}: expected keys and values, found {kind}")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        InputError: the file is truncated, damaged, or contains something else.
    """
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{file}{where}: not valid JSON: truncated or damaged") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected an object, found {type(content).__name__}")
    return content


def require(content: dict[str, Any], key: str, kind: type, source: Path) -> Any:
    """Return the value of a required key.

    Raises:
        InputError: the key is missing, or its value is of another type.
    """
    if key not in content:
        raise InputError(f"{source}: '{key}' is missing")
    if not isinstance(content[key], kind) or isinstance(content[key], bool):
        raise InputError(f"{source}: '{key}' is {content[key]!r}, not of type {kind.__name__}")
    return content[key]


def write_atomically(file: Path, text: str) -> None:
    """Write a file completely or not at all; nothing is written if it has this text already."""
    if file.is_file() and file.read_text() == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def to_json(content: dict[str, Any]) -> str:
    """Format an object as indented JSON; NaN and infinity raise ValueError."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
