"""Study files: expansion to cells, and one-line errors."""

from pathlib import Path

import pytest
import yaml

from attention_vision.errors import InputError
from attention_vision.study.definition import (
    BUDGETS,
    Cell,
    flops_to_steps,
    full_path,
    merge,
    read_definition,
    replace,
)
from attention_vision.study.folder import (
    Run,
    check_same_study,
    read_progress,
    read_result,
    runs_of,
    write_study,
)
from attention_vision.yaml_json import write_atomically

BASE = """
task: classification
seed_everything: 7
trainer: {max_epochs: 3}
data: {class_path: Digits, init_args: {image_size: 16}}
model:
  network:
    class_path: ResNet
    init_args: {depth: 8, attention: {class_path: CBAM, init_args: {reduction: 4, kernel_size: 3}}}
"""
STUDY = """
study:
  question: Does it matter?
  metric: val/top1
  baseline: none-deep
  expect: [se-deep > none-deep]
  seeds: [0, 1]
base: base.yaml
axes:
  attention:
    none: {model.network.init_args.attention: torch.nn.Identity}
    se: {model.network.init_args.attention: {class_path: SqueezeExcite}}
  depth:
    deep: {model.network.init_args.depth: 20, trainer.max_epochs: 5}
    flat: {model.network.init_args.depth: 8}
"""
ATTENTION = "model.network.init_args.attention"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("study.yaml").write_text(STUDY)


