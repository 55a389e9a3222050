"""Declared ranges of arguments: what a number may be stands in its annotation.

    @checked
    class Noise:
        def __init__(self, sigma: NonNegative = 25.0): ...

A type checker reads `NonNegative` as float. `checked` refuses `Noise(-1)`, and a config is checked
as a whole before an object is built, see `config.ranges`. Relations between two arguments, such as
a width and its heads, are checked by the constructor.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from inspect import signature
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from attention_vision.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Range:
    """The numbers that an argument may be; infinity and NaN never are.

    Args:
        least, most: ends that belong to the range.
        above, below: ends that do not.
        also: numbers outside of it with a meaning of their own, such as -1 for no limit.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[int, ...] = ()

    def __contains__(self, number: float) -> bool:
        within = self.least <= number <= self.most and self.above < number < self.below
        return within or number in self.also

    def __repr__(self) -> str:
        low, high = max(self.least, self.above), min(self.most, self.below)
        ends = [(self.above, low), (self.below, high)]
        out = " and ".join(f"{end:.15g}" for own, end in ends if math.isfinite(own))
        if math.isinf(low) and math.isinf(high):
            words = "finite"
        elif math.isinf(high):
            words = f"{'above' if out else 'at least'} {low:.15g}"
        elif math.isinf(low):
            words = f"{'below' if out else 'at most'} {high:.15g}"
        else:
            words = f"in {low:.15g}..{high:.15g}" + (f", {out} excluded" if out else "")
        return words + "".join(f", or {number}" for number in self.also)


Count = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Size = Annotated[int, Range(1, 65_536)]  # sides of images, widths, channels: more fits nowhere
Layers = Annotated[int, Range(1, 1_000)]
Workers = Annotated[int, Range(0, 1_024)]
Threads = Annotated[int, Range(1, 1_024)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # as numpy takes them
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, below=1)]  # dropout, averages: of 1, nothing would be left
Share = Annotated[float, Range(above=0, most=1)]


def refusal(name: str, value: object, hint: object) -> str | None:
    """One line on the first number of a value that its annotation does not allow; None for none.

    Args:
        name: of the argument, to begin the line.
        value: a number, or lists and mappings of them.
        hint: the annotation, of which numbers outside of any `Range` may be anything.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [one for one in parts[1:] if isinstance(one, Range)]
        if isinstance(value, int | float) and not isinstance(value, bool):
            wrong = (f"{name} is {value}: it has to be {one}" for one in ranges if value not in one)
            return next(wrong, None)
        return refusal(name, value, parts[0])
    if origin in (Union, UnionType):
        return next((refusal(name, value, one) for one in parts if accepts(one, value)), None)
    if isinstance(value, Mapping) and len(parts) == 2:
        lines = (refusal(f"{name}.{key}", one, parts[1]) for key, one in value.items())
        return next(filter(None, lines), None)
    if isinstance(value, list | tuple) and parts:
        several = parts if len(parts) == len(value) and Ellipsis not in parts else None
        lines = (
            refusal(f"{name}[{number}]", one, several[number] if several else parts[0])
            for number, one in enumerate(value)
        )
        return next(filter(None, lines), None)
    return None


def accepts(hint: object, value: object) -> bool:
    """Whether a value is of a type, at its outermost level; an int is not a float here."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and isinstance(value, kind)


def bounded(hint: object) -> bool:
    """Whether an annotation declares a range anywhere inside."""
    return isinstance(hint, Range) or any(map(bounded, parts_of(hint)))


def parts_of(hint: object) -> Iterator[object]:
    """Arguments of an annotation, those of `Annotated` included."""
    for part in get_args(hint):
        yield from part if isinstance(part, list) else [part]  # of a Callable


@cache
def ranges_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> annotation, for the arguments of a function that declare a range."""
    hints = get_type_hints(function, include_extras=True)
    names = signature(function).parameters
    return {name: hints[name] for name in names if bounded(hints.get(name))}


def checked(cls: type[T]) -> type[T]:
    """Refuse arguments of a constructor that are outside of their declared ranges.

    A class decorator; a subclass with a constructor of its own needs it again for its own
    arguments. The constructor raises InputError, whose text names the class and the argument.
    """
    init = cls.__init__
    names = list(signature(init).parameters)[1:]

    @wraps(init)
    def check_and_init(self: T, *values: Any, **named: Any) -> None:
        for name, hint in ranges_of(init).items():
            given = dict(zip(names, values, strict=False)) | named
            if name in given and (line := refusal(name, given[name], hint)):
                raise InputError(f"{cls.__name__}: {line}")
        init(self, *values, **named)

    cls.__init__ = check_and_init
    return cls
