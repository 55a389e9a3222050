"""Reports of studies: numbers, formats, missing results, one-line errors, light imports."""

import csv
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats
from study_folders import STUDY, VALUES, result, write, write_file, write_folder

from attention_vision.__main__ import main as command
from attention_vision.cli.study_report import write_report
from attention_vision.report import plots as figures
from attention_vision.report import tables
from attention_vision.report.checklist import checklist
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
PARTIAL = {"none": VALUES["none"], "se": {0: 0.93}, "cbam": {1: 0.90, 2: 0.93}}


def main(words: list[str]) -> int:
    return command(["study", "report", *words])


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "channel_attention")


def report_of(path: Path) -> Report:
    return Report.of(read_study(path))


def test_numbers_by_hand(folder):
    none, se, cbam = report_of(folder).rows
    assert (none.mean, none.difference, none.p) == (pytest.approx(0.91), None, None)
    assert none.std == pytest.approx(0.01)
    assert se.difference.values == pytest.approx({0: 0.03, 1: 0.02, 2: 0.04})
    assert se.difference.mean == pytest.approx(0.03)
    half = 4.30265 * 0.01 / 3**0.5
    assert se.difference.interval == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    base, *others = (list(VALUES[cell].values()) for cell in ("none", "se", "cbam"))
    small, large = (stats.ttest_rel(other, base).pvalue for other in others)
    assert (se.p, cbam.p) == pytest.approx((2 * small, max(2 * small, large)))
    assert se.cost["seconds"] == pytest.approx(61)
    assert se.cost["images_per_second"] is None


def test_verdicts_stand_on_corrected_intervals(folder):
    better, other = report_of(folder).findings
    assert better.difference.level == pytest.approx(0.975)
    assert better.verdict == "undecided"  # 0.03 ± 0.036: alone, at 95 %, it would be supported
    assert other.difference.mean == pytest.approx(-0.08 / 3)
    strong = {**VALUES, "se": {0: 0.99, 1: 1.01, 2: 1.005}}
    findings = report_of(write_folder(folder.with_name("strong"), strong)).findings
    assert [finding.verdict for finding in findings] == ["supported", "contradicted"]


def test_folder_and_results_file_say_the_same(folder, tmp_path):
    file = write_file(tmp_path / "channel_attention.json")
    there, here = report_of(file), report_of(folder)
    assert tables.table(there) == tables.table(here)
    assert tables.verdicts(there) == tables.verdicts(here)
    assert set(figures.draw(here)) == {"differences", "curves"}
    assert set(figures.draw(there)) == {"differences"}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_report_themselves(file, tmp_path):
    if "study" not in json.loads(file.read_text()):
        pytest.skip("one cell: nothing to compare")
    assert main([str(file), "--out", str(tmp_path)]) == 0


def test_everything_is_written(folder, capsys):
    assert main([str(folder)]) == 0
    names = {path.name for path in folder.iterdir() if path.is_file()}
    endings = {f"report.{ending}" for ending in ("txt", "csv", "md", "tex", "html")}
    assert names == endings | {"study.json", "differences.png", "curves.png"}
    printed = capsys.readouterr().out
    assert (folder / "report.txt").read_text() in printed

    rows = list(csv.DictReader((folder / "report.csv").open()))
    assert [row["cell"] for row in rows] == list(VALUES)
    assert float(rows[1]["difference"]) == pytest.approx(0.03)
    assert rows[0]["difference"] == rows[1]["images_per_second"] == ""

    lines = (folder / "report.md").read_text().splitlines()
    bars = {line.count("|") for line in lines if line.startswith("|") and "val/top1" in line}
    assert bars == {next(line for line in lines if line.startswith("| none")).count("|")}

    tex = (folder / "report.tex").read_text()
    body = tex[tex.index(r"\toprule") : tex.index(r"\bottomrule")]
    columns = len(tex.partition(r"\begin{tabular}{")[2].partition("}")[0])
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {row.count(" & ") for row in rows} == {columns - 1}


def test_names_are_escaped(tmp_path):
    cell = "50_% <b> & |x| \\"
    study = STUDY | {"baseline": "none", "expect": [], "question": "Is 1 < 2 & $3?"}
    values = {"none": VALUES["none"], cell: VALUES["se"]}
    report = report_of(write_file(tmp_path / "odd.json", values, study=study))
    write_report(report, tmp_path)
    tex = (tmp_path / "report.tex").read_text()
    assert r"50\_\% $<$b$>$ \& |x| \textbackslash{} & 3 &" in tex
    assert r"| 50_% &lt;b> & \|x\| \ |" in (tmp_path / "report.md").read_text()
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_exact_numbers_have_no_seeds_and_no_chances(tmp_path):
    runs = [
        {"cell": cell, "seed": None, "metrics": {"val/top1": value}}
        for cell, value in (("none", 5), ("se", 1_000_007), ("cbam", 3))
    ]
    report = report_of(write_file(tmp_path / "exact.json", runs=runs))
    assert tables.table(report) == [
        ["cell", "val/top1", "difference"],
        ["none", "5", "baseline"],
        ["se", "1,000,007", "+1,000,002"],
        ["cbam", "3", "-2"],
    ]
    assert [finding.verdict for finding in report.findings] == ["supported", "contradicted"]
    assert report.remarks == []
    text = tables.text(report)
    assert "exact numbers" in text
    assert "Student" not in text


