"""Claims: strict parsing, comparison of runs with their claims, a current and correct ledger."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image

from attention_vision.__main__ import main
from attention_vision.claims import forest
from attention_vision.claims.claim import Claim
from attention_vision.claims.committed import unlike_the_experiment
from attention_vision.claims.forest import COLORS
from attention_vision.claims.ledger import Ledger, ResultsFiles, read_ledger
from attention_vision.claims.outcome import combined, verdict_of
from attention_vision.claims.page import measured, reported
from attention_vision.claims.record import differences, record_results
from attention_vision.claims.statement import Statement, Trial
from attention_vision.cli.claims import files_of
from attention_vision.errors import InputError
from attention_vision.identity import checkpoint_id
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report
from attention_vision.study.definition import read_definition
from attention_vision.yaml_json import read_dataclass

ROOT = Path(__file__).parents[1]
CLAIM = {"source": "A paper, Table 1", "metric": "val/top1", "reported": 0.93, "tolerance": 0.01}
STATEMENT = {
    "statement": "It helps.",
    "kind": "qualitative",
    "source": "A paper, Table 1",
    "says": "that it helps",
    "literature": "confirmed",
    "reason": "It does.",
}
STUDY = {
    "question": "Does it help?",
    "task": "classification",
    "metric": "val/top1",
    "baseline": "none",
    "expect": ["se > none", "none > se"],
}


# Cards


@dataclass
class Inner:
    name: str


@dataclass
class Card:
    number: float
    kind: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    inner: Inner | None = None
    switch: bool = False


def test_a_card_is_read():
    given = {"number": 1, "kind": "b", "names": ["x"], "inner": {"name": "y"}, "switch": True}
    card = read_dataclass(Card, given, "here")
    assert card == Card(1.0, "b", ["x"], Inner("y"), True)
    assert isinstance(card.number, float)
    assert read_dataclass(Card, {"number": 0.5, "inner": None}, "here").inner is None


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (None, "here: expected keys and values, found NoneType"),
        ({}, "here: 'number' is missing"),
        ({"number": 1, "nmae": 2}, "here: unknown key 'nmae'; known: number, kind, names"),
        ({"number": "1"}, "here: number is '1', not of type float"),
        ({"number": True}, "here: number is True, not of type float"),
        ({"number": None}, "here: number is None, not of type float"),
        ({"number": 1, "switch": 1}, "here: switch is 1, not of type bool"),
        ({"number": 1, "kind": "c"}, "here: kind is 'c', none of a, b"),
        ({"number": 1, "names": "x"}, "here: names is 'x', not a list"),
        ({"number": 1, "names": ["x", 2]}, "here: names, item 2 is 2, not of type str"),
        ({"number": 1, "inner": {}}, "here: inner: 'name' is missing"),
    ],
)
def test_what_is_no_card(given, line):
    with pytest.raises(InputError) as error:
        read_dataclass(Card, given, "here")
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("kind", "change", "line"),
    [
        (Claim, {"source": " "}, "claim.source is empty"),
        (Claim, {"metric": "top1"}, "is not a logged key"),
        (Claim, {"tolerance": -1}, "must not be negative"),
        (Claim, {"reported": float("nan")}, "must be a finite number"),
        (Claim, {"conditions": "224 pixels"}, "conditions is '224 pixels', not a list"),
        (Statement, {"says": ""}, "says is empty"),
        (Statement, {"kind": "numeric"}, "a numeric statement gives its number"),
        (Statement, {"stated": "2 %"}, "a numeric statement gives its number"),
        (Statement, {"literature": "true"}, "none of confirmed, partly, contradicted"),
        (Statement, {"trials": [{"expect": ["a > b"]}]}, "names neither a study nor results"),
        (Statement, {"trials": [{"study": "a.yaml"}]}, "needs either expect, or cell and stated"),
        (Statement, {"trials": [{"study": "a", "cell": "b"}]}, "cell and stated belong together"),
    ],
)
def test_bad_claims_and_statements(kind, change, line):
    given = (CLAIM if kind is Claim else STATEMENT) | change
    with pytest.raises(InputError, match="here: ") as error:
        read_dataclass(kind, given, "here")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


# A run and its claim


@pytest.mark.parametrize(
    ("reported", "tolerance", "measured", "reproduced"),
    [
        (0.77, 0.004, 0.766, True),
        (0.77, 0.004, 0.774, True),
        (0.77, 0.004, 0.7659, False),
        (52.52, 2.0, 50.52, True),
        (0.93, 0.0, 0.93, True),
        (0.93, 0.01, float("nan"), False),
    ],
)
def test_reproduced_is_within_the_tolerance(reported, tolerance, measured, reproduced):
    assert Claim("a", "val/top1", reported, tolerance).reproduced(measured) is reproduced


EXPERIMENT = """
task: classification
claim: {source: nobody, metric: val/top1, reported: 0.5, tolerance: 0.5, conditions: [digits]}
trainer:
  max_epochs: 1
  num_sanity_val_steps: 0
  limit_train_batches: 2
  log_every_n_steps: 1
  accelerator: cpu
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 32}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 8, width: 8, depth: 1, heads: 2}
"""


def test_a_run_is_compared_with_its_claim_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = Path("experiments/classification/tiny.yaml")
    for folder in (experiment.parent, Path("experiments/results")):
        folder.mkdir(parents=True)
    experiment.write_text(EXPERIMENT)
    assert main(["classification", "fit", "-c", str(experiment), "--run", "run"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("claim: "))
    outcome = json.loads(Path("run/claim.json").read_text())
    assert outcome.items() >= {"reported": 0.5, "conditions": ["digits"], "by": "fit"}.items()
    assert outcome["verdict"] == "reproduced"
    assert outcome["difference"] == outcome["measured"] - 0.5
    assert line.startswith("claim: val/top1 reported 0.5 ± 0.5, measured 0.")
    assert line.endswith(": reproduced")

    assert main(["claims", "--record", "run"]) == 0
    (row,) = read_ledger(Path()).papers
    assert row.verdict == "reproduced"
    assert measured(row).endswith(", 1 seed")
    recorded = json.loads(Path("experiments/results/tiny.json").read_text())
    assert recorded["runs"][0]["metrics"] == {"val/top1": outcome["measured"]}
    assert recorded["versions"].keys() >= {"torch", "lightning"}

    flags = ["--claim.reported", "2", "--trainer.limit_val_batches", "1"]
    assert main(["classification", "validate", "-c", "run/config.yaml", *flags]) == 0
    assert "measured" in capsys.readouterr().out
    outcome = json.loads(Path("run/claim.json").read_text())
    assert (outcome["by"], outcome["reported"]) == ("validate", 2.0)
    assert outcome["verdict"] == "not comparable (a part of the images)"

    Path("scans/test/7").mkdir(parents=True)
    Image.new("L", (8, 8)).save("scans/test/7/0.png")
    other = ["--data.class_path", "ImageFolder", "--data.root", "scans"]
    assert main(["classification", "test", "-c", "run/config.yaml", *other]) == 0
    said = "claim: left out, it was measured on Digits and the data is ImageFolder\n"
    assert said in capsys.readouterr().out
    assert json.loads(Path("run/claim.json").read_text())["by"] == "validate"


@pytest.fixture
def run(repository) -> Path:
    """A run of the repository's experiment, seed 1."""
    folder = repository / "run"
    folder.mkdir()
    config = {"task": "classification", "seed_everything": 1, "trainer": {"max_epochs": 2}}
    (folder / "config.yaml").write_text(f"# attention-vision 0.1.0\n{yaml.safe_dump(config)}")
    change(repository, "classification/se.yaml", trainer={"max_epochs": 2, "devices": 8})
    outcome = CLAIM | {"measured": 0.93, "verdict": "reproduced", "by": "validate"}
    (folder / "claim.json").write_text(json.dumps(outcome))
    (folder / "validate.json").write_text(json.dumps({"metrics": {"val/top1": 0.93, "x": 1}}))
    return folder


