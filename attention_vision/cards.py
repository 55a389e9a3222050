"""YAML mappings as dataclasses: every key known, nothing missing, each value of its type."""

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from attention_vision.errors import InputError

T = TypeVar("T")


def read_card(kind: type[T], given: Any, where: str) -> T:
    """Builds a dataclass from a mapping, dataclasses inside it too.

    Args:
        kind: a dataclass of str, float, Literal, list, dataclass and None.
        given: what YAML gave.
        where: file and key, for the message.

    Raises:
        InputError: a key that is unknown or missing, or a value of another type; what the
            dataclass itself refuses.
    """
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected keys and values, found {type(given).__name__}")
    hints = get_type_hints(kind)
    for key in given:
        if key not in hints:
            raise InputError(f"{where}: unknown key '{key}'; known: {', '.join(hints)}")
    for item in fields(kind):
        if item.name not in given and item.default is item.default_factory is MISSING:
            raise InputError(f"{where}: '{item.name}' is missing")
    values = {key: convert(hints[key], value, f"{where}: {key}") for key, value in given.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotation asks for it; a whole number is a float, too."""
    if get_origin(hint) is UnionType:  # KIND | None
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if is_dataclass(hint):
        return read_card(hint, value, where)
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
