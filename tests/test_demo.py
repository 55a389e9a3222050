"""The driver of `make demo`: order, prefixes, failures; its tables and its page."""

import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from attention_vision.cli import explain, profile
from attention_vision.runs.command import parse

DEMO = Path(__file__).parents[1] / "experiments" / "demo"


@pytest.fixture(scope="module")
def driver():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEMO))
        spec = importlib.util.spec_from_file_location("demo_driver", DEMO / "run.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "demo_driver", module)  # dataclasses look it up
        spec.loader.exec_module(module)
        yield module
        sys.modules.pop("report", None)


def job(driver, name, code="", after=(), seconds=1):
    return driver.Job(name, f"does {name}", seconds, [sys.executable, "-c", code], after)


def test_each_line_has_the_name_of_its_job(driver, capfd):
    jobs = [
        job(driver, "one", "print('a\\nb')"),
        job(driver, "three", "import os; os.write(2, b'c')"),
    ]
    driver.run(jobs, 2)
    assert sorted(capfd.readouterr().out.split("\n"))[-3:] == [
        "one   | a",
        "one   | b",
        "three | c",
    ]


def test_jobs_wait_for_those_they_need(driver):
    order = []
    jobs = [
        job(driver, "last", after=("first", "second")),
        job(driver, "second", after=("first",)),
        job(driver, "first"),
    ]
    driver.run(jobs, 2, order.append)
    assert order == ["first", "second", "last"]


def test_as_many_run_at_a_time_as_there_are_cores(driver, tmp_path):
    """Two jobs that wait for each other's file end on two cores; on one, the first gives up."""
    code = """
import sys, time
from pathlib import Path
mine, other, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
mine.touch()
end = time.monotonic() + seconds
while not other.exists():
    time.sleep(0.01)
    if time.monotonic() > end: sys.exit('alone')
"""

    def pair(folder, seconds):
        folder.mkdir()
        files = [str(folder / name) for name in "ab"]
        return [
            driver.Job(name, "", 1, [sys.executable, "-c", code, *ends, seconds])
            for name, ends in (("a", files), ("b", files[::-1]))
        ]

    driver.run(pair(tmp_path / "two", "60"), 2)
    with pytest.raises(driver.JobError, match="a failed, exit code 1:\nalone"):
        driver.run(pair(tmp_path / "one", "0.2"), 1)


def test_a_failure_ends_all_and_shows_its_last_lines(driver):
    jobs = [
        job(driver, "long", "import time; time.sleep(600)"),
        job(driver, "bad", "print('the reason'); raise SystemExit(3)"),
        job(driver, "never", "raise SystemExit('started')", after=("bad",)),
    ]
    start = time.monotonic()
    with pytest.raises(driver.JobError, match="bad failed, exit code 3:\nthe reason\n"):
        driver.run(jobs, 2)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(tmp_path, number):
    """The driver's own process, with a job that would last ten minutes."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, {str(DEMO)!r})
import run
sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
run.demo = lambda folder: [run.Job("long", "sleep", 600, [sys.executable, "-c", sleeper])]
sys.exit(run.main(run.Path({str(tmp_path / "demo")!r})))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = next(line for line in process.stdout if line.startswith("long |"))
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    sleeper = int(line.split("|")[1])
    assert not Path(f"/proc/{sleeper}").exists()


def test_times_are_those_of_the_schedule(driver):
    jobs = [
        job(driver, "a", seconds=50),
        job(driver, "b", seconds=60),
        job(driver, "c", seconds=100, after=("a",)),
        job(driver, "d", seconds=70, after=("a", "b")),
    ]
    assert driver.duration(jobs, 1) == 280
    assert driver.duration(jobs, 2) == 150
    assert "2.5 minutes" in driver.plan(jobs, 2)


def test_the_demo_names_files_that_exist_and_jobs_that_come_before(driver):
    names = []
    for one in driver.demo(Path("runs/demo")):
        assert set(one.after) <= set(names)
        names.append(one.name)
        configs = [word for word in one.words if word.endswith(".yaml")]
        assert all(Path(config).is_file() for config in configs)
    assert set(driver.report.RUNS) < set(names)


def test_the_demo_gives_options_that_exist(driver):
    words = {one.name: one.words[3:] for one in driver.demo(Path("runs/demo"))}
    assert (words["costs"][0], words["attention"][0]) == ("profile", "explain")
    profile.parser().parse_args(words["costs"][1:])
    explain.parser().parse_args(words["attention"][1:])
    for run in driver.report.RUNS:
        task, verb, *options = words[run]
        parse(task, verb, options)


def test_report_of_the_runs_that_are_done(driver, tmp_path):
    for run in ("vit_digits", "se_resnet_digits"):
        (tmp_path / run / "pictures").mkdir(parents=True)
        (tmp_path / run / "metrics.csv").write_text(
            "epoch,step,train/loss,val/top1\n0,9,0.5,\n0,9,,0.9\n1,19,,0.975\n2,29,,0.95\n"
        )
        for step, color in ((9, "red"), (19, "blue")):
            picture = Image.new("RGB", (30, 10), color)
            picture.save(tmp_path / run / "pictures" / f"val_panel_{step:06}.png")
    (tmp_path / "costs.csv").write_text(
        "name,parameters,images_per_second\nvit_digits,1000,1234.5\nse_resnet_digits,2000,50\n"
    )
    assert driver.report.write(tmp_path, ["vit_digits"]) == []
    done = ["vit_digits", "se_resnet_digits", "costs"]
    (picture,) = driver.report.write(tmp_path, done)
    assert picture == tmp_path / "where_they_look.png"
    with Image.open(picture) as drawn:
        assert drawn.size == (30, 20)
        assert drawn.getpixel((0, 0)) == (0, 0, 255)
    text = driver.report.text(tmp_path, done)
    assert re.search(r"ViT +97.50% +1,000 +1,234", text)
    assert "DETR" not in text
    page = (tmp_path / "index.html").read_text()
    assert "97.50%" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