def test_recorded_runs_hold_all_that_was_measured(repository, run):
    file = record_results([run], repository)
    recorded = json.loads(file.read_text())
    assert file.name == "se.json"
    assert recorded["what"]["experiment"] == "experiments/classification/se.yaml"
    (found,) = recorded["runs"]
    assert len(found.pop("config_sha256")) == 64
    assert found == {"cell": "se", "seed": 1, "metrics": {"val/top1": 0.93, "x": 1}}
    with pytest.raises(InputError, match=r"se\.json exists: results are not overwritten"):
        record_results([run], repository)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("claim.json", {"verdict": "not comparable (a part)"}, "was evaluated on a part of the im"),
        ("claim.json", {"reported": 0.5}, "no experiment here has its claim: A paper"),
        ("config.yaml", {"trainer": {"max_epochs": 1}}, "trainer.max_epochs is 1 instead of 2"),
        ("config.yaml", {"seed_everything": None}, "'seed_everything' is None, not of type int"),
        (
            "config.yaml",
            {"trainer": {"max_epochs": 2, "limit_train_batches": 1}},
            "trainer.limit_train_batches is 1, which the experiment does not set",
        ),
        ("claim.json", {"measured": None}, "val/top1 is not finite: the run has diverged"),
        ("claim.json", {"checkpoint_id": "0" * 16}, "was trained on after validate measured it"),
        ("claim.json", {"by": "fit", "step": 4}, "was trained on after fit measured it"),
    ],
)
def test_what_is_not_recorded(name, changes, line, repository, run):
    (run / "metrics.csv").write_text("step,val/top1\n4,0.5\n9,0.93\n10,\n")
    file = run / name
    file.write_text(json.dumps(yaml.safe_load(file.read_text()) | changes))
    with pytest.raises(InputError) as error:
        record_results([run], repository)
    assert line in str(error.value)