def test_gaps_are_said(tmp_path):
    folder = write_folder(tmp_path / "partial", PARTIAL)
    failed = folder / "cells/se/seed1"
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback\n  ...\nRuntimeError: out of memory\n\n")
    report = report_of(folder)
    assert report.remarks == [
        "failed: se, seed 1: RuntimeError: out of memory",
        "missing: se, seed 2",
        "missing: cbam, seed 0",
        "no interval: se against none: one seed: its spread is not known",
    ]
    assert [finding.verdict for finding in report.findings] == ["undecided", "undecided"]
    _, se, cbam = report.rows
    assert (len(se.values), se.std, se.p) == (1, None, None)
    assert cbam.difference.values == pytest.approx({1: -0.02, 2: 0.02})
    assert all(remark in tables.text(report) for remark in report.remarks)


def test_a_run_without_a_number_is_left_out_and_said(tmp_path):
    runs = [result(cell, seed, value) for cell in VALUES for seed, value in VALUES[cell].items()]
    runs[3]["metrics"]["val/top1"] = None
    runs[4]["metrics"]["val/top1"] = float("nan")
    del runs[8]["metrics"]["val/top1"]
    report = report_of(write_file(tmp_path / "gaps.json", runs=runs))
    assert [len(row.values) for row in report.rows] == [3, 1, 2]
    assert report.remarks[:3] == [
        "left out: se, seed 0 has no finite val/top1",
        "left out: se, seed 1 has no finite val/top1",
        "left out: cbam, seed 2 does not log val/top1",
    ]


def test_the_checklist_is_in_every_text(tmp_path):
    data = {"classes": {"count": 10}, "train": {"samples": 1442}, "val": {"samples": 355}}
    runs = [result(cell, seed, value) for cell in VALUES for seed, value in VALUES[cell].items()]
    study = STUDY | {"seeds": [0, 1, 2], "looks": [2, 3], "effect": 0.01}
    file = write_file(
        tmp_path / "results.json", runs=[one | {"data": data} for one in runs[:-1]], study=study
    )
    items = checklist(read_study(file))
    assert items == {
        "runs": "8 finished of 9, 3 cells", "seeds": "0, 1, 2", "planned seeds": "0, 1, 2",
        "looks": "at 2, 3 seeds", "effect": "0.01",
        "selection": "the last validation of each run, not its best epoch",
        "compute": "0.14 h in all runs", "images": "train 1442, val 355",
    }  # fmt: skip
    write_report(report_of(file), tmp_path)
    assert "Shaded: ±0.01" in (tmp_path / "report.html").read_text()
    for ending in ("txt", "md", "tex", "html"):
        text = (tmp_path / f"report.{ending}").read_text()
        assert all(value in text for value in items.values()), ending
        for words in (
            "if the mean difference were",
            "half-widths that were reached: ",
            "; predicted by the first half of the seeds: ",
            "an effect of 0.01",
        ):
            assert words in text, ending


def test_curves_end_where_the_shortest_seed_does(folder):
    file = folder / "cells/se/seed0/metrics.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    study = read_study(folder)
    steps, values = figures.common_steps(study.curves("se", "val/top1"))
    assert steps == [9, 19]
    assert values.shape == (3, 2)
    assert figures.common_steps(study.curves("se", "val/else"))[0] == []


def test_figures_of_many_cells_show_the_first(tmp_path):
    cells = {f"c{number}": VALUES["se"] for number in range(40)}
    folder = write_folder(tmp_path / "channel_attention", VALUES | cells, [*VALUES, *cells])
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("The first 28 of 43 cells.") == 2
    assert "c39" in (folder / "report.txt").read_text()
    drawn = figures.draw(report_of(folder))
    assert len(drawn["differences"].axes[0].get_yticks()) == 28
    assert len(drawn["curves"].legends[0].get_texts()) == 28
    height = drawn["curves"].get_size_inches()[1]
    drawn["curves"].canvas.draw()
    assert drawn["curves"].axes[0].get_position().height * height > 1.5


def short(file: Path) -> None:
    file.write_text(file.read_text()[: file.stat().st_size // 2])


def change(file: Path, **changes) -> None:
    write(file, json.loads(file.read_text()) | changes)


SEED = "cells/se/seed0/result.json"


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda f: (f / "study.json").unlink(),
            "is not a study folder: it does not contain study.json",
        ),
        (lambda f: short(f / "study.json"), "study.json, line 1: not valid JSON: truncated"),
        (lambda f: short(f / SEED), f"{SEED}, line 1: not valid JSON: truncated or damaged"),
        (
            lambda f: change(f / SEED, study="x"),
            "to another study or run: its study is 'x'",
        ),
        (lambda f: change(f / SEED, seed=1), "its seed is 1, but 0 in"),
        (
            lambda f: change(f / SEED, metrics={"val/top1": "x"}),
            "val/top1' is 'x', not a number",
        ),
        (
            lambda f: change(f / "study.json", metric="val/ap"),
            "no run logs val/ap; metrics logged: val/top1, val/loss",
        ),
        (
            lambda f: change(f / "study.json", baseline="nothing"),
            "baseline names 'nothing', which is not a cell: none, se, cbam",
        ),
        (lambda f: change(f / "study.json", expect=["se > a"]), "expect names 'a', which is not a"),
        (lambda f: change(f / "study.json", expect=["se"]), "expect: 'se' is not an ordering such"),
        (lambda f: change(f / "study.json", seeds=[7]), "no run of this study has finished yet"),
    ],
)
def test_bad_folders(folder, spoil, line, capsys):
    (folder / "report.txt").write_text("before")
    spoil(folder)
    assert main([str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("attention-vision: error: ")
    assert line in output.err
    assert output.err.count("\n") == 1
    assert (folder / "report.txt").read_text() == "before"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"study": None}, "has no 'study' block: add one with metric"),
        ({"study": {**STUDY, "metric": 3}}, "'study.metric' is 3, not of type str"),
        ({"study": {"metric": "val/top1"}}, "'question' is missing"),
        ({"study": {**STUDY, "expect": ["se > none"] * 2}}, "'se > none' is there twice"),
        ({"study": {**STUDY, "seeds": [0, 0]}}, "seeds: 0 is planned twice"),
        (
            {
                "study": {**STUDY, "expect": ["se > none by 0.10"]},
                "runs": [result(cell, 0, 0.9) for cell in (*VALUES, "none by 0.1")],
            },
            "may mean the cell 'none by 0.1' or a margin",
        ),
        ({"runs": {}}, "'runs' is {}, not of type list"),
        ({"runs": [3]}, "a run is an object with cell, seed and metrics, not 3"),
        (
            {"runs": [{"cell": "none", "seed": "0", "metrics": {}}]},
            "'seed' is '0', not of type int",
        ),
        ({"runs": [result("none", 0, 0.9)] * 2}, "two results of cell 'none', seed 0: keep one"),
    ],
)
def test_bad_files(changes, line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "results.json", **changes)
    assert main(["results.json"]) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_cut_in_half_and_one_that_is_not_there(tmp_path, capsys):
    short(write_file(tmp_path / "results.json"))
    assert main([str(tmp_path / "results.json")]) == 1
    assert "not valid JSON: truncated or damaged" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 1
    assert "nothing: no such folder or file" in capsys.readouterr().err


class Page(HTMLParser):
    """Collects what a browser would fetch, and tags that are not closed."""

    VOID = ("meta", "link", "br", "path", "use")

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.open, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data") and value[:1] != "#":
                self.fetched.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_holds_all_it_shows(folder):
    main([str(folder)])
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.fetched == ["data:,"]
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert not {"script", "img", "iframe"} & set(page.tags)
    assert not any(word in text for word in ("@import", "url(http", "@font-face"))
    for words in ("width=device-width", "prefers-color-scheme: dark", "undecided", "currentColor"):
        assert words in text


def test_equal_reports_are_equal_files(folder, tmp_path):
    for name in ("a", "b"):
        main([str(folder), "--out", str(tmp_path / name)])
    files = sorted((tmp_path / "a").glob("report.*"))
    assert len(files) == 5
    assert all(file.read_bytes() == (tmp_path / "b" / file.name).read_bytes() for file in files)


@pytest.mark.parametrize(
    "arguments",
    [
        ["study", "report", "FILE", "--out", "OUT"],
        ["study", "report", "--help"],
        ["study", "--help"],
    ],
)
def test_nothing_heavy_is_imported(arguments, tmp_path):
    file = write_file(tmp_path / "results.json")
    words = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    arguments = [words.get(word, word) for word in arguments]
    code = (
        "import sys\nfrom attention_vision.__main__ import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'lightning', 'torchvision', 'wandb'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr
