"""Private parts of libraries that the package uses, so that an upgrade gives one clear failure.

`USED` names each part with the files that use it; a scan of the package keeps the list complete.
The other tests check that a part exists with the meaning that the package relies on.
"""

import argparse
import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jsonargparse
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.profiler import ProfilerActivity, profile
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric, Metric
from torchvision.transforms import v2
from wandb.sdk.lib import wbauth

ROOT = Path(__file__).parents[1]
PACKAGE = "attention_vision"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

USED = {
    "lightning": {
        "_DataFetcher": ["training/last_validation.py"],
        "_Loop": ["training/steps.py"],
        "_TrainingEpochLoop": ["training/last_validation.py"],
        "_accelerator_connector": ["training/slurm.py"],
        "_average_model": ["training/finite.py"],
        "_batches_that_stepped": ["training/steps.py"],
        "_can_stop_early": ["training/last_validation.py", "training/steps.py"],
        "_data_fetcher": ["training/steps.py"],
        "_defer_save_until_validation": ["training/resume.py"],
        "_experiment": ["training/wandb_logger.py"],
        "_id": ["training/wandb_logger.py"],
        "_is_training_done": ["training/last_validation.py"],
        "_last_global_step_saved": ["training/resume.py"],
        "_monitor_candidates": ["training/resume.py"],
        "_num_ready_batches_reached": ["training/last_validation.py", "training/steps.py"],
        "_on_after_step": ["generation/gan/module.py"],
        "_on_before_step": ["generation/gan/module.py"],
        "_save_dir": ["training/wandb_logger.py"],
        "_save_topk_checkpoint": ["training/resume.py"],
        "_should_accumulate": [
            "training/finite.py",
            "training/last_validation.py",
            "training/logging.py",
            "training/resume.py",
            "training/signals.py",
        ],
        "_should_check_val_fx": ["training/last_validation.py"],
        "_wandb_init": ["training/wandb_logger.py"],
    },
    "torch": {
        "_ConvNd": ["generation/gan/sagan.py", "generation/gan/spectral_norm.py"],
        "_ConvTransposeNd": ["generation/gan/spectral_norm.py"],
        "_modules": ["backbones/layer_groups.py"],
        "_orig_mod": ["attention/recording.py"],
        "kineto_results": ["profiling/cost.py"],
    },
    "torchmetrics": {
        "_apply": ["detection/average_precision.py"],
        "_is_synced": ["training/logging.py"],
        "_load_from_state_dict": ["training/logging.py"],
        "_sync_dist": ["detection/average_precision.py"],
        "_update_count": ["training/logging.py"],
    },
    "torchvision": {"_call_kernel": ["detection/transforms.py"]},
    "torchdata": {
        "_main_snapshot": ["data/loading.py"],
        "_num_workers": ["data/loading.py"],
        "_snapshot": ["data/loading.py"],
    },
    "jsonargparse": {
        "_actions": ["config/messages.py", "config/parser.py", "config/ranges.py"],
        "_common": ["config/trust.py"],
        "_typehint": ["config/ranges.py"],
        "_typehints": ["config/parser.py"],
    },
    "argparse": {"_SubParsersAction": ["cli/study.py"]},
    "python": {"_exit": ["training/heartbeat.py"]},  # public, but for the underscore
    "wandb": {"wbauth": ["training/wandb_mode.py"]},
}
UNMARKED = ("kineto_results", "wbauth")  # private, but for the underscore
PRIVATE = re.compile(r"_[A-Za-z]\w*")


def is_private(name: str) -> bool:
    return bool(PRIVATE.fullmatch(name)) or name in UNMARKED


def own_names(tree: ast.AST) -> set[str]:
    """Names that a file or class defines: functions, classes, attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            names.add(node.attr)
    return names


def of_self(node: ast.Attribute) -> bool:
    return ast.unparse(node.value) in ("self", "cls", "super()")


def private_names(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private names of other objects than `self`, and those that are imported or quoted as keys."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not of_self(node) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(PACKAGE):
            yield from (name.name for name in node.names)
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield str(node.slice.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            yield from (arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant))


def inherited_names(module: str, tree: ast.AST) -> Iterator[str]:
    """Private names of `self` that a base class of a library defines: used, set or overridden."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        kind = getattr(importlib.import_module(module), node.name, None)  # None inside functions
        bases = [base for base in getattr(kind, "__mro__", ()) if PACKAGE not in base.__module__]
        defined = set().union(*map(names_of_class, bases))
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and of_self(part):
                name = part.attr
            elif isinstance(part, ast.FunctionDef):
                name = part.name
            else:
                continue
            if name in defined:
                yield name


@cache
def names_of_class(kind: type) -> set[str]:
    try:
        return own_names(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError):  # of C
        return set()


def test_every_private_part_is_listed():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    own = set().union(*map(own_names, trees.values()))
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        file = path.relative_to(ROOT / PACKAGE)
        module = ".".join((PACKAGE, *file.with_suffix("").parts)).removesuffix(".__init__")
        names = {*private_names(tree, own), *inherited_names(module, tree)}
        for name in filter(is_private, names):
            found.setdefault(name, set()).add(str(file))
    listed = {name: set(files) for parts in USED.values() for name, files in parts.items()}
    assert found == listed, "list what is used in USED, with a test of its meaning"


def test_a_new_private_part_is_seen():
    line = "from torch._C import x\ntrainer._results.clear()\nstate['_steps']\nhasattr(x, '_y')"
    names = set(filter(is_private, private_names(ast.parse(line), own={"_ours"})))
    assert names == {"_C", "_results", "_steps", "_y"}


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_lightnings_loops():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert parameters(_FitLoop._should_accumulate) == ["self"]
    assert parameters(_TrainingEpochLoop._should_check_val_fx) == ["self", "data_fetcher"]
    assert parameters(_TrainingEpochLoop) == ["trainer", "min_steps", "max_steps"]
    assert trainer.fit_loop.epoch_loop.restarted_on_last is False
    assert trainer.fit_loop.epoch_loop._num_ready_batches_reached() is False
    assert trainer.fit_loop._can_stop_early is True
    assert trainer.fit_loop.epoch_loop._is_training_done is False
    assert trainer.fit_loop._data_fetcher is None
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 0
    assert trainer.fit_loop.restarted_on_epoch_end is False
    _Loop.restarting.fset(trainer.fit_loop, False)
    assert trainer.fit_loop.epoch_progress.current.processed == 0
    assert trainer.log_every_n_steps == 50
    assert hasattr(trainer._accelerator_connector, "cluster_environment")


def test_lightnings_checkpoints(tmp_path):
    assert ModelCheckpoint(tmp_path)._defer_save_until_validation is False
    assert ModelCheckpoint(tmp_path)._last_global_step_saved == 0
    assert parameters(ModelCheckpoint._monitor_candidates) == ["self", "trainer"]
    assert parameters(ModelCheckpoint._save_topk_checkpoint) == [
        *("self", "trainer", "monitor_candidates"),
    ]


def test_lightnings_average_of_weights():
    average = WeightAveraging()
    assert average._average_model is None
    average.setup(Trainer(accelerator="cpu", logger=False), LightningModule(), "fit")
    assert average._average_model.n_averaged == 0


def test_lightnings_optimizer():
    optimizer = LightningOptimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    assert optimizer._on_before_step() is optimizer._on_after_step() is None


def test_lightnings_wandb_logger(tmp_path):
    logger = WandbLogger(project="p", save_dir=tmp_path, version="v", offline=True)
    assert logger._wandb_init.keys() >= {"name", "dir", "id", "anonymous"}
    assert (logger.save_dir, logger.version) == (logger._save_dir, logger._id)
    assert (logger._save_dir, logger._id, logger._experiment) == (str(tmp_path), "v", None)


def test_wandbs_authentication():
    assert {"host", "source", "prompt"} <= set(parameters(wbauth.authenticate_session))


def test_torchs_modules():
    assert issubclass(nn.Conv2d, _ConvNd)
    assert issubclass(nn.ConvTranspose2d, _ConvTransposeNd)
    assert list(nn.Sequential(nn.ReLU())._modules) == ["0"]
    module = nn.Linear(1, 1)
    assert torch.compile(module)._orig_mod is module


def test_torchs_profiler():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        torch.ones(1000)
    events = record.profiler.kineto_results.events()
    assert sum(event.nbytes() for event in events if event.name() == "[memory]") == 0
    assert max(event.nbytes() for event in events if event.name() == "[memory]") >= 4000


def test_torchmetrics_state():
    mean = MeanMetric()
    assert (mean._is_synced, mean._update_count) == (False, 0)
    mean.update(1.0)
    assert mean._update_count == 1
    assert parameters(Metric._sync_dist) == ["self", "dist_sync_fn", "process_group"]
    assert parameters(Metric._apply) == ["self", "fn", "exclude_state"]
    assert parameters(Metric._load_from_state_dict)[:3] == ["self", "state_dict", "prefix"]


def test_torchvisions_transforms():
    assert parameters(v2.Transform._call_kernel)[:3] == ["self", "functional", "inpt"]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_state(workers):
    loader = StatefulDataLoader(range(4), num_workers=workers)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    saved = state["_snapshot"]["_main_snapshot"]["_num_workers"] if "_snapshot" in state else 0
    assert saved == workers


def test_names_are_looked_up_among_paths_of_subclasses(monkeypatch):
    monkeypatch.setattr(jsonargparse._typehints, "get_all_subclass_paths", lambda *_, **__: ["a.B"])
    assert jsonargparse._typehints.resolve_class_path_by_name(nn.Module, "B") == "a.B"


def test_parsers_list_their_actions():
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.1)
    assert ("rate", 0.1) in [(action.dest, action.default) for action in parser._actions]
    assert isinstance(argparse.ArgumentParser().add_subparsers(), argparse._SubParsersAction)
