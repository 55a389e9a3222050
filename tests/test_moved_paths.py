"""Configs of older versions name classes that have moved or been renamed."""

from importlib import import_module

import pytest

from attention_vision import classification, detection
from attention_vision.config.build import Node, build_nodes
from attention_vision.config.moved_paths import (
    MOVED_PATHS,
    RENAMED_CLASSES,
    current_path,
    with_current_paths,
)

MODULES = ("classification", "classification.progressive", "detection")


@pytest.mark.parametrize("old", [old for old in MOVED_PATHS if old[old.rfind(".") + 1].isupper()])
def test_each_row_of_a_class_leads_to_one_that_exists(old):
    module, _, name = current_path(f"attention_vision.{old}").rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)


@pytest.mark.parametrize(("old", "new"), RENAMED_CLASSES.items())
def test_a_renamed_class_is_found_by_either_name(old, new):
    homes = [import_module(f"attention_vision.{module}") for module in MODULES]
    assert any(hasattr(home, new) for home in homes)
    assert not any(old in vars(home) for home in homes)
    moved = {path.rpartition(".")[2] for path in MOVED_PATHS}
    assert old in moved  # by its full path, too


def test_bare_names_are_renamed_as_class_paths_alone():
    config = {
        "maps": {"class_path": "RowTransfer", "init_args": {"weight": 2.0}},
        "list": [{"class_path": "SmallImages"}, "SmallImages"],
        "folder": "RowTransfer",
        "theirs": {"class_path": "other.RowTransfer"},
        "class_path": None,
    }
    assert with_current_paths(config) == config | {
        "maps": {"class_path": "AttentionMapDistillation", "init_args": {"weight": 2.0}},
        "list": [{"class_path": "CIFARAugmentation"}, "SmallImages"],
    }


@pytest.mark.parametrize(
    "name",
    [
        "RowTransfer",
        "attention_vision.classification.RowTransfer",
        "attention_vision.classification.map_transfer.RowTransfer",
    ],
)
def test_a_config_with_an_old_name_builds(name):
    maps = {"class_path": name, "init_args": {"weight": 3.0}}
    config = {"distillation": {"teacher": "run", "maps": maps}}
    nodes = {"distillation": Node(classification.Distillation, chosen=False)}
    built = build_nodes(config, nodes)["distillation"]
    assert type(built.maps) is classification.AttentionMapDistillation
    assert built.maps.weight == 3.0


@pytest.mark.parametrize("room", [classification, detection], ids=lambda room: room.__name__)
def test_imports_by_old_names_still_work(room):
    for old, new in room.RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is {new} since 0.2"):
            assert getattr(room, old) is getattr(room, new)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = room.Nothing
