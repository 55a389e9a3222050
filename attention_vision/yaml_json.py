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
MAX_BYTES = {"YAML": 10**6, "JSON": 10**8}  # of a file; a config has some 10,000
MAX_DEPTH = 64  # of lists and mappings in each other
MAX_NODES = 100_000  # scalars, lists and mappings, counted again wherever an alias repeats them
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """YAML loader for files of anyone, in one line of error and within a second.

    It rejects duplicate keys, of which PyYAML silently keeps the last one; numbers of base 8 and 60
    (`010` is 8 in YAML, `1:30` is 90); aliases of what contains them; and content that is too
    deep or, with its aliases expanded, too large. Dates are text.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.depth = self.nodes = 0
        self.sizes: dict[int, int] = {}  # id of a composed node -> its nodes, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Compose a node; measure its depth and size, and check how a number is written."""
        event = self.peek_event()
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise refused(event, f"more than {MAX_DEPTH} levels of lists and mappings")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:  # it is still being composed
                raise refused(event, f"*{event.anchor} contains itself")
        else:
            self.sizes[id(node)] = self._size(node)
        if max(self.sizes[id(node)], self.nodes) > MAX_NODES:
            raise refused(event, f"more than {MAX_NODES:,} values, those of aliases included")
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Refuse numbers that are not what they look like."""
        node = super().compose_scalar_node(anchor)
        text = node.value
        octal = node.tag == INT and re.fullmatch(r"[-+]?0[0-7_]+", text)
        if octal or (node.tag in (INT, FLOAT) and ":" in text and node.style is None):
            number = self.construct_object(node)
            raise refused(
                node, f'{text} is the number {number}: quote it where text is meant, "{text}"'
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys as they are written, before `<<` merges others into them."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise refused(key, f"duplicate key '{key.value}'")
            seen.add(name)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; `!!int x` and numbers of more than 4,300 digits do not parse."""
        try:
            value = super().construct_object(node, deep)
            str(value if isinstance(value, int) else "")  # hexadecimal is read without limit
            return value
        except (ValueError, LookupError) as error:
            text = str(node.value)
            text = text if len(text) <= 20 else f"{text[:20]}... of {len(text):,} characters"
            raise refused(node, f"{text} is not of type {node.tag.rpartition(':')[2]}") from error

    def _size(self, node: yaml.Node) -> int:
        """Nodes below a composed node, itself included."""
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self.sizes[id(one)] for one in node.value)
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self.sizes[id(one)] for pair in node.value for one in pair)
        return 1


def refused(place: yaml.Event | yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


Loader.yaml_implicit_resolvers = {  # a date is the name of something
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(  # 1e-3 is a number, as in jsonargparse; YAML 1.1 requires 1.0e-3
    FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML within the limits of `Loader`.

    Args:
        text: the YAML.
        where: file or flag, for error messages.

    Raises:
        ConfigError: it is not valid YAML, or beyond a limit.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{where}, line {line}: not valid YAML: the character {error.character:#04x}, of a"
            " binary or damaged file"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        if "'\\t'" in reason:
            reason += ": indent by spaces"
        raise ConfigError(f"{where}{at}: not valid YAML: {reason}") from error


def read_limited(file: Path, kind: str) -> str:
    """Read a text file of limited size. Raises InputError if it is larger or not UTF-8."""
    limit, size = MAX_BYTES[kind], file.stat().st_size
    if size > limit:
        raise InputError(
            f"{file} has {size / 1e6:,.1f} MB: {kind} is read up to {limit / 1e6:,.0f} MB"
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}):"
            " save it as UTF-8"
        ) from error


def read_yaml(file: Path) -> Config:
    """Read a YAML file of keys and values.

    Raises:
        ConfigError: the file does not exist, is not valid YAML, has a duplicate key, is beyond a
            limit of `Loader`, or its content is not a mapping.
    """
    try:
        text = read_limited(file, "YAML")
    except FileNotFoundError:
        raise ConfigError(f"no such file: {file}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise ConfigError(str(error)) from error
    content = parse_yaml(text, str(file))
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
        InputError: the file is truncated, damaged, too large, has a duplicate key, or contains
            something else.
    """
    text = read_limited(file, "JSON")
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}, line {error.lineno}: not valid JSON: truncated or damaged"
        ) from error
    except (ValueError, RecursionError) as error:  # of numbers; of lists in each other
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number too long"
        raise InputError(f"{file}: not valid JSON: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected an object, found {type(content).__name__}")
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises InputError for a key that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"duplicate key '{twice}'")
    return found


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
    if file.is_file() and file.read_bytes() == text.encode():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def to_json(content: dict[str, Any]) -> str:
    """Format an object as indented JSON; NaN and infinity raise ValueError."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