def test_files_of_two_checkpoints_are_not_recorded(repository, run):
    """A validate.json of an older checkpoint does not pass as that of the newer."""
    (run / "checkpoints").mkdir()
    torch.save({"step": 1}, run / "checkpoints/best.ckpt")
    known = checkpoint_id(run / "checkpoints/best.ckpt")

    def write(name: str, identity: str) -> None:
        content = json.loads((run / name).read_text()) | {"checkpoint_id": identity}
        (run / name).write_text(json.dumps(content))

    write("claim.json", known)
    write("validate.json", "0" * 16)
    with pytest.raises(InputError, match=r"claim\.json and validate\.json are of different check"):
        record_results([run], repository)
    write("validate.json", known)
    assert record_results([run], repository).is_file()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"checkpoint_id": "0" * 16}, "was trained on after validate measured it"),
        ({"data": {"val": {"samples": 8}}}, "measured otherwise: val has 8 samples, not 9; val"),
        ({"changed": {"model.network.heads": "2 -> 4"}}, "otherwise: model.network.heads 2 -> 4;"),
    ],
)
def test_a_validation_of_something_else_is_not_recorded(changes, line, repository, run):
    """Of weights that a flag named, which claim.json does not name; of other data or arguments."""
    (run / "data.json").write_text(json.dumps({"fingerprint": {"val": {"samples": 9}}}))
    file = run / "validate.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=line):
        record_results([run], repository)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("data.json", {"fingerprint": {"train": {"samples": 8}}}, "has other data than .*: train"),
        ("config.yaml", {"model": {"mixup": 0.5}}, "not runs of one experiment: model is .*mixup"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed(name, changes, line, repository, run):
    (run / "data.json").write_text(json.dumps({"fingerprint": {"train": {"samples": 9}}}))
    other = run.with_name("other")
    shutil.copytree(run, other)
    config = yaml.safe_load((other / "config.yaml").read_text()) | {"seed_everything": 2}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / name).write_text(json.dumps(yaml.safe_load((other / name).read_text()) | changes))
    with pytest.raises(InputError, match=line):
        record_results([run, other], repository)


def test_runs_are_recorded_once_and_whole(repository, run):
    with pytest.raises(InputError, match="two runs have seed 1"):
        record_results([run, run], repository)
    with pytest.raises(InputError, match="is not a run that was compared with a claim"):
        record_results([repository], repository)


