"""Faults of the world around a run, one by one: what is kept, what is said, how the command ends.

docs/guides/faults.md shows the outcomes: a row that differs from what happens here fails its test,
which prints the row to put there.
"""

import errno
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from attention_vision.__main__ import main
from attention_vision.training import checkpoint_io
from attention_vision.training.early_signals import KEPT
from attention_vision.training.metrics_csv import MetricsCSV

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "faults.md"
EXPERIMENT = """
trainer:
  max_epochs: 2
  limit_train_batches: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  accelerator: cpu
  devices: 1
  enable_model_summary: false
threads: 1
pictures: false
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 16}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 1, heads: 2}
"""
RESUME = ["fit", "-c", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
CHECKPOINTS = ("last", "previous", "best")


@dataclass(frozen=True)
class Fault:
    """A fault, the command that meets it, and the line to look for.

    Args:
        name: as in the table.
        words: the command after `classification`.
        said: a part of the line that is said, a regular expression.
        begin: what happens to the finished run in `run/` before the command.
        during: context of the command.
    """

    name: str
    words: list[str]
    said: str
    begin: Callable[[], object] = lambda: None
    during: Callable[[], object] | None = None


class Act(Callback):
    """Does something in the middle of a step."""

    def __init__(self, step: int = 5):
        self.step = step

    def on_before_backward(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            self.act()


class RemoveFolder(Act):
    def act(self) -> None:
        shutil.rmtree("run")


class HangUp(Act):
    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGHUP)


class KillWandb(Act):
    def act(self) -> None:
        children = Path("/proc/self/task").glob("*/children")
        processes = [process for file in children for process in file.read_text().split()]
        for process in processes:
            if b"wandb-core" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(int(process), signal.SIGKILL)
                os.waitid(os.P_PID, int(process), os.WEXITED | os.WNOWAIT)
                return
        raise AssertionError("W&B has no process")


def acting(kind: type[Act]) -> list[str]:
    return [f'--trainer.callbacks=[{{"class_path": "{__name__}.{kind.__name__}"}}]']


@contextmanager
def files_below(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_space(owner: object, name: str) -> Iterator[None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


@contextmanager
def wandb_at(url: str, **variables: str) -> Iterator[None]:
    home = {"HOME": str(Path.cwd()), "NETRC": str(Path("netrc").resolve())}
    values = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "WANDB_SILENT": "true", **home}
    __import__("wandb").teardown()  # what a test before has set up would not read the variables
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (values | variables).items():
            patch.setenv(key, value)
        yield
    os.environ.pop("WANDB_ERROR_REPORTING", None)
    __import__("wandb").teardown()


@contextmanager
def silent_server() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("attention_vision.training.wandb_mode.ANSWER_SECONDS", 1.0)
        with wandb_at(f"http://127.0.0.1:{server.getsockname()[1]}"):
            yield


@contextmanager
def early_signal() -> Iterator[None]:
    KEPT.received = int(signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, KEPT)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def flip(file: str, part: bytes = b"") -> None:
    """Flip a bit: in the largest tensor of a checkpoint, or in these bytes of a text."""
    content = bytearray(Path(file).read_bytes())
    if not part:
        state = torch.load(file, weights_only=True)["state_dict"]
        part = max(state.values(), key=torch.numel).numpy().tobytes()[:64]
    content[content.index(part) + len(part) - 2] ^= 1
    Path(file).write_bytes(content)


def cut(file: str) -> None:
    os.truncate(file, os.path.getsize(file) // 2)


def damage_all() -> None:
    for name in CHECKPOINTS:
        cut(f"run/checkpoints/{name}.ckpt")


WANDB = "--trainer.logger=attention_vision.training.wandb_logger.WeightsAndBiases"
NEW = ["fit", "-c", "experiment.yaml", "--run", "new"]
MEASURE = ["validate", "-c", "run/config.yaml"]
OFFLINE = "logged offline: upload"
CLOSED = "http://127.0.0.1:9"
FAULTS = [
    Fault("a full disk, or a quota, at a checkpoint", RESUME, "cannot be written",
          during=lambda: files_below(40_000)),
    Fault("a full disk at metrics.csv", RESUME, "cannot be written",
          during=lambda: no_space(MetricsCSV, "_write_last")),
    Fault("a full disk at a picture", [*RESUME, "--pictures", "true"], "pictures are missing",
          during=lambda: no_space(MetricsCSV, "_write_images")),
    Fault("the run folder is removed in training", [*RESUME, *acting(RemoveFolder)], "removed"),
    Fault("flipped bits in last.ckpt", RESUME, "damaged",
          lambda: flip("run/checkpoints/last.ckpt")),
    Fault("last.ckpt is cut", RESUME, "damaged", lambda: cut("run/checkpoints/last.ckpt")),
    Fault("all checkpoints are cut", RESUME, "damaged", damage_all),
    Fault("flipped bits in best.ckpt", MEASURE, "damaged",
          lambda: flip("run/checkpoints/best.ckpt")),
    Fault("flipped bits in metrics.csv", RESUME, "checksum",
          lambda: flip("run/metrics.csv", b"\n0,0,")),
    Fault("metrics.csv is cut", RESUME, "was cut", lambda: cut("run/metrics.csv")),
    Fault("flipped bits in config.yaml", RESUME, "^changed on resume",
          lambda: flip("run/config.yaml", b"batch_size: 16\n")),
    Fault("config.yaml is not YAML", RESUME, "not valid YAML",
          lambda: Path("run/config.yaml").write_text("model: {")),
    Fault("W&B: a closed port", [*NEW, WANDB], OFFLINE, during=lambda: wandb_at(CLOSED)),
    Fault("W&B: a server that never answers", [*NEW, WANDB], OFFLINE, during=silent_server),
    Fault("W&B: a malformed key", [*NEW, WANDB], OFFLINE,
          during=lambda: wandb_at(CLOSED, WANDB_API_KEY="short")),
    Fault("W&B: a nonsense address", [*NEW, WANDB], OFFLINE, during=lambda: wandb_at("nonsense")),
    Fault("W&B: its process is killed", [*RESUME, WANDB, *acting(KillWandb)], "goes on offline",
          during=lambda: wandb_at(CLOSED, WANDB_MODE="offline")),
    Fault("the terminal is closed (SIGHUP)", [*RESUME, *acting(HangUp)], "stopped:"),
    Fault("SIGUSR1 before training has begun", NEW, "stopped", during=early_signal),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the experiment and its finished run."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["classification", "fit", "-c", "experiment.yaml", "--run", "run"]) == 0
    return folder


def exit_code(words: list[str]) -> int:
    try:
        return main(["classification", *words])
    except SystemExit as end:
        return int(end.code or 0)


def kept(run: Path) -> str:
    """The whole checkpoints of a run with their steps."""
    found = []
    for name in CHECKPOINTS:
        try:
            checkpoint_io.check_sums(run / "checkpoints" / f"{name}.ckpt")
        except ValueError:
            continue
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        found.append(f"{name} ({state['global_step']})")
    return ", ".join(found) or "nothing"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_row_in_the_table(fault, finished, tmp_path, monkeypatch, capfd):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    fault.begin()
    start = time.monotonic()
    with fault.during() if fault.during else open(os.devnull):
        code = exit_code(fault.words)
    assert time.monotonic() - start < 20
    streams = capfd.readouterr()
    text = (streams.out + streams.err).replace(f"{tmp_path}/", "")
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if re.search(fault.said, line)]
    assert len(lines) == 1, text
    line = re.sub(r"127\.0\.0\.1:\d+", "HOST", lines[0]).replace("|", "\\|")
    run = Path("new" if "new" in fault.words else "run")
    row = f"| {fault.name} | {kept(run)} | {line} | {code} |"
    assert row in PAGE.read_text().splitlines(), row


def test_a_full_disk_takes_the_one_before_last_first(tmp_path, monkeypatch):
    """A checkpoint that finds room when previous.ckpt is gone is written."""
    files = checkpoint_io.AtomicCheckpointIO()
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2):
        files.save_checkpoint({"global_step": step}, last)
    assert [torch.load(one)["global_step"] for one in (last, previous)] == [2, 1]
    write = checkpoint_io.write

    def tight(checkpoint: dict, file: Path) -> None:
        if previous.exists():
            raise OSError(errno.ENOSPC, "full")
        write(checkpoint, file)

    monkeypatch.setattr(checkpoint_io, "write", tight)
    files.save_checkpoint({"global_step": 3}, last)
    assert [torch.load(one)["global_step"] for one in (last, previous)] == [3, 2]


TWO = """
import os, signal, sys, time
from lightning.pytorch import Callback, Trainer
from attention_vision.training import heartbeat
from attention_vision.__main__ import main
heartbeat.Heartbeat.__init__.__defaults__ = (4,)
class Fault(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == int(os.environ["FAULT_RANK"]) and trainer.global_step == 1:
            time.sleep(3)
            os.kill(os.getpid(), int(os.environ["FAULT"]))
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def working_in(folder: Path) -> list[str]:
    """The processes of this user whose working directory is this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or one that has ended meanwhile
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def test_a_process_that_stops_ends_a_run(tmp_path):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    (tmp_path / "two.py").write_text(TWO)
    flags = ["--trainer.devices=2", "--trainer.strategy=ddp", "--run=run"]
    flags += ['--trainer.callbacks=[{"class_path": "two.Fault"}]']
    environment = {key: value for key, value in os.environ.items() if "SLURM" not in key}
    environment |= {"FAULT": str(int(signal.SIGSTOP)), "FAULT_RANK": "1"}
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "two.py", "classification", "fit", "-c", "experiment.yaml", *flags],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode != 0
    assert time.monotonic() - start < 60
    assert ended.stderr.count("of this run has ended") == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not working_in(tmp_path)
