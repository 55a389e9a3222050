"""Mistakes in a config file or a flag, each told in one line that names the nearest right key.

jsonargparse reports one `ArgumentError` whose text nests a line per level (key, class, key, ...),
with every failed branch of a union. `explain` reads three things from it: the key path, the class
that owns the last key, and the cause.
"""

import importlib
import inspect
import re
import traceback
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from jsonargparse import ArgumentParser

from attention_vision.config.moved_paths import RENAMED_CLASSES
from attention_vision.config.trust import may_import, refusal

NO_TEXT = r"Key must be a string, got: (.+)\."  # jsonargparse of a key of YAML
SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")  # what a node that chooses a class may hold

USUAL_FLAGS = {  # of other programs, and the keys that they are here
    "batch_size": "data.batch_size",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "workers": "data.num_workers",
    "num_workers": "data.num_workers",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "seed": "seed_everything",
    "resume": "ckpt_path",
    "output": "run",
    "output_dir": "run",
}


def explain(error: ArgumentError, parser: ArgumentParser, roots: dict[str, type]) -> str:
    """One line for a parse error.

    Args:
        error: what `parser.parse_args` raised under `exit_on_error=False`.
        parser: the parser, for its known keys.
        roots: the class behind `model`, `data` and `trainer`, for the classes that a key accepts.
    """
    text = without_other_branches(str(error))
    path = key_path(text)
    return (
        unknown_flag(text, parser)
        or untrusted(text)
        or untrusted(str(error))
        or unimportable(text, path)
        or wrong_kind(text, path)
        or unknown_key(text, parser)
        or key_without_text(text)
        or wrong_contract(text, path)
        or missing(text)
        or unknown_class(text, path, roots)
        or key_without_class(text, path)
        or no_class(text, path, roots)
        or wrong_value(text, path)
        or " ".join(text.split())
    )


def without_other_branches(text: str) -> str:
    """Keeps, of each union, the branch that names the class that was given.

    A key that takes a class or null fails in both ways; only the first says why.
    """
    union = re.compile(
        r"^( *)Does not validate against any of the Union subtypes\n(?:\1.*\n)*?\1Errors:\n"
        r"(?P<branches>(?:\1  .*\n)+)(?:\1Given value.*(?:\n|$))*",
        re.M,
    )
    while found := union.search(text):
        branches = re.split(rf"^{found[1]}  - ", found["branches"], flags=re.M)
        named = [one for one in branches if one.startswith("Problem with given class_path")]
        if not named:
            return text
        text = f"{text[: found.start()]}{found[1]}{named[0]}{text[found.end() :]}"
    return text


def untrusted(text: str) -> str | None:
    """A class path that a config may name only if it is trusted."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", text)
    return refusal(found[1], key_path(text[: found.start()])) if found else None


def unimportable(text: str, path: str) -> str | None:
    """The reason why a class path of the user's own cannot be imported."""
    given = r"class_path(?:=|': | )'([\w.]+)'|(?:Got|Given) value: ([^\W\d][\w.]*)$"
    for found in re.finditer(given, text, re.M):
        class_path = found[1] or found[2]
        if "." in class_path and (reason := import_failure(class_path)):
            return f"{path}: {reason}"
    return None


def import_failure(class_path: str) -> str | None:
    """Why a dotted path cannot be imported, with the file that was looked for; None if it can."""
    module_path, _, name = class_path.rpartition(".")
    first = module_path.partition(".")[0]
    if not may_import(class_path):
        return None
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name == first:
            return (
                f"cannot import {class_path}: there is no {first}.py in {Path.cwd()}, nor an"
                f" installed package {first}"
            )
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            return f"cannot import {class_path}: there is no module {error.name}"
        return f"cannot import {class_path}: {module_path} needs {error.name}, which is not here"
    except Exception as error:
        return f"cannot import {class_path}: {reason_and_line(error)}"
    if hasattr(module, name):
        return None
    own = [key for key, value in vars(module).items() if defined_in(value, module)]
    near = nearest(name, own)
    hint = f"did you mean {near}?" if near else choices(own)
    if hasattr(module, "__path__"):  # a package, whose classes lie in its files
        return f"there is no class {class_path}; {hint}"
    return f"{module.__file__} has no class {name}; {hint}"


def reason_and_line(error: Exception) -> str:
    """An error in a file of the user's own: its text, the file and the line."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "site-packages" not in one.filename and one.filename[0] != "<"]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{reason} ({own[-1].filename}, line {own[-1].lineno})" if own else reason


def defined_in(value: object, module: ModuleType) -> bool:
    """Whether a value is a class of a module, or one that a package exports."""
    return isinstance(value, type) and f"{value.__module__}.".startswith(f"{module.__name__}.")


def wrong_kind(text: str, path: str) -> str | None:
    """A class in an argument that takes exactly one other, such as the recipe of a data set."""
    found = re.search(r"Subclasses are disabled for (\w+), thus '([\w.]+)' is not accepted", text)
    owners = re.findall(r"Problem with given class_path '(.+?)'", text)
    if not found or not owners:
        return None
    hints = typing.get_type_hints(import_class(owners[-1]).__init__)
    keys = [key for key, hint in hints.items() if getattr(hint, "__name__", "") == found[1]]
    key = ".".join([path, *keys[:1]])
    given, owner = (name.rpartition(".")[2] for name in (found[2], owners[-1]))
    return f"{key}: {given} is not {a(found[1])}, which is what {owner} takes"


def unknown_flag(text: str, parser: ArgumentParser) -> str | None:
    if not (found := re.match(r"unrecognized arguments: (.*)", text)):
        return None
    word = found[1].split()[0]
    if not word.startswith("--"):
        return f"unexpected '{word}': options are --dotted.key VALUE"
    given, known = word[2:].partition("=")[0], known_keys(parser)
    usual = USUAL_FLAGS.get(given.replace("-", "_"), "")
    if usual in known or usual.rpartition(".")[0] in known:
        return f"there is no key --{given}; did you mean --{usual}?"
    return wrong_key(given, known, flag="--")


def unknown_key(text: str, parser: ArgumentParser) -> str | None:
    inside = r"Problem with given class_path '(.+?)':\s+unrecognized arguments: --([\w.]+)"
    if found := re.search(inside, text):
        return wrong_key(
            found[2], class_keys(import_class(found[1])), prefix=key_path(text[: found.start()])
        )
    cause = r"(?:Group '(?P<group>.+?)' does not accept option|Option) '(?P<key>.+?)'"
    if found := re.search(cause + "(?: is not accepted)?", text):
        key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
        owner = owner_class(text, found.start(), found.end())
        if owner is None:
            return wrong_key(key, known_keys(parser))
        known = [*class_keys(owner), *SPEC_KEYS]
        return wrong_key(key, known, prefix=key_path(text[: found.start()]))
    if found := re.search(r"Not a valid subclass of \w+\. Got value: (\{.*\})", text):
        path = key_path(text[: found.start()])
        keys = [key for key in re.findall(r"[{,] ?'(\w+)':", found[1]) if key not in SPEC_KEYS]
        if "'class_path'" in found[1] and keys:
            return f"{path}.{keys[0]} stands beside class_path: move it under init_args"
        return wrong_key((keys or ["class_path"])[0], SPEC_KEYS, prefix=path)
    return None


def key_without_text(text: str) -> str | None:
    """A key that YAML reads as a number, a truth value or null, among those of a class."""
    if not (found := re.search(NO_TEXT, text)):
        return None
    path = key_path(text[: found.start()])
    start = f"{path}: " if path else ""
    return f"{start}the key {as_yaml(found[1])} is not text: write the name of a key"


def as_yaml(value: str) -> str:
    """The `repr` of a value of YAML as it is written there."""
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)


def missing(text: str) -> str | None:
    if found := re.search(r"File does not exist: '(.+?)'", text):
        return f"no such file: {found[1]}"
    if found := re.search(r"Path is not a file: '(.+?)'", text):
        given = Path(found[1])
        if not given.is_dir():
            return f"{given} is not a file"
        a_run = (given / "config.yaml").is_file()
        return f"{given} is a folder: give {'its config.yaml' if a_run else 'a file in it'}"
    if found := re.search(r"arguments are required: (.+?)(?:\. Got value|$)", text, re.M):
        path = key_path(text[: found.start()])
        keys = ", ".join(f"{path}.{key}" if path else key for key in found[1].split(", "))
        return f"missing: {keys}; give it in a -c FILE or as a flag"
    return None


def wrong_contract(text: str, path: str) -> str | None:
    """A token attention in the slot of a feature attention: its `heads` would be missing."""
    slot = r"Callable\[\[int\], torch\.nn\.modules\.module\.Module\]"
    cause = r" expects .* are required: heads\. Got value: Namespace\(class_path='(.+?)'"
    found = re.search(slot + cause, text)
    owners = re.findall(r"Problem with given class_path '(.+?)'", text)
    if not found or not owners:
        return None
    given, owner = (name.rpartition(".")[2] for name in (found[1], owners[-1]))
    return (
        f"{path}: {given} is a token attention (width, heads); {owner} takes a feature attention"
        " (channels)"
    )


def key_without_class(text: str, path: str) -> str | None:
    """A key of a class that no file chose, such as that of a logger."""
    found = re.search(r"Given value: NestedArg\(key='(.+?)'", text)
    if not found or "is abstract" not in text:
        return None
    key = found[1].removeprefix("init_args.")
    first = f"choose a class by --{path}.class_path first"
    if path == "trainer.logger":
        first = "add -c experiments/profiles/wandb.yaml, which chooses one"
    return f"{path}.{key}: no class is chosen for {path}; {first}"


def unknown_class(text: str, path: str, roots: dict[str, type]) -> str | None:
    if found := re.search(r"Import path (\S* ?)does not correspond to a subclass of (\w+)", text):
        known = choices(accepted_classes(text, path, roots))
        given = re.search(r"Given value: ([\w.]+)$", text, re.M)
        name = found[1].strip() or (given[1] if given else "the class")
        return f"{path}: {name} is not {a(found[2])}; {known}"
    if found := re.search(r"Expected '(\S+)' to be a function that returns <class '(\w+)'>", text):
        return f"{path}: the function {found[1]} has to be annotated: `-> torch.nn.{found[2]}`"
    if found := re.search(r"Expected '(\S+)' to be a subclass of <class '(\w+)'>", text):
        return f"{path}: {found[1]} is not {a(found[2])}"
    found = re.search(r"Expected a dot import path string: (\S+)", text) or re.search(
        r"Problem with given class_path '(\S+)':\s+(?:module .* has no|No module named)", text
    )
    found = found or re.search(
        r"callable class: (?:module .* has no|No module named).*class_path='(\S+?)'", text
    )
    if not found:
        return None
    classes = accepted_classes(text, path, roots)
    near = nearest(found[1].rpartition(".")[2], classes)
    number = re.search(r"Expected (?:a )?<class '(int|float)'>", text)
    if number and not near and not re.search(r"Given value: \W*class_path", text):
        return (
            None  # a word where a number was meant, in a key that takes either a number or a class
        )
    hint = f"did you mean {near}?" if near else choices(classes)
    if found[1] in RENAMED_CLASSES:
        return f"{path}: {found[1]} is {RENAMED_CLASSES[found[1]]} since version 0.2"
    own = "" if near or "." in found[1] else f"; a class of your own is FILE.{found[1]}"
    if Path(f"{found[1]}.py").is_file():
        own = f"; {found[1]}.py is a file: name a class in it, {found[1]}.CLASS"
    return f"{path}: there is no class {found[1]}; {hint}{own}"


def no_class(text: str, path: str, roots: dict[str, type]) -> str | None:
    """A value that names no class or several, or that is no mapping where one is needed."""
    if found := re.search(r"Multiple subclasses with name (\w+)\..*?: (.+?)\.?$", text, re.M):
        return f"{path}: there are several classes {found[1]}: name one of {found[2]}"
    if found := re.search(r"Unable to load config '(.*)'", text):
        path = key_path(text[: found.start()])
        return f"{path}: expected keys and values, got '{found[1]}'"
    if found := re.search(r"import path or a subclass spec, but got (.*?)(?:\. Got|$)", text, re.M):
        return f"{path}: expected a class, got {as_yaml(found[1])}"
    if found := re.search(r"Not a valid subclass of (\w+)\. Got value: (.*)", text):
        known = choices(accepted_classes(text, path, roots))
        return f"{path}: expected {a(found[1])}, got {as_yaml(found[2])}; {known}"
    return None


def wrong_value(text: str, path: str) -> str | None:
    """Names the types or choices that a key takes, and the nearest choice to what was given."""
    cause = text[text.rfind('Parser key "') :]
    union = re.search(r"^( *)Errors:\n((?:\1  .*\n)+)", cause, re.M)
    branches = union[2] if union else cause
    kinds = r"Expected (?!an? path |an? dot )(?:an? )?(.+?)(?:\. Got value.*)?$"
    kinds = re.findall(kinds, branches, re.M)
    given = re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value.*)?$", cause, re.M)
    if not kinds or not given:
        return None
    kinds = kinds if union else kinds[:1]
    literals = re.findall(r"'(.+?)'", " ".join(kind for kind in kinds if "Literal" in kind))
    types = [kind for kind in kinds if "Literal" not in kind]
    types = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind) for kind in types]
    types = [re.sub(r"^tuple\b", "list", kind) for kind in types]  # as YAML calls it
    value = re.sub(r"NestedArg\(.*val='?(.*?)'?\)", r"\1", given[1])
    near = nearest(value, literals)
    hint = f"; did you mean {near}?" if near else ""
    if kinds == ["import path or a subclass spec, but got None"]:
        return f"{path}: expected a class, got null"
    words = ["null" if word == "NoneType" else word for word in types + literals]
    if "str" in words and (quote := unquoted(value)):
        hint = quote
    return f"{path}: expected {either(dict.fromkeys(words))}, got '{value}'{hint}"


WORDS_OF_YAML = {"False": ("no, off or false", "no"), "True": ("yes, on or true", "yes")}


def unquoted(value: str) -> str | None:
    """The advice to quote a word of text that YAML reads as a number, a truth value or null."""
    if value in WORDS_OF_YAML:
        written, example = WORDS_OF_YAML[value]
        return f', which YAML makes of {written}: quote the word, "{example}"'
    if value == "None":
        return ', which YAML makes of null or of nothing: quote the word, "null"'
    if re.fullmatch(r"[-+]?(\d[\d_.]*(e[-+]?\d+)?|nan|inf)", value):
        return f', a number in YAML: quote it where text is meant, "{value}"'
    return None


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every dotted key of the parser itself; those inside a chosen class belong to that class."""
    return [
        action.dest for action in parser._actions if action.dest not in ("==SUPPRESS==", "help")
    ]


def class_keys(owner: type) -> list[str]:
    """The arguments of a class, and the fields of those that are dataclasses."""
    keys = list(inspect.signature(owner).parameters)
    hints = typing.get_type_hints(owner.__init__)
    for key in keys[:]:
        for part in filter(is_dataclass, classes_in(hints.get(key))):
            keys += [f"{key}.{field.name}" for field in fields(part)]
    return keys


def key_path(text: str) -> str:
    """The dotted key that a nested message leads to, `init_args` left out."""
    return ".".join(re.findall(r'Parser key "(.+?)"', text))


def owner_class(text: str, start: int, end: int) -> type | None:
    """The class whose argument is wrong at text[start:end]; None at the top level.

    A factory names its class after the cause (". Got value: Namespace(class_path=..."), a plain
    class before it.
    """
    after = re.match(r"\. Got value: Namespace\(class_path='(.+?)'", text[end:])
    before = re.findall(r"Problem with given class_path '(.+?)'", text[:start])
    return import_class(after[1] if after else before[-1]) if after or before else None


def import_class(path: str) -> type:
    """Import a class of a config. Raises ImportError where the config may not name it."""
    if not may_import(path):
        raise ImportError(path)
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def accepted_classes(text: str, path: str, roots: dict[str, type]) -> list[str]:
    """Names of the imported classes that the key accepts, those of this package first."""
    if path in roots:
        bases = {roots[path]}
    else:
        above = re.findall(r"Problem with given class_path '([\w.]+)':\s+Parser key", text)
        owner = import_class(above[-1]) if above else roots.get(path.partition(".")[0], object)
        hints = typing.get_type_hints(owner.__init__)
        bases = classes_in(hints.get(path.rpartition(".")[2]))
    found = [cls for base in bases for cls in subclasses(base) if not cls.__name__.startswith("_")]
    found.sort(key=lambda cls: (not cls.__module__.startswith("attention_vision"), cls.__name__))
    return list(dict.fromkeys(cls.__name__ for cls in found))


def classes_in(hint: object) -> set[type]:
    """The classes that a type hint accepts; of a factory, what it returns."""
    parts = typing.get_args(hint)
    if not parts:
        return {hint} - {bool, int, float, str, type(None)} if isinstance(hint, type) else set()
    if typing.get_origin(hint) is Callable:
        parts = parts[-1:]
    return set().union(*map(classes_in, parts))


def subclasses(base: type) -> set[type]:
    """All classes below `base`; `base` itself where there is none."""
    below = set(type.__subclasses__(base))
    return below.union(*map(subclasses, below)) or {base}


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, case ignored; None where nothing is near."""
    lower = {name.lower(): name for name in reversed(list(known))}
    near = get_close_matches(given.lower(), lower, n=1, cutoff=0.65)
    return lower[near[0]] if near else None


def either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def choices(known: Iterable[str]) -> str:
    known = list(known)
    more = ", ..." if len(known) > 12 else ""
    return f"known: {', '.join(known[:12])}{more}" if known else "see --help"


def wrong_key(given: str, known: Iterable[str], prefix: str = "", flag: str = "") -> str:
    """Names the key, and the known key nearest to the first part of it that is unknown."""
    parts, known = given.split("."), list(known)
    above, level, depth, part = "", set[str](), 0, given
    for depth, part in enumerate(parts):
        above = "".join(f"{name}." for name in parts[:depth])
        level = {key[len(above) :].partition(".")[0] for key in known if key.startswith(above)}
        if part not in level:
            break
    if near := nearest(part, sorted(level)):
        right = above + ".".join([near, *parts[depth + 1 :]])
    else:  # perhaps the right name at the wrong level: `max_epochs` for `trainer.max_epochs`
        right = next((key for key in known if key.rpartition(".")[2] == parts[-1]), None)
    start = f"{flag}{prefix}." if prefix else flag
    hint = f"did you mean {start}{right}?" if right else choices(sorted(level))
    return f"there is no key {start}{given}; {hint}"


def a(noun: str) -> str:
    """A noun with its article."""
    return f"an {noun}" if noun[:1] in "AEIOU" else f"a {noun}"
