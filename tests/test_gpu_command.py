"""`make gpu`: each part runs at toy size, time is shared, nothing that is needed is left behind."""

import importlib.metadata as metadata
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attention_vision.claims.ledger import read_ledger

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments/gpu"
# Left out are parts whose code differs from these in a network or a file alone.
PARTS = (
    "mechanisms", "networks", "training", "fits", "ceilings", "vit_b16", "detr_r50",
    "sagan32", "strong_baseline", "overhead", "vit_b16_compiled", "sagan",
)  # fmt: skip


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    """The scripts' folder, and modules of their names that are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    yield
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and "/experiments/" in file:
            del sys.modules[name]


def test_every_part_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    import run

    words = ["--smoke", "--minutes", "60", "--out", str(tmp_path), "--only", ",".join(PARTS)]
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "run.py"), *words])
    assert run.main() == 0
    for name in PARTS:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["finished"], name
        assert "error" not in content, f"{name}: {content['error']}"
        assert not content.get("failures"), f"{name}: {content['failures']}"
        assert {"commit", "hardware", "versions", "seconds"} <= content.keys()
    # Results of the trainings are read by the ledger.
    results = tmp_path / "ledger/experiments/results"
    measured = json.loads((results / "gpu_sagan.json").read_text())
    assert {run["cell"] for run in measured["runs"]} == {"sngan", "sagan"}
    ledger = read_ledger(tmp_path / "ledger")
    assert any("Does SAGAN score above SNGAN" in one.question for one in ledger.studies)
    # Given again, nothing is left to do.
    capsys.readouterr()
    run.main()
    assert "..." not in capsys.readouterr().out


@pytest.fixture
def scheduler(monkeypatch, tmp_path):
    """run.py with parts that write their file and do nothing else."""
    import run

    deeds = {}

    def start(names, options, until):
        lines = ["import json, os, sys, time", f"os.chdir({str(options.out)!r})"]
        for name in names:
            lines.append(f"json.dump({{'finished': False}}, open('{name}.json', 'w'))")
            lines.append(deeds.get(name, "pass"))
            done = {"finished": True, "until": until}
            lines.append(f"json.dump({done}, open('{name}.json', 'w'))")
        return subprocess.Popen([sys.executable, "-c", "\n".join(lines)], start_new_session=True)

    monkeypatch.setattr(run, "start", start)
    options = SimpleNamespace(out=tmp_path, only=list(run.ALL))
    return run, options, deeds


def content(options, name: str) -> dict:
    return json.loads((options.out / f"{name}.json").read_text())


def test_a_part_that_takes_its_process_with_it_does_not_stop_the_others(scheduler):
    run, options, deeds = scheduler
    deeds["resnet50"] = "os._exit(3)"
    names = run.TIMED[:4]
    run.one_by_one(names, options, time.time() + 60)
    found = {name: content(options, name)["finished"] for name in names}
    assert found == {name: name != "resnet50" for name in names}
    assert content(options, "resnet50")["interrupted"] == "the process died"
    assert run.to_do(run.TIMED[:4], options) == ["resnet50"]


def test_what_is_not_done_in_time_is_stopped_and_goes_on_next_time(scheduler):
    run, options, deeds = scheduler
    deeds["networks"] = "time.sleep(60)"
    run.side_by_side(run.CHECKS[:2], options, time.time() + 3)
    assert content(options, "mechanisms")["finished"]
    assert content(options, "networks")["interrupted"] == "stopped: its time was over"
    assert run.to_do(run.CHECKS[:2], options) == ["networks"]


def test_a_command_is_interrupted_when_its_time_is_over(tmp_path, monkeypatch):
    import commands

    part = SimpleNamespace(smoke=False, out=tmp_path)
    row = commands.run_command(part, ("--version",), ROOT, 60)
    assert (row["exit"], row["stopped"]) == (0, False)
    row = commands.run_command(part, ("no-such-task",), ROOT, 60)
    assert (row["exit"], row["stopped"]) == (2, False)
    assert "no-such-task" in row["stderr"]
    slow = tmp_path / "slow"
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    slow.chmod(0o755)
    monkeypatch.setattr(commands.sys, "executable", str(slow))
    row = commands.run_command(part, ("fit",), ROOT, 0.5)
    assert row["stopped"]
    assert row["exit"] != 0


def test_cifar_is_packed_without_loss(tmp_path):
    import cifar

    source = tmp_path / "there" / cifar.FOLDER
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for members in cifar.PACKS.values():
        for number, member in enumerate(members):
            images = random.integers(0, 256, (7 + number, cifar.PIXELS), np.uint8)
            # As Python 2 wrote it: the bytes of the array are a string with the opcode T.
            batch = [b"\x80\x02U\x05batch"]
            if member != "batches.meta":
                data = images.tobytes()
                batch += [b"T", len(data).to_bytes(4, "little"), data]
            (source / member).write_bytes(b"".join(batch) + pickle.dumps({"labels": [3] * 7}))
    cifar.pack(tmp_path / "there", tmp_path / "packed")
    cifar.unpack(tmp_path / "packed", tmp_path / "here")
    for file in source.iterdir():
        assert (tmp_path / "here" / cifar.FOLDER / file.name).read_bytes() == file.read_bytes()


def test_a_missing_part_of_cifar_is_one_line(tmp_path):
    import cifar

    with pytest.raises(SystemExit, match="no file data_batch_1: give torchvision's root"):
        cifar.pack(tmp_path, tmp_path / "packed")
    with pytest.raises(SystemExit, match="no file cifar10_a"):
        cifar.unpack(tmp_path, tmp_path / "here")


def test_wheels_are_those_that_the_machine_lacks(monkeypatch, tmp_path):
    import wheels

    requires = {
        "attention-vision": ["torch>=2", "wandb", "submitit; extra == 'slurm'", "x; extra == 'y'"],
        "wandb": ["pydantic<3", "old; python_version < '3.9'"],
        "pydantic": ["wandb"],
        "submitit": ["Cloud_Pickle"],
        "cloud-pickle": [],
    }  # fmt: skip
    monkeypatch.setattr(
        metadata, "distribution", lambda name: SimpleNamespace(requires=requires[name], version="1")
    )
    assert set(wheels.needed({"torch"}, "3.12")) == {
        "wandb==1", "pydantic==1", "submitit==1", "cloud-pickle==1",
    }  # fmt: skip
    file = tmp_path / "freeze.txt"
    file.write_text("# of the machine\ntorch==2.11.0\nCloud_Pickle @ file:///x\n")
    assert wheels.names_in(file) == {"torch", "cloud-pickle"}


def test_wheels_hold_all_that_the_package_imports():
    """What is neither downloaded nor taken to be there is not needed at all."""
    import wheels
    from packaging.requirements import Requirement

    present = set(wheels.PRESENT)
    wanted = {line.partition("==")[0] for line in wheels.needed(present, "3.12")}
    direct = [Requirement(line) for line in metadata.distribution("attention-vision").requires]
    names = {wheels.canonicalize_name(one.name) for one in direct if "extra" not in str(one.marker)}
    assert names <= wanted | present
    assert not wanted & present
    assert os.environ.get("OMP_NUM_THREADS") == "1"  # that the smoke test inherits