def cells(**changes) -> dict[str, Cell]:
    """Expand the study with some top-level keys replaced."""
    content = yaml.safe_load(STUDY)
    content |= {key: value for key, value in changes.items() if key != "study"}
    content["study"] |= changes.get("study", {})
    Path("study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_definition("study.yaml").cells


def test_product_of_the_axes():
    study = read_definition("study.yaml")
    assert list(study.cells) == ["none-deep", "none-flat", "se-deep", "se-flat"]
    assert study.axes == {"attention": ("none", "se"), "depth": ("deep", "flat")}
    assert study.cells["se-flat"].values == {"attention": "se", "depth": "flat"}
    assert (study.name, study.task, study.seeds) == ("study", "classification", (0, 1))
    depths = [
        cell.config["model"]["network"]["init_args"]["depth"] for cell in study.cells.values()
    ]
    assert depths == [20, 8, 20, 8]
    epochs = [cell.config["trainer"]["max_epochs"] for cell in study.cells.values()]
    assert epochs == [5, 3, 5, 3]


def test_a_node_replaces_what_stood_there():
    """A merge would silently pass CBAM's reduction to SqueezeExcite."""
    attention = cells()["se-deep"].config["model"]["network"]["init_args"]["attention"]
    assert attention == {"class_path": "SqueezeExcite"}
    base = yaml.safe_load(BASE)["model"]["network"]["init_args"]["attention"]
    config = {"a": {"b": base}}
    replace(config, "a.c.d", 1)
    assert config == {"a": {"b": base, "c": {"d": 1}}}


@pytest.mark.parametrize(
    ("short", "path"),
    [
        ("model.network.attention", ATTENTION),
        ("model.network.attention.reduction", f"{ATTENTION}.init_args.reduction"),
        (ATTENTION, ATTENTION),
        ("model.network.class_path", "model.network.class_path"),
        ("data.image_size", "data.init_args.image_size"),
        ("data.dict_kwargs.a", "data.dict_kwargs.a"),
        ("trainer.max_epochs", "trainer.max_epochs"),
        ("model.new.key", "model.new.key"),  # nothing there yet
        ("task.key", "task.key"),  # for `replace` to refuse
    ],
)
def test_short_paths_are_those_of_flags(short, path):
    assert full_path(yaml.safe_load(BASE), short) == path


def test_a_short_path_gives_the_same_cells():
    full = cells()
    Path("study.yaml").write_text(STUDY.replace(".init_args", ""))
    short = read_definition("study.yaml").cells
    assert short == full
    assert {name: cell.sha256 for name, cell in short.items()} == {
        name: cell.sha256 for name, cell in full.items()
    }


def test_a_short_path_reaches_what_another_axis_set():
    axes = yaml.safe_load(STUDY)["axes"]
    axes["attention"]["none"] = {}
    axes["depth"] = {"deep": {"model.network.attention.reduction": 2}, "flat": {}}
    attention = cells(axes=axes)["se-deep"].config["model"]["network"]["init_args"]["attention"]
    assert attention == {"class_path": "SqueezeExcite", "init_args": {"reduction": 2}}
    axes["depth"]["deep"] = {"model.network.attention": "CBAM"}
    with pytest.raises(InputError, match=f"{ATTENTION} replaces the value that was set at"):
        cells(axes=axes)


def test_cells_share_nothing():
    """A change in one cell does not affect another."""
    two = cells()
    two["se-deep"].config["model"]["network"]["init_args"]["attention"]["class_path"] = "changed"
    assert two["se-flat"].config["model"]["network"]["init_args"]["attention"] == {
        "class_path": "SqueezeExcite"
    }


def test_the_seed_is_the_studys():
    assert all("seed_everything" not in cell.config for cell in cells().values())


def test_several_bases_are_the_first_axis():
    Path("other.yaml").write_text(BASE.replace("depth: 8", "depth: 56"))
    bases = {"small": "base.yaml", "large": "other.yaml"}
    axes = {"attention": yaml.safe_load(STUDY)["axes"]["attention"]}
    both = cells(base=bases, axes=axes, study={"baseline": "small-none", "expect": []})
    assert list(both) == ["small-none", "small-se", "large-none", "large-se"]
    assert both["large-se"].values == {"base": "large", "attention": "se"}
    alone = cells(base=bases, axes=None, study={"baseline": "small", "expect": ["large > small"]})
    assert list(alone) == ["small", "large"]
    assert alone["large"].config["model"]["network"]["init_args"]["depth"] == 56


@pytest.mark.parametrize(
    ("budget", "trainer"),
    [
        ({"epochs": 4}, {"max_epochs": 4, "max_steps": -1}),
        ({"steps": 9}, {"max_epochs": -1, "max_steps": 9}),
        ({"seconds": 90061}, {"max_epochs": 3, "max_time": "01:01:01:01"}),
        ({"flops": 1e12}, {"max_epochs": 3}),
    ],
)
def test_budget(budget, trainer):
    assert set(budget) <= set(BUDGETS)
    assert cells(study={"budget": budget})["se-flat"].config["trainer"] == trainer


def test_steps_of_flops():
    # 3 passes of 2 operations for each of 1,000 multiply-adds, 10 images a step: 60,000 a step
    assert flops_to_steps(600_000, macs=1000, images=10) == 10
    assert flops_to_steps(1, macs=1000, images=10) == 1


def test_hash_is_of_config_and_budget():
    first, again = cells(), cells()
    assert {name: cell.sha256 for name, cell in first.items()} == {
        name: cell.sha256 for name, cell in again.items()
    }
    assert len({cell.sha256 for cell in first.values()}) == len(first)
    for change in ({"budget": {"flops": 1e9}}, {"budget": {"flops": 2e9}}):
        assert cells(study=change)["se-flat"].sha256 not in {first["se-flat"].sha256}
    asked = cells(study={"question": "Another one?", "seeds": [5], "expect": []})
    assert asked["se-flat"].sha256 == first["se-flat"].sha256


def test_profiles_merge_as_a_second_file():
    config = {"trainer": {"max_epochs": 3, "callbacks": [1]}, "threads": 1}
    merged = merge(config, {"trainer": {"devices": 2, "callbacks": [2]}, "threads": 4})
    assert merged == {"trainer": {"max_epochs": 3, "callbacks": [2], "devices": 2}, "threads": 4}
    assert config["threads"] == 1


def test_numbers_are_read_as_the_command_reads_them():
    Path("base.yaml").write_text(BASE + "  label_smoothing: 1e-1\n")
    assert cells()["se-flat"].config["model"]["label_smoothing"] == 0.1


# One-line errors: old -> new in the study file, and what the message says

WRONG = [
    ("axes:", "axis:", "unknown key axis; known: study, base, axes"),
    ("metric:", "metrics:", "unknown key study.metrics"),
    ("  baseline: none-deep\n", "", "missing: study.baseline"),
    ("base: base.yaml\n", "", "missing: base"),
    ("base.yaml", "nowhere.yaml", "no such file: nowhere.yaml"),
    ("val/top1", "top1", "study.metric 'top1' is not a logged key such as val/top1"),
    ("val/top1", "val/loss", "study.metric is val/loss: add higher_is_better: false to study"),
    ("baseline: none-deep", "baseline: none", "names 'none', which is not a cell: none-deep,"),
    ("[se-deep >", "[eca-deep >", "names 'eca-deep', which is not a cell"),
    ("se-deep > none-deep", "se-deep beats none-deep", "is not an ordering such as"),
    ("se-deep > none-deep", "se-deep > none-deep by 1x", "1x is not a number"),
    ("seeds: [0, 1]", "seeds: [0]\n  effect: -1", "study.effect is -1: it has to be above 0"),
    ("seeds: [0, 1]", "seeds: [0]\n  looks: [2, 1]", "study.looks: [2, 1] is not an increasing"),
    ("seeds: [0, 1]", "seeds: [0, 1, 2]\n  looks: [2]", "study.looks: the last one is at 2 of 3"),
    ("seeds: [0, 1]", "seeds: [0, 0]", "study.seeds: duplicate seed 0"),
    ("seeds: [0, 1]", "seeds: []", "study.seeds: expected a list of integers"),
    ("seeds: [0, 1]", "seeds: [0, one]", "study.seeds: 'one' is not an integer"),
    ("seeds: [0, 1]", "seeds: [0]\n  budget: {epochs: 1, steps: 2}", "give exactly one of epochs"),
    ("seeds: [0, 1]", "seeds: [0]\n  budget: {hours: 1}", "give exactly one of epochs"),
    ("seeds: [0, 1]", "seeds: [0]\n  budget: {epochs: 0}", "budget.epochs: 0 is not positive"),
    ("seeds: [0, 1]", "seeds: [0]\n  budget: {epochs: many}", "'many' is not a number"),
    ("    flat: ", "    deep: ", "duplicate key 'deep'"),  # two cells of one name
    ("    flat: ", "    flat/er: ", "axes.depth: 'flat/er' is not a valid folder name"),
    ("    flat: ", "    no: ", "quote words such as 'on' and 'no'"),
    (
        "{model.network.init_args.depth: 8}",
        "{seed_everything: 8}",
        "seeds belong in study.seeds",
    ),
    ("{model.network.init_args.depth: 8}", "8", "axes.depth.flat: expected keys and values"),
    (
        "{model.network.init_args.depth: 8}",
        "{model.network.init_args: {}}",
        "model.network.init_args replaces the value that was set at model.network.init_args.atten",
    ),
    (
        "{model.network.init_args.depth: 8}",
        "{model.network.class_path.depth: 8}",
        "axes.depth.flat: model.network.class_path.depth: model.network.class_path is 'ResNet'",
    ),
    ("study:", "study: [", "not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line"), WRONG)
def test_mistake_in_a_study_file(old, new, line):
    wrong = STUDY.replace(old, new, 1)
    assert wrong != STUDY
    Path("study.yaml").write_text(wrong)
    with pytest.raises(InputError) as error:
        read_definition("study.yaml")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("axis", [None, {}, []])
def test_axis_without_values(axis):
    with pytest.raises(InputError, match=r"study\.yaml: axes\.depth has no values"):
        cells(axes={"depth": axis})


def test_two_cells_of_one_name():
    depth, size = {"model.network.init_args.depth": 8}, {"data.init_args.image_size": 8}
    axes = {"one": {"a": depth, "a-b": depth}, "two": {"b-c": size, "c": size}}
    with pytest.raises(InputError, match="two cells are named a-b-c"):
        cells(axes=axes)


def test_bases_of_two_tasks():
    Path("other.yaml").write_text(BASE.replace("classification", "detection"))
    with pytest.raises(InputError, match="all of them must name one task"):
        cells(base={"one": "base.yaml", "two": "other.yaml"}, study={"baseline": "one"})


# The folder


def run_of(folder: str = "folder") -> Run:
    study = read_definition("study.yaml")
    return next(runs_of(study, Path(folder), study.seeds, study.cells))


def test_runs_go_seed_by_seed():
    study = read_definition("study.yaml")
    runs = [(run.seed, run.cell) for run in runs_of(study, Path("folder"), (0, 1), ["b", "a"][:0])]
    assert runs == []
    runs = list(runs_of(study, Path("folder"), (1, 0), list(study.cells)[:2]))
    assert [str(run) for run in runs] == [
        "none-deep seed 1", "none-flat seed 1", "none-deep seed 0", "none-flat seed 0",
    ]  # fmt: skip
    assert runs[0].folder == Path("folder/cells/none-deep/seed1")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"study": "study", "metr', "is truncated or damaged: delete it"),
        ("{}", "is truncated or damaged: delete it"),
        ('{"metrics": [], "config_sha256": "x"}', "is truncated or damaged: delete it"),
        ('{"metrics": {}, "config_sha256": "x", "seed": 7}', "its seed is 7, not "),
    ],
)
def test_damaged_result(text, line):
    run = run_of()
    assert read_result(run) is None
    write_atomically(run.result, text)
    with pytest.raises(InputError) as error:
        read_result(run)
    assert line in str(error.value)
    assert str(run.result) in str(error.value)
    assert run.result.read_text() == text


