"""The floors of the house, read from every import: attention <- backbones <- tasks <- command."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path.relative_to(ROOT): path for path in sorted((ROOT / "attention_vision").rglob("*.py"))}
TASKS = {f"attention_vision.{task}" for task in ("classification", "detection", "generation")}
DOORS = {
    f"attention_vision.{door}"
    for door in (
        "__main__",
        "claims",
        "command",
        "explain",
        "profile",
        "runs",
        "study",
        "tasks",
        "workloads",
    )
}
ATTENTION = {*sys.stdlib_module_names, "torch", "attention_vision.attention"}
BACKBONES = {*ATTENTION, "torchvision", "attention_vision.backbones", "attention_vision.errors"}


def imports(tree: ast.AST, package: tuple[str, ...], functions: bool = True) -> Iterator[str]:
    """Absolute dotted names, of relative imports and (if `functions`) of those in functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{name.name}" for name in node.names)
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, package, functions)


def under(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def permitted(path: Path, name: str) -> bool:
    """Whether the file at `path`, from the root of the repository, may import `name`."""
    floor = ".".join(path.with_suffix("").parts[:2])
    if floor == "attention_vision.attention":
        return under(name, ATTENTION)
    if floor == "attention_vision.backbones":
        return under(name, BACKBONES)
    return floor in DOORS or not under(name, (TASKS | DOORS) - {floor})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_import_follows_the_arrows(path):
    tree = ast.parse(FILES[path].read_text())
    wrong = [name for name in imports(tree, path.parent.parts) if not permitted(path, name)]
    assert not wrong, f"{path} may not import {', '.join(wrong)}"
    assert path.name != "utils.py"


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py"])
def test_the_command_starts_without_heavy_imports(name):
    tree = ast.parse(FILES[Path("attention_vision", name)].read_text())
    light = {*sys.stdlib_module_names, "attention_vision.__version__"}
    assert all(under(module, light) for module in imports(tree, ("attention_vision",), False))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("attention/gate.py", "from ..backbones import ResNet"),
        ("attention/gate.py", "def f():\n  import torchvision.ops"),
        ("backbones/vit.py", "from attention_vision import optim"),
        ("backbones/vit.py", "try:\n  import timm\nexcept ImportError:\n  pass"),
        ("detection/detr.py", "from .. import classification"),
        ("detection/detr.py", "from attention_vision.generation.hinge import hinge"),
        ("optim.py", "if True:\n  from .classification import Classifier"),
        ("optim.py", "from attention_vision.command import run_task"),
    ],
)
def test_a_wrong_arrow_is_seen(path, line):
    path = Path("attention_vision", path)
    names = list(imports(ast.parse(line), path.parent.parts))
    assert names
    assert not any(permitted(path, name) for name in names)