@pytest.mark.parametrize(
    ("experiment", "config", "words"),
    [
        ({"a": 1}, {"a": 1.0, "b": 2}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b is 2 instead of 1"]),
        ({"a": {"b": 1}}, {"a": None}, ["a is None instead of {'b': 1}"]),
        ({"a": "SqueezeExcite"}, {"a": {"class_path": "attention_vision.SqueezeExcite"}}, []),
        ({"a": "CBAM"}, {"a": {"class_path": "x.ECA"}}, ["a is x.ECA instead of CBAM"]),
        ({"a": {"b": 1}}, {"a": {"class_path": "A", "init_args": {"b": 1, "c": 2}}}, []),
        (
            {"a": {"b": 1}},
            {"a": {"class_path": "A", "init_args": {"b": 2}}},
            ["a.b is 2 instead of 1"],
        ),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ["a.1.b is 3 instead of 2"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a has 2 items instead of 1"]),
        ({"trainer": {"devices": 8}, "threads": 1}, {"trainer": {"devices": "auto"}}, []),
        ({"data": {"init_args": {"root": "data"}}}, {"data": {"init_args": {"root": "/d"}}}, []),
    ],
)
def test_what_makes_another_experiment(experiment, config, words):
    assert list(differences(experiment, config)) == words


# The ledger


def test_the_ledger_is_current():
    """If this fails, run `attention-vision claims`."""
    assert main(["claims", str(ROOT), "--check"]) == 0


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return read_ledger(ROOT)


def test_all_nine_numbers_of_the_articles_are_in_it(ledger):
    letters = sorted(entry.letter for entry in ledger.statements)
    assert "".join(letters) == "abcdefghi"
    assert letters.count("") >= 5


def test_exact_numbers_are_still_those_of_the_package():
    path = ROOT / "experiments/benchmarks/claims.py"
    spec = importlib.util.spec_from_file_location("claims_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for name in benchmark.STUDIES:
        committed = json.loads((ROOT / f"experiments/results/{name}.json").read_text())
        measured = benchmark.results(name, commit="")
        assert measured["study"] == committed["study"]
        for here, there in zip(measured["runs"], committed["runs"], strict=True):
            assert here["cell"] == there["cell"]
            assert here["metrics"] == pytest.approx(there["metrics"])


def runs(**cells: list[float]) -> list[dict]:
    return [
        {"cell": cell, "seed": seed, "metrics": {"val/top1": value}}
        for cell, values in cells.items()
        for seed, value in enumerate(values)
    ]


@pytest.fixture
def repository(tmp_path) -> Path:
    """One statement, one paper and one study, none of them measured."""
    experiments = tmp_path / "experiments"
    for folder in ("claims", "results", "classification", "ablations", "profiles"):
        (experiments / folder).mkdir(parents=True)
    trial = {"study": "experiments/ablations/se.yaml", "expect": ["se > none"]}
    files = {
        "claims/a_se.yaml": {
            **STATEMENT,
            "kind": "numeric",
            "stated": "2 %",
            "experiment": "experiments/classification/se.yaml",
            "trials": [trial],
        },
        "classification/se.yaml": {"task": "classification", "claim": CLAIM},
        "ablations/se.yaml": {"study": STUDY, "base": "../classification/se.yaml"},
        "profiles/gpu.yaml": {"trainer": {}},
    }
    for name, content in files.items():
        (experiments / name).write_text(yaml.safe_dump(content))
    return tmp_path


def measure(repository: Path, experiment: str, measured: list[dict], **more) -> None:
    content = {"what": {"experiment": experiment}, "runs": measured, **more}
    file = repository / "experiments/results" / f"{Path(experiment).stem}_{len(more)}.json"
    file.write_text(json.dumps(content))


def test_what_is_not_measured_is_said(repository):
    ledger = read_ledger(repository)
    ((statement,), (paper,), (study,)) = ledger.statements, ledger.papers, ledger.studies
    assert (statement.letter, statement.statement.stated) == ("a", "2 %")
    assert statement.commands == [
        "attention-vision classification fit -c experiments/classification/se.yaml",
        "attention-vision study run experiments/ablations/se.yaml",
    ]
    assert {row.verdict for row in (statement, study)} == {"not yet run"}
    assert paper.verdict == "not run: needs a run"
    assert reported(paper) == "`val/top1` 0.93 ± 0.01"


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ("ImageNet", {"hours": 14, "hardware": "8 x A100"}, "ImageNet; 14 h of 8 x A100"),
        ({"class_path": "a.b.COCO"}, {"hardware": "8 GPUs"}, "COCO; 8 GPUs"),
        ({"class_path": "CIFAR10", "init_args": {"root": "d"}}, {"hours": 0.5}, "CIFAR10; 0.5 h"),
        ({"class_path": "FolderImages", "init_args": {"root": "i/train"}}, {},
         "FolderImages (i/train)"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_measured_has_its_price(data, more, words, repository):
    change(repository, "classification/se.yaml", data=data, claim=CLAIM | more)
    (paper,) = read_ledger(repository).papers
    assert paper.verdict == f"not run: needs {words}"
    assert words in files_of(read_ledger(repository))["docs/ledger/papers.md"]


def test_results_are_joined_by_what_they_are_of(repository):
    path = "experiments/ablations/se.yaml"
    values = runs(none=[0.90, 0.92, 0.91], se=[0.95, 0.971, 0.96])
    measure(repository, path, values, study=STUDY)
    measure(repository, "experiments/classification/se.yaml", runs(se=[0.931, 0.928]))
    ledger = read_ledger(repository)
    ((statement,), (paper,), (study,)) = ledger.statements, ledger.papers, ledger.studies
    assert statement.verdict == "supported"
    (outcome,) = statement.outcomes
    assert outcome.id == "se_1: se > none"
    assert outcome.numbers.startswith("+0.050 [+0.0")
    assert outcome.words.startswith("se is 0.050 above none in `val/top1` (interval [+0.0")
    assert outcome.words.endswith(", 3 seeds)")
    assert (paper.verdict, measured(paper)) == ("reproduced", "0.929 ± 0.002, 2 seeds")
    assert study.verdict == "1 supported, 1 contradicted"


def test_results_without_a_study_file_have_a_row(repository):
    measure(repository, "elsewhere", runs(none=[0.9], se=[0.91]), study=STUDY)
    assert read_ledger(repository).studies[0].verdict == "2 undecided"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({0: 0.925, 1: 0.938}, "reproduced"),
        ({0: 0.90}, "undecided"),
        ({0: 0.90, 1: 0.93}, "undecided"),
        ({0: 0.90, 1: 0.901, 2: 0.902}, "contradicted"),
        ({0: 0.96, 1: 0.961, 2: 0.962}, "contradicted"),
        ({None: 0.90}, "contradicted"),
        ({None: 0.94}, "reproduced"),
    ],
)
def test_verdict_on_a_number(values, verdict):
    assert verdict_of(Claim(**CLAIM), values) == verdict


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["contradicted", "undecided"], "contradicted"),
        (["contradicted", "supported"], "partly"),
        (["contradicted", "no difference"], "contradicted"),
        (["supported", "no difference"], "partly"),
        (["supported", "no difference", "undecided"], "undecided"),
        (["no difference", "no difference"], "no difference"),
        (["no difference", "undecided"], "undecided"),
    ],
)
def test_several_trials_in_one_word(verdicts, word):
    assert combined(verdicts) == word


