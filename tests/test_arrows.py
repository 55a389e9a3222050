"""The floors of the house, read from every import: imports go down only, and in no circle."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "attention_vision"
FILES = {path.relative_to(ROOT): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}

# Single files below the floors: any room imports from them, and they from `errors` alone.
GROUND = {"errors", "identity", "ranges", "yaml_json"}
# From the lowest up. A room imports from rooms of lower floors only. A new room belongs here.
FLOORS = (
    {"attention"},
    {"backbones", "training", "config", "profiling"},
    {"data", "checkpoints", "visualization", "report"},
    {"classification", "detection", "generation", "claims"},
    {"runs"},
    {"study"},
    {"cli"},
    {"__main__"},
)
SEPARATE = {("generation", "gan"), ("generation", "image_to_image")}  # never import each other
LIGHT = {  # start in no time: neither torch nor Lightning
    *(path for path in FILES if path.parts[1] in ("report", "__main__.py", "__init__.py")),
    *(path for path in FILES if path.parts[1] == "claims" and path.stem != "check"),
    *(
        Path(PACKAGE, "cli", f"{name}.py")
        for name in ("claims", "data", "explain", "profile", "study_report", "tool_parser")
    ),
    Path(PACKAGE, "yaml_json.py"),
    Path(PACKAGE, "identity.py"),
    Path(PACKAGE, "errors.py"),
    Path(PACKAGE, "ranges.py"),
    Path(PACKAGE, "runs", "__init__.py"),
    Path(PACKAGE, "runs", "tasks.py"),
    Path(PACKAGE, "study", "definition.py"),
}
HEAVY = {"torch", "lightning", "torchvision", "torchmetrics", "wandb"}
OUTSIDE = {  # what the two lowest rooms may import of others' packages
    "attention": {*sys.stdlib_module_names, "torch"},
    "backbones": {*sys.stdlib_module_names, "torch", "torchvision"},
}


def imports(tree: ast.AST, package: tuple[str, ...], functions: bool = True) -> Iterator[str]:
    """Absolute dotted names, of relative imports and (if `functions`) of those in functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if functions:
                yield from imports(node, package)
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, package, functions)


def room_of(path: Path) -> str:
    """First name below the package, of a file's path from the root of the repository."""
    return path.with_suffix("").parts[1]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def permitted(path: Path, name: str) -> bool:
    """Whether the file at `path`, from the root of the repository, may import `name`."""
    here, (package, *inside) = room_of(path), name.split(".")
    if package != PACKAGE:
        return package in OUTSIDE.get(here, {package})
    there = inside[0] if inside else "__init__"
    if there in ("__init__", "__version__"):  # the version
        return here not in OUTSIDE
    if there in GROUND:
        return here not in GROUND or there == "errors"
    if here in GROUND:
        return False
    own = tuple(path.with_suffix("").parts[1:3])
    if there == here:
        return own not in SEPARATE or tuple(inside[:2]) not in SEPARATE - {own}
    return floor_of(there) < floor_of(here)


def graph() -> dict[str, set[str]]:
    """Dotted name of each module -> modules of the package that it imports."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    arrows = {}
    for name, path in names.items():
        found = imports(ast.parse(FILES[path].read_text()), path.parent.parts)
        targets = {one if one in names else one.rpartition(".")[0] for one in found}
        arrows[name] = {target for target in targets if target in names and target != name}
    return arrows


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Paths that come back to where they start, one for each arrow that closes a circle."""
    done: set[str] = set()
    found = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(arrows.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in arrows:
        visit(name, [])
    return found


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", *GROUND}
    listed = [room for rooms_of_floor in FLOORS for room in rooms_of_floor]
    assert sorted(listed) == sorted(rooms)
    assert len(FLOORS) <= 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_import_follows_the_arrows(path):
    tree = ast.parse(FILES[path].read_text())
    wrong = [name for name in imports(tree, path.parent.parts) if not permitted(path, name)]
    assert not wrong, f"{path} may not import {', '.join(wrong)}"
    assert path.name != "utils.py"


def test_no_circle_of_files():
    assert not circles(graph())


@pytest.mark.parametrize(
    "room", ["claims", "cli", "config", "data", "profiling", "report", "study", "training"]
)
def test_rooms_of_plumbing_export_nothing(room):
    """An export would pull Lightning into every `--help`."""
    tree = ast.parse((ROOT / PACKAGE / room / "__init__.py").read_text())
    assert not list(imports(tree, (PACKAGE, room)))


def test_only_the_table_of_tasks_knows_the_tasks():
    """A further task is a folder and a row in runs/tasks.py."""
    tasks = {"classification", "detection", "generation"}
    above = FLOORS[floor_of("runs") :]
    for path in FILES:
        if any(room_of(path) in rooms for rooms in above) and path.name != "tasks.py":
            names = imports(ast.parse(FILES[path].read_text()), path.parent.parts)
            assert not {name.split(".")[1] for name in names if name.startswith(PACKAGE)} & tasks


@pytest.mark.parametrize("path", sorted(LIGHT), ids=str)
def test_light_files_import_nothing_heavy(path):
    """Followed through the imports of this package that run at once."""
    arrows: dict[Path, list[str]] = {}
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here in arrows:
            continue
        tree = ast.parse(FILES[here].read_text())
        arrows[here] = list(imports(tree, here.parent.parts, functions=False))
        for name in arrows[here]:
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            for end in range(1, len(parts) + 1):
                for file in (
                    Path(*parts[:end]).with_suffix(".py"),
                    Path(*parts[:end], "__init__.py"),
                ):
                    if file in FILES:
                        waiting.append(file)
    heavy = {
        f"{file}: {name}"
        for file, names in arrows.items()
        for name in names
        if name.split(".")[0] in HEAVY
    }
    assert not heavy


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("attention/gate.py", "from ..backbones import ResNet"),
        ("attention/gate.py", "def f():\n  import torchvision.ops"),
        ("backbones/vit.py", "from attention_vision.training import optim"),
        ("backbones/vit.py", "try:\n  import timm\nexcept ImportError:\n  pass"),
        ("detection/detr.py", "from .. import classification"),
        ("detection/detr.py", "from attention_vision.generation.gan.hinge import generator_loss"),
        ("training/optim.py", "if True:\n  from ..classification import Classifier"),
        ("training/optim.py", "from attention_vision.runs.command import parse"),
        ("claims/ledger.py", "from attention_vision.study.definition import read_definition"),
        ("generation/gan/sagan.py", "from ..image_to_image.unet import AttentionUNet"),
        ("runs/load.py", "from attention_vision.cli.explain import main"),
    ],
)
def test_a_wrong_arrow_is_seen(path, line):
    path = Path(PACKAGE, path)
    names = list(imports(ast.parse(line), path.parent.parts))
    assert names
    assert not any(permitted(path, name) for name in names)


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
