"""Every file in experiments/ parses and builds its model and data; every profile merges.

Cells of studies are parsed alone: they differ from their base, which is built, in few nodes, and
`study run` builds all of them before it runs any.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml

from attention_vision.runs.command import build, parse
from attention_vision.study.definition import read_definition

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PROFILES = sorted((EXPERIMENTS / "profiles").glob("*.yaml"))
FILES = [
    path
    for path in sorted(EXPERIMENTS.rglob("*.yaml"))
    if path.relative_to(EXPERIMENTS).parts[0] not in ("profiles", "results", "claims")
    and "study" not in yaml.safe_load(path.read_text())
]
STUDIES = [
    path
    for path in sorted((EXPERIMENTS / "ablations").rglob("*.yaml"))
    if "study" in yaml.safe_load(path.read_text())
]


def name(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


def with_root(path: Path, root: Path) -> list[str]:
    """Arguments for an experiment; data that lies on disk is stood in for by two classes."""
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (root / part).mkdir(parents=True)
        (root / part / "0.png").touch()
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    instances = {"images": [], "annotations": [], "categories": categories}
    (root / "instances.json").write_text(json.dumps(instances))

    arguments = ["-c", str(path)]
    for key in yaml.safe_load(path.read_text()).get("data", {})["init_args"]:
        if key == "root" or key.endswith("_images"):
            arguments += [f"--data.{key}", str(root)]
        elif key.endswith("_annotations"):
            arguments += [f"--data.{key}", str(root / "instances.json")]
    return arguments


@pytest.fixture
def undrawn(monkeypatch):
    """Networks keep the weights that their memory held: drawing them is most of the time."""
    for draw in ("trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, draw, lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize("path", FILES, ids=name)
@pytest.mark.usefixtures("undrawn")
def test_experiment_builds(path, tmp_path):
    task = yaml.safe_load(path.read_text()).get("task")
    assert task, f"{name(path)} does not say its task"
    built = build(parse(task, "fit", with_root(path, tmp_path)))
    assert built.data.num_classes > 0 or task == "generation"  # restoration has none
    assert sum(parameter.numel() for parameter in built.module.parameters()) > 0
    if task == "classification":
        assert built.module.network.num_classes == built.data.num_classes


@pytest.mark.parametrize(
    ("path", "cell"),
    [(path, cell) for path in STUDIES for cell in read_definition(path).cells],
    ids=lambda part: name(part) if isinstance(part, Path) else part,
)
def test_cell_of_a_study_parses(path, cell, tmp_path):
    study = read_definition(path)
    file = tmp_path / "cell.yaml"
    file.write_text(yaml.safe_dump(study.cells[cell].config))
    assert parse(study.task, "fit", with_root(file, tmp_path)).config.model


@pytest.mark.parametrize("profile", PROFILES, ids=name)
def test_profile_merges_with_an_experiment(profile, tmp_path):
    given = yaml.safe_load(profile.read_text())
    assert set(given) <= {"trainer", "threads"}, "a profile is about hardware and loggers alone"
    arguments = with_root(EXPERIMENTS / "classification" / "vit_cifar10.yaml", tmp_path)
    plain = parse("classification", "fit", arguments).config
    merged = parse("classification", "fit", [*arguments, "-c", str(profile)]).config
    for key, value in given["trainer"].items():
        if not isinstance(value, dict | list):
            assert merged.trainer[key] == value
    assert (merged.model, merged.data) == (plain.model, plain.data)


def test_there_are_files_to_test():
    assert FILES
    assert STUDIES
    assert {path.stem for path in PROFILES} >= {"laptop", "gpu", "ddp", "slurm", "wandb"}