def change(repository: Path, name: str, **changes) -> None:
    file = repository / "experiments" / name
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def trials(repository: Path, **given) -> None:
    change(repository, "claims/a_se.yaml", trials=[given])


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda r: shutil.rmtree(r / "experiments"), "there is no folder experiments;"),
        (lambda r: change(r, "claims/a_se.yaml", experiment="a.yaml"), "there is no file a.yaml"),
        (lambda r: trials(r, study="b.yaml", expect=["a > b"]), "there is no file b.yaml"),
        (lambda r: trials(r, results="c.json", expect=["a > b"]), "c.json is not a results file"),
        (lambda r: change(r, "claims/a_se.yaml", color="red"), "a_se.yaml: unknown key 'color'"),
        (lambda r: change(r, "classification/se.yaml", claim={}), "claim: 'source' is missing"),
        (
            lambda r: (r / "experiments/results/half.json").write_text('{"runs": ['),
            "half.json, line 1: not valid JSON",
        ),
        (
            lambda r: (
                measure(r, "experiments/ablations/se.yaml", runs(none=[1], se=[2]), study=STUDY),
                trials(r, study="experiments/ablations/se.yaml", expect=["cbam > se"]),
            ),
            "'cbam > se' is not an expectation of se_1: se > none, none > se",
        ),
    ],
)
def test_bad_files(repository, spoil, line, capsys):
    spoil(repository)
    assert main(["claims", str(repository)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("attention-vision: error: ")
    assert line in error
    assert error.count("\n") == 1
    assert not (repository / "experiments/README.md").exists()


def test_a_stale_page_is_found(repository, capsys):
    assert main(["claims", str(repository), "--check"]) == 1
    assert "is stale: regenerate it by `attention-vision claims`" in capsys.readouterr().err
    assert main(["claims", str(repository)]) == 0
    assert main(["claims", str(repository), "--check"]) == 0
    change(repository, "classification/se.yaml", claim=CLAIM | {"reported": 0.94})
    assert main(["claims", str(repository), "--check"]) == 1


def test_a_results_file_is_named_by_its_cell_too(repository):
    study = STUDY | {"expect": []}
    measure(repository, "elsewhere", [{"cell": "none", "seed": None, "metrics": {"val/top1": 768}}],
            study=study)  # fmt: skip
    trials(repository, results="experiments/results/elsewhere_1.json", cell="none", stated=256.0)
    (row,) = read_ledger(repository).statements
    assert row.verdict == "contradicted"
    assert row.outcomes[0].words == "none has 768, exact in `val/top1`; stated 256 ± 0"
    assert Trial(results="a", cell="none", stated=1.0).tolerance == 0
    assert ResultsFiles(repository).of("elsewhere")


# Its pages


def test_pages_name_each_measurement_and_link_to_pages_that_exist(ledger):
    files = files_of(ledger)
    index, short = files["docs/ledger/index.md"], files["experiments/README.md"]
    for statement in [*ledger.statements, *ledger.tables]:
        page = files[f"docs/ledger/{statement.page}.md"]
        assert statement.verdict in page
        assert f"({statement.page}.md)" in index
        for outcome in statement.outcomes:
            assert outcome.words in page
            assert outcome.words in index
            assert f"(../results/{outcome.results}.md)" in page
            assert outcome.numbers in short
    for study in ledger.studies:
        assert f"({study.id}.md)" in index
        page = files[f"docs/ledger/{study.id}.md"]
        assert all(outcome.words in page for outcome in study.outcomes)
    for name, text in files.items():
        for link in re.findall(r"\]\(([^)#]+)", text):
            there = os.path.normpath(Path(name).parent / link)
            assert there in files or (ROOT / there).exists(), f"{name}: {link}"
            assert "://" not in link


def test_measured_rows_come_first(ledger):
    for entries in (ledger.statements, ledger.tables, ledger.papers, ledger.studies):
        kinds = [entry.is_measured for entry in entries]
        assert kinds == sorted(kinds, reverse=True)


def test_the_ledger_for_other_programs(repository):
    path = "experiments/ablations/se.yaml"
    measure(repository, path, runs(none=[0.90, 0.92, 0.91], se=[0.95, 0.971, 0.96]), study=STUDY)
    content = json.loads(files_of(read_ledger(repository))["docs/ledger/ledger.json"])
    assert content.keys() == {"format", "statements", "tables", "papers", "costs", "studies"}
    (study,) = content["studies"]
    first, second = study["outcomes"]
    assert content["statements"][0]["outcomes"] == [first["id"]] == ["se_1: se > none"]
    assert (first["verdict"], second["verdict"]) == ("supported", "contradicted")
    assert first["low"] < first["difference"] == 0.0503333 < first["high"]
    assert first["values"] == {"0": 0.05, "1": 0.051, "2": 0.05}
    assert content["papers"][0]["verdict"] == "not run: needs a run"


def test_a_plot_has_a_mark_and_a_number_for_each_difference(repository):
    path = "experiments/ablations/se.yaml"
    measure(repository, path, runs(none=[0.90, 0.92, 0.91], se=[0.95, 0.971, 0.96]), study=STUDY)
    drawing = files_of(read_ledger(repository))["docs/ledger/differences.svg"]
    texts = [node.text for node in ElementTree.fromstring(drawing).iter() if node.text]
    assert texts.count("+0.050") == texts.count("−0.050") == 1
    assert texts.count("supported") == texts.count("contradicted") == 2  # one of the legend
    shapes = [forest.mark(verdict, 0, 0).replace(color, "") for verdict, color in COLORS.items()]
    assert len(set(shapes)) == len(COLORS)


def test_equal_cells_show_no_difference_within_the_band_of_the_effect(repository):
    study = STUDY | {"effect": 0.05, "expect": ["se > none"]}
    values = runs(none=[0.90, 0.91, 0.92], se=[0.901, 0.909, 0.921])
    measure(repository, "experiments/ablations/se.yaml", values, study=study)
    ledger = read_ledger(repository)
    assert ledger.statements[0].verdict == "no difference"
    files = files_of(ledger)
    page = files["docs/ledger/results/se_1.md"]
    assert "■ **no difference beyond 0.05**: `se > none`" in page
    assert "*effect*: 0.05" in page
    assert "no difference" in files["docs/ledger/results/se_1.svg"]
    assert "| statements of articles |  |  |  | 1 |" in files["experiments/README.md"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (-0.21, 0.26, ["−0.2", "−0.1", "0", "0.1", "0.2"]),
        (-1.3, 0.2, ["−1.0", "−0.5", "0"]),
        (-8.9e6, 7.9e6, ["−5 M", "0", "5 M"]),
    ],
)
def test_ticks_are_round(low, high, labels):
    assert [label for _, label in forest.ticks_between(low, high)] == labels


def test_pages_of_what_is_gone_go(repository):
    measure(repository, "elsewhere", runs(none=[0.9], se=[0.91]), study=STUDY)
    assert main(["claims", str(repository)]) == 0
    page = repository / "docs/ledger/results/elsewhere_1.md"
    assert page.is_file()
    (repository / "experiments/results/elsewhere_1.json").unlink()
    assert main(["claims", str(repository), "--check"]) == 1
    assert main(["claims", str(repository)]) == 0
    assert not page.exists()


# Results files still belong to their experiments


def test_committed_results_belong_to_their_experiments(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["claims", "check"]) == 0
    assert "results files belong to their experiments" in capsys.readouterr().out


@pytest.fixture
def results(repository, monkeypatch) -> Path:
    """A results file of a study, whole and current, in a repository of git."""
    monkeypatch.chdir(repository)
    base = {"task": "classification", "data": "Digits", "trainer": {"max_epochs": 1}}
    Path("experiments/classification/se.yaml").write_text(yaml.safe_dump(base))
    study = {key: value for key, value in STUDY.items() if key != "task"} | {"seeds": [0]}
    axes = {"attention": {"none": {"model.a": 0}, "se": {"model.a": 1}}}
    plan = {"study": study, "base": "../classification/se.yaml", "axes": axes}
    Path("experiments/ablations/se.yaml").write_text(yaml.safe_dump(plan))
    cells = read_definition("experiments/ablations/se.yaml").cells
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    content = {
        "what": {"title": "?", "experiment": "experiments/ablations/se.yaml"},
        "command": ["attention-vision study run experiments/ablations/se.yaml"],
        "commit": head.stdout.strip(),
        "date": "2026-11-28",
        "hardware": "2-core CPU",
        "versions": {"torch": "2.15.0+cu132", "python": "3.11.7"},
        "study": STUDY,
        "runs": [
            run | {"config_sha256": cells[run["cell"]].sha256} for run in runs(none=[0.9], se=[0.8])
        ],
    }
    file = Path("experiments/results/se.json")
    file.write_text(json.dumps(content))
    return file


def test_whole_results_pass(results, capsys):
    assert main(["claims", "check", str(results)]) == 0
    assert "\n1 results files belong to their experiments" in f"\n{capsys.readouterr().out}"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_study(old: str, new: str) -> None:
    file = Path("experiments/ablations/se.yaml")
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: edit_study("model.a: 1", "model.a: 2"),
         "se, seeds 0: measured with another configuration than experiments/ablations/se.yaml has"),
        (lambda f: edit_study("    se:", "    eca:"), "'se', which is not a cell: none, eca"),
        (lambda f: edit(f, runs=runs(none=[0.9], se=[0.8], eca=[0.7])), "'eca' is not a cell of"),
        (lambda f: Path("experiments/ablations/se.yaml").unlink(), "is not in the repository"),
        (lambda f: edit(f, commit="0" * 40), "commit 000000000000 is not in the history of this"),
        (lambda f: edit(f, commit="main"), "commit 'main' is not a hash of 40 digits"),
        (lambda f: edit(f, versions={"torch": "new"}), "torch 'new' is not a version"),
        (lambda f: edit(f, hardware=""), "without hardware"),
        (lambda f: edit(f, notes=["![x](https://elsewhere)"]), "a text has a link of Markdown"),
        (lambda f: edit(f, notes=["[x]: //elsewhere", "a"]), "or a reference of Markdown"),
        (lambda f: edit(f, notes=["One.\n## Two"]), "a text has a line break"),
        (lambda f: edit(f, hardware="a \x1b[31mCPU"), "a control character"),
        (lambda f: edit(f, what={"experiment": "../../se.yaml"}), "is not in the repository"),
        (lambda f: edit(f, runs=[{"cell": "se", "metrics": {"val/top1": "high"}}]), "not a number"),
        (lambda f: f.write_text("{"), "not valid JSON"),
    ],
)  # fmt: skip
def test_stale_results_are_named_with_the_reason(spoil, line, results, capsys):
    spoil(results)
    assert main(["claims", "check"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("experiments/results/se.json: ")
    assert line in said.out
    assert said.err.startswith("attention-vision: error: 1 of 1 results files are stale or not who")
    assert said.err.endswith(": se.json\n")


def test_what_cannot_be_compared_is_said_once(results, capsys):
    edit(results, runs=runs(none=[0.9], se=[0.8]))
    shutil.rmtree(".git")
    assert main(["claims", "check", str(results)]) == 0
    said = capsys.readouterr().out
    assert "older files, which do not name their configuration: se.json" in said
    assert "commits were not compared: this is not a repository of git" in said


def test_a_copy_inside_another_repository_has_no_history(results, capsys, monkeypatch):
    edit(results, commit="0" * 40)
    shutil.copytree("experiments", "copy/experiments")
    monkeypatch.chdir("copy")
    assert main(["claims", "check", str(results)]) == 0
    assert "copy/ is a folder of another repository" in capsys.readouterr().out


def test_another_plan_than_the_study_file_has_is_said(results, capsys):
    content = json.loads(results.read_text())
    plan = content["study"] | {"effect": 0.5, "seeds": [0]}
    edit(results, study=plan, commit=content["commit"])
    assert main(["claims", "check", str(results)]) == 0
    assert "se.yaml has changed since: effect is nothing, not 0.5" in capsys.readouterr().out


README_ROW = re.compile(r"\]\((experiments/results/\w+\.json)\)\) \| (.*) \| ([\w ]+) \|$", re.M)


def test_the_table_of_the_front_page_is_that_of_the_results():
    rows = README_ROW.findall((ROOT / "README.md").read_text())
    assert len(rows) > 3
    for file, words, verdict in rows:
        stated = [float(number) for number in re.findall(r"(?<!\S)\[?([+-]?\d[\d.]*)", words)]
        places = len(re.findall(r"\d[\d.]*", words)[-1].partition(".")[2])
        found = Report.of(read_study(ROOT / file)).findings
        numbers = [(one.difference.mean, *(one.difference.interval or ())) for one in found]
        same = [
            one.verdict
            for one, known in zip(found, numbers, strict=True)
            if [round(number or 0.0, places) for number in known][: len(stated)] == stated
        ]
        assert verdict in same, (file, words)


def no_study(file: Path) -> dict[str, set[str]]:
    raise AssertionError(f"{file} is not a study")


def test_a_recorded_run_is_compared_with_its_experiment(repository, run):
    file = record_results([run], repository)
    assert not list(unlike_the_experiment(json.loads(file.read_text()), repository, no_study))
    change(repository, "classification/se.yaml", threads=2)  # another machine
    assert not list(unlike_the_experiment(json.loads(file.read_text()), repository, no_study))
    change(repository, "classification/se.yaml", trainer={"max_epochs": 3})
    (line,) = unlike_the_experiment(json.loads(file.read_text()), repository, no_study)
    assert line.startswith("se, seeds 1: measured with another configuration")


@pytest.mark.parametrize("arguments", [["claims", str(ROOT), "--check"], ["claims", "--help"]])
def test_nothing_heavy_is_imported(arguments):
    code = (
        "import sys\nfrom attention_vision.__main__ import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr
