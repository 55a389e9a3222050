"""The frame of the benchmarks compares what it says, every row runs, the page shows the results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments/benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("page", *names()):
        sys.modules.pop(name, None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that steps move; nothing is measured."""
    import frame

    now = [0.0]
    monkeypatch.setitem(frame.CLOCKS, "wall", lambda: now[0])
    return now


def side(clock, who: str, variant: str, *seconds: float):
    """A side whose steps take these times, the last one forever."""
    import frame

    taken = list(seconds)

    def step():
        clock[0] += taken.pop(0) if len(taken) > 1 else taken[0]

    return frame.Side(who, lambda: step, variant)


def test_fastest_variants_are_compared_turn_by_turn(clock):
    import frame

    sides = [
        side(clock, "ours", "eager", 3.0),
        side(clock, "ours", "compiled", 9.0, 2.0),  # the first step compiles
        side(clock, "timm", "eager", 4.0),
        side(clock, "timm", "compiled", 5.0),
        side(clock, "naive", "", 1.0, 1.0, 6.0, 8.0, 10.0),
    ]
    row = frame.Row("a row", sides, images=8, targets={"timm": 2.5}, memory=False)
    measured = frame.measure(row, frame.Conditions(turns=3, seconds=0.1))
    timm, naive = measured["against"]
    assert (timm["ours"], timm["theirs"], timm["ratio"]) == ("compiled", "eager", 2.0)
    assert (naive["ratio"], naive["low"], naive["high"]) == (4.0, 3.0, 5.0)
    assert [one.get("per_second") for one in measured["sides"]][:2] == [8 / 3, 4.0]
    lines = frame.lines_of(measured)
    assert "ours, compiled is 2.00 times as fast as timm, eager" in lines[-2]
    assert lines[-2].endswith("target 2.5 missed")


def test_sides_take_turns_forwards_and_backwards(clock):
    import frame

    order = []

    def build(who):
        def step():
            order.append(who)
            clock[0] += 1.0

        return step

    sides = [frame.Side(who, lambda who=who: build(who)) for who in "AB"]
    frame.measure(frame.Row("row", sides, memory=False, turns=2), frame.Conditions(turns=9))
    assert "".join(order[-4:]) == "ABBA"


def test_share_of_the_matrix_rate_and_memory(clock):
    import frame

    def build():
        def step():
            clock[0] += 2.0
            torch.empty(1000)

        return step

    row = frame.Row("row", [frame.Side("ours", build)], flops=100.0)
    (found,) = frame.measure(row, frame.Conditions(turns=1, matrix_rate=200.0))["sides"]
    assert found["matrix_share"] == 0.25
    assert 4000 <= found["memory"] < 8000


def test_flops_of_a_training_step():
    import frame

    layer = torch.nn.Linear(5, 7)
    assert frame.training_flops(layer, torch.randn(3, 5)) == 3 * 2 * 3 * 5 * 7
    assert all(parameter.requires_grad for parameter in layer.parameters())


def names() -> list[str]:
    spec = importlib.util.spec_from_file_location("every_benchmark", FOLDER / "all.py")
    every = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(every)
    return list(every.NAMES)


# Left out is what trains by the command: its trainings wait in threads until the process ends.
@pytest.mark.parametrize("name", [name for name in names() if name != "fit_overhead"])
def test_every_row_runs_at_toy_size(name):
    import frame

    conditions = frame.Conditions(turns=1, seconds=0.0)
    rows = list(importlib.import_module(name).rows("cpu", True))
    assert rows
    for row in rows:
        assert frame.lines_of(frame.measure(row, conditions)), row.name


def test_a_failing_row_is_recorded_and_rows_left_out_stay(tmp_path, monkeypatch):
    import frame

    def rows(device, smoke):
        yield frame.Row("good", [frame.Side("ours", lambda: lambda: None)], memory=False)
        yield frame.Row("bad", [frame.Side("ours", lambda: 1 / 0)], memory=False)

    for only in ("", "good"):
        command = ["x.py", "--out", str(tmp_path), "--smoke", "--only", only, "--threads", "1"]
        monkeypatch.setattr(sys, "argv", command)
        if only:
            frame.main(rows)
        else:
            with pytest.raises(SystemExit, match="failed: bad"):
                frame.main(rows)
    content = json.loads((tmp_path / "bench_x.json").read_text())
    assert {row["name"]: "error" in row for row in content["rows"]} == {"bad": True, "good": False}
    assert {row["name"]: "commit" in row for row in content["rows"]} == {"bad": True, "good": False}
    assert {"commit", "hardware", "versions", "command", "date"} <= content.keys()


def test_page_shows_the_results():
    answer = subprocess.run(
        [sys.executable, str(FOLDER / "page.py"), "--check"], capture_output=True, text=True
    )
    assert answer.returncode == 0, f"{answer.stdout}: run python experiments/benchmarks/page.py"


def test_a_line_of_the_page():
    import page

    sides = [
        {"who": "ours", "variant": "", "seconds": 0.0123, "matrix_share": 0.5},
        {"who": "timm", "variant": "compiled", "seconds": 12.34},
    ]
    one = {"peer": "timm", "ours": "", "theirs": "compiled", "ratio": 1.257, "low": 1.2}
    one |= {"high": 1.3, "target": 1.25, "memory_ratio": 0.9}
    lines = page.row_lines({"name": "net", "sides": sides, "against": [one]})
    expected = "| net | 12.3 ms | timm, 12.3 s, compiled | **1.26** (1.20 to 1.30) | 1.25, met |"
    assert lines == [f"{expected} 0.90 | 50% |"]
