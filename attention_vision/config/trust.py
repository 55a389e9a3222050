"""What a config may name unless its source is trusted: classes of known packages, see SECURITY.md.

Importing a module runs it, and so does calling a function that stands where a class is expected.
jsonargparse compares each import path that a value names with this list before it is imported, and
what was imported once more by the path where it is defined.
"""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import check_import_path, parsing_settings

from attention_vision.errors import ConfigError, InputError

# Packages, modules or classes. None of their classes runs code that its arguments name, loads a
# pickle, or writes files where an argument says, but for those in `WRITES`.
KNOWN = (
    "attention_vision.attention",
    "attention_vision.backbones",
    "attention_vision.checkpoints.preprocessing.Preprocessing",
    "attention_vision.claims.claim",
    "attention_vision.classification",
    "attention_vision.data",
    "attention_vision.detection",
    "attention_vision.generation",
    "attention_vision.training.optim",
    "attention_vision.training.wandb_logger",
    "lightning.fabric.plugins.environments",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "lightning.pytorch.loggers",  # named in configs of runs; not built unless a run is trained
    "lightning.pytorch.plugins.environments",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.ddp",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
)
# Argument by which classes of this package write files -> the one that says where.
WRITES = {"cache": "cache", "download": "root"}
AS_IT_BEGINS = dict(parsing_settings)

_everything = ContextVar("everything", default=False)
_refusing = ContextVar[str | None]("refusing", default=None)  # the files; None while all is known


def trusts_everything() -> bool:
    """Whether `trusting` is in force."""
    return _everything.get()


@contextmanager
def trusting(everything: bool = True) -> Iterator[None]:
    """Context in which the configs of all runs that are read may name any class, or known ones."""
    token = _everything.set(everything)
    try:
        yield
    finally:
        _everything.reset(token)


@contextmanager
def imports(everything: bool, source: str = "") -> Iterator[None]:
    """Context in which values of a config may name any class, or known ones only.

    With everything, classes are also looked for in the current folder, after what is installed.

    Args:
        everything: whether the config is trusted.
        source: its files, for the message of an error.
    """
    before, token = dict(parsing_settings), _refusing.set(None if everything else source)
    own = [] if everything else own_packages()
    if everything or own:
        find_in_current_folder()
    parsing_settings.update(AS_IT_BEGINS)
    if not everything:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*KNOWN, *own])
    try:
        yield
    finally:
        parsing_settings.update(before)
        _refusing.reset(token)


def find_in_current_folder() -> None:
    """Let `class_path: mine.Mine` name a class in mine.py; installed packages come first."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder was removed: change to another one") from None
    if here not in sys.path:
        sys.path.append(here)


def own_packages() -> list[str]:
    """Import paths that the user trusts always: the lines of ~/.config/attention_vision/trusted.

    Raises:
        ConfigError: a line is not an import path.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    file = Path(home, "attention_vision", "trusted")
    try:
        lines = [line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    for number, line in enumerate(lines, 1):
        parts = line.split(".")  # the parser itself decides what is trusted
        if line and (parts[0] == "jsonargparse" or not all(map(str.isidentifier, parts))):
            raise ConfigError(f"{file}, line {number}: {line} is not an import path such as mine")
    return [line for line in lines if line]


def may_import(class_path: str) -> bool:
    """Whether the config in hand may name this import path."""
    try:
        check_import_path(class_path)
    except ImportError:
        return False
    return True


def refusal(class_path: str, key: str) -> str:
    """One line on a value that names something else than a known class."""
    where = ": ".join(filter(None, (_refusing.get(), key)))
    return (
        f"{where}: {class_path} is not of this package, torch.nn, torch.optim or torchvision, and"
        " naming it runs its code: if you trust where this comes from, give --trust (in Python"
        " trust=True), or name code of your own in ~/.config/attention_vision/trusted"
    )


def refuse_functions(config: Any, above: str = "") -> None:
    """Raise ConfigError for a function in a parsed config that is not trusted.

    Building calls it, and the functions of known packages are not known to be harmless.
    """
    if _refusing.get() is None:
        return
    if isinstance(config, Namespace):
        for key, value in vars(config).items():
            path = above if key == "init_args" else f"{above}.{key}".strip(".")
            refuse_functions(value, path)
        name = config.get("class_path")
        if isinstance(name, str) and not inspect.isclass(imported(name)):
            raise ConfigError(refusal(name, above))
    elif isinstance(config, list | tuple):
        for value in config:
            refuse_functions(value, above)
    elif isinstance(config, dict):
        for key, value in config.items():
            refuse_functions(value, f"{above}.{key}")
    elif inspect.isroutine(config):
        raise ConfigError(refusal(f"{config.__module__}.{config.__qualname__}", above))


def imported(path: str) -> Any:
    """What a path names that the parser has imported already."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def refuse_writes(config: Any, folder: Path, above: str = "") -> None:
    """Raise ConfigError for a config that writes neither below the current folder nor its own.

    Args:
        config: parsed, and not trusted.
        folder: of the run.
        above: the key of the config.
    """
    if not isinstance(config, Namespace):
        return
    for key, value in vars(config).items():
        path = above if key == "init_args" else f"{above}.{key}".strip(".")
        place = vars(config).get(WRITES.get(key, ""))
        if value and isinstance(place, str) and not is_below(Path(place), Path(), folder):
            raise ConfigError(
                f"{path} would write to {place}, which is neither below this folder nor of the run:"
                " leave it out, or give --trust"
            )
        refuse_writes(value, folder, path)


def refuse_links(folder: Path) -> None:
    """Raise ConfigError for a link in a folder through which results would be written elsewhere.

    Checkpoints may lie elsewhere, as they are only read.
    """
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            link = Path(above, name)
            if link.is_symlink() and not is_below(link, folder) and name != "checkpoints":
                raise ConfigError(f"{link} is a link that leaves {folder}: remove it")
        folders[:] = [name for name in folders if name not in ("checkpoints", "wandb")]


def is_below(path: Path, *folders: Path) -> bool:
    """Whether a path is below one of some folders when all links are followed."""
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
