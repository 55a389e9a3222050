"""W&B: an offline run holds metrics, configuration and images; no key is no question."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WANDB = shutil.which("wandb") or shutil.which("wandb", path=str(Path(sys.executable).parent))
PROFILE = Path(__file__).parents[1] / "experiments" / "profiles" / "wandb.yaml"
EXPERIMENT = """
trainer:
  max_epochs: 1
  num_sanity_val_steps: 0
  limit_train_batches: 4
  log_every_n_steps: 2
  accelerator: cpu
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 32}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 1, heads: 2}
"""
MODES = """
import json
import os
from wandb.errors import AuthenticationError
from attention_vision.training.wandb_mode import mode
modes = [mode()]
os.environ["WANDB_API_KEY"] = "short"
try:
    mode()
except AuthenticationError as error:
    modes.append(str(error))
os.environ["WANDB_API_KEY"] = "k" * 40
modes.append(mode())
os.environ["WANDB_MODE"] = "offline"
modes.append(mode())
print(json.dumps(modes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wandb")


@pytest.fixture(scope="module")
def environment(folder) -> dict[str, str]:
    """A user who never logged in."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    home = {"HOME": str(folder), "NETRC": str(folder / "netrc"), "OMP_NUM_THREADS": "1"}
    return {**known, **home}


@pytest.fixture(scope="module")
def log(folder, environment) -> Path:
    """The .wandb file of an offline run."""
    fit(folder, environment)
    (file,) = folder.glob("runs/seed0/wandb/offline-run-*/*.wandb")
    return file


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def fit(folder: Path, environment: dict[str, str], *flags: str) -> None:
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    files = ["-c", "experiment.yaml", "-c", str(PROFILE), "--run", "runs/seed0"]
    command = [sys.executable, "-m", "attention_vision", "classification", "fit", *files]
    run([*command, "--trainer.logger.group", "seeds", *flags], folder, environment)


def test_online_only_with_a_key(folder, environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        # A server that never answers, so that a question to it would hang.
        host = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        answer = run([sys.executable, "-c", MODES], folder, environment | host)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    none, malformed, key, offline = json.loads(answer.splitlines()[-1])
    assert none == "offline"
    assert "WANDB_API_KEY" in malformed
    assert key is None  # wandb's own default: online
    assert offline is None  # wandb reads WANDB_MODE itself


@pytest.mark.skipif(WANDB is None, reason="the wandb command is not installed")
def test_offline_run_read_back(log, folder, environment):
    inspect = [WANDB, "leet", "inspect", str(log), "--json"]
    records = [json.loads(line) for line in run(inspect, folder, environment).splitlines()]

    (start,) = (record["run"] for record in records if record["type"] == "run")
    assert (start["display_name"], start["run_group"]) == ("seed0", "seeds")

    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    keys = set().union(*history)
    assert keys >= {"train/loss", "train/loss_step", "train/lr", "val/loss", "val/top1"}
    assert [row["trainer/global_step"] for row in history if "train/lr" in row] == [1, 3]

    summary = json.loads(run([*inspect, "--summary"], folder, environment))
    assert summary["config"]["task"] == "classification"
    assert summary["config"]["model"]["network"]["init_args"]["num_classes"] == 10

    (panel,) = (row for row in history if "val/panel.filenames" in row)
    (name,) = panel["val/panel.filenames"]
    assert (log.parent / "files" / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.glob("runs/seed0/pictures/val_panel_*.png"))) == 1


def test_a_continued_run_keeps_its_id(log, folder, environment):
    fit(folder, environment, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    names = [path.name for path in log.parents[1].glob("offline-run-*")]
    assert len(names) == 2
    assert len({name.rpartition("-")[2] for name in names}) == 1
