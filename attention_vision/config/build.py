"""Objects from a config, for every reader of one."""

import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from jsonargparse import ArgumentParser as PlainParser
from jsonargparse import Namespace

from attention_vision.config.messages import explain, import_class
from attention_vision.config.moved_paths import with_current_paths
from attention_vision.config.parser import ArgumentParser, input_error
from attention_vision.config.ranges import check_ranges
from attention_vision.config.size_limits import limited_networks
from attention_vision.config.trust import imports, refuse_functions, trusts_everything
from attention_vision.errors import ConfigError, InputError, out_of_memory


@dataclass(frozen=True)
class Node:
    """The class behind a key of a config.

    Args:
        kind: the class, or the base of those that may be named.
        chosen: whether the config names the class by `class_path`.
    """

    kind: type
    chosen: bool = True


@dataclass(frozen=True)
class Link:
    """A number that one object passes to the constructor of another.

    Args:
        source: dotted path of the attribute, such as `data.num_classes`.
        target: dotted path of the argument.
    """

    source: str
    target: str


def add_nodes(parser: PlainParser, nodes: Mapping[str, Node], links: Iterable[Link] = ()) -> None:
    """Add the arguments of all classes to a parser, and the links between them."""
    for key, node in nodes.items():
        if node.chosen:
            parser.add_subclass_arguments(node.kind, key, fail_untyped=False, required=True)
        else:
            parser.add_class_arguments(node.kind, key, fail_untyped=False, sub_configs=True)
    for link in links:
        parser.link_arguments(link.source, link.target, apply_on="instantiate")


def instantiate(
    parser: PlainParser, config: Any, instantiators: Sequence[tuple[Any, type, bool]] = ()
) -> Any:
    """Build the objects of a parsed config.

    Args:
        parser: that parsed it.
        config: what it was parsed to.
        instantiators: (function that builds, class, whether for its subclasses too), as
            jsonargparse takes them.

    Raises:
        ConfigError: a class needs an argument that was not given, or a function stands for one in a
            config that is not trusted.
        InputError: a constructor refuses its arguments.
    """
    refuse_functions(config)
    if missing := missing_argument(config):
        raise ConfigError(missing)
    try:
        with limited_networks():
            return parser.instantiate(config, instantiators=list(instantiators))
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        if re.search(r"__init__\(\) takes [12] positional arguments? but", text):
            text += ": a feature attention takes (channels), a token attention (width, heads)"
        raise input_error(error) or InputError(out_of_memory(text) or text) from error


def missing_argument(config: Any, above: str = "") -> str | None:
    """One line on the first argument that a class needs and that nobody gave.

    The parser fills an argument that has neither an annotation nor a default with null.
    """
    if not isinstance(config, Namespace):
        return None
    given = config.get("init_args")
    if isinstance(config.get("class_path"), str) and isinstance(given, Namespace):
        for name, parameter in signature(import_class(config.class_path)).parameters.items():
            untyped = parameter.annotation is parameter.default is Parameter.empty
            if untyped and name in given and given[name] is None:
                return f"{above}.{name} is missing: {config.class_path} needs it"
        return missing_argument(given, above)
    found = (
        missing_argument(value, f"{above}.{key}" if above else key)
        for key, value in vars(config).items()
    )
    return next(filter(None, found), None)


def build_nodes(
    config: Mapping[str, Any], nodes: Mapping[str, Node], links: Iterable[Link] = ()
) -> dict[str, Any]:
    """Build the objects behind some keys of a config that was read from a file.

    Its classes have to be known ones, unless the caller is `trusting`. The random state of the
    caller stays as it is.

    Raises:
        ConfigError: the config does not parse, names a class that is not known, or a number that
            is out of range.
        InputError: a constructor refuses its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_nodes(parser, nodes, links)
    given = with_current_paths({key: config[key] for key in nodes})
    # Building draws weights.
    with torch.random.fork_rng(devices=[]), imports(trusts_everything()):
        try:
            parsed = parser.parse_object(given)
        except ArgumentError as error:
            roots = {key: node.kind for key, node in nodes.items()}
            raise ConfigError(explain(error, parser, roots)) from error
        check_ranges(parser, parsed)
        built = instantiate(parser, parsed)
    return {key: built[key] for key in nodes}