def test_progress_that_was_never_written():
    assert read_progress(run_of()) == {"seconds": 0.0, "share": 0.0}


def test_a_file_is_whole_or_not_there(monkeypatch):
    write_atomically(Path("deep/file"), "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(Path("deep/file"), "new")
    assert Path("deep/file").read_text() == "old"


def folder_of_the_study() -> Path:
    study, folder = read_definition("study.yaml"), Path("folder")
    write_study(study, folder, study.seeds, {"hardware": "a slide rule"})
    return folder


def same_study(**changes) -> None:
    cells(**changes)
    check_same_study(read_definition("study.yaml"), Path("folder"))


def test_a_study_may_grow():
    folder = folder_of_the_study()
    axes = yaml.safe_load(STUDY)["axes"]
    axes["attention"]["eca"] = {ATTENTION: {"class_path": "EfficientChannelAttention"}}
    same_study(axes=axes, study={"seeds": [2, 3], "question": "Still?", "metric": "val/top5"})
    study = read_definition("study.yaml")
    write_study(study, folder, [9], {"hardware": "an abacus"})
    again = yaml.safe_load((folder / "study.json").read_text())
    assert again["seeds"] == [0, 1, 2, 3, 9]
    assert again["hardware"] == "a slide rule"
    assert list(again["cells"]) == list(study.cells)


def test_folder_of_another_study():
    folder = folder_of_the_study()
    same_study(study={"budget": {"epochs": 2}})
    Path("study.yaml").rename("renamed.yaml")
    with pytest.raises(InputError, match="it belongs to study study, not renamed"):
        check_same_study(read_definition("renamed.yaml"), folder)


def test_runs_made_elsewhere_are_copied_into_a_new_folder():
    write_atomically(Path("folder/cells/se-flat/seed0/result.json"), "{}")
    same_study()


def test_folder_of_something_else():
    write_atomically(Path("folder/thesis.tex"), "years of work")
    with pytest.raises(InputError, match="is not a study folder"):
        check_same_study(read_definition("study.yaml"), Path("folder"))
