"""The command: start-up, one-line errors, run folders, processes."""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torchvision.utils import save_image

from attention_vision.__main__ import main
from attention_vision.attention import kernel
from attention_vision.errors import ConfigError, InputError
from attention_vision.runs import load_run
from attention_vision.runs.command import Trainer, build, parse
from attention_vision.training.early_signals import KEPT
from attention_vision.training.progress import ProgressLines

EXPERIMENT = """
trainer: {max_epochs: 1, limit_train_batches: 4, accelerator: cpu, devices: 1, log_every_n_steps: 2}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 32}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 1, heads: 2}
"""
DETECTION = """
trainer: {max_epochs: 1, limit_train_batches: 1, limit_val_batches: 0, accelerator: cpu, devices: 1}
data: {class_path: DigitScenes, init_args: {scenes: 2, val_scenes: 1, batch_size: 2}}
model:
  class_path: RCNNDetector
  init_args:
    network:
      class_path: AttentionRCNN
      init_args:
        pyramid_channels: 8
        backbone: {class_path: ResNet, init_args: {depth: 8, width: 8, dilation: true}}
"""
SPEC = "init_args: {image_size: 16"
MULTI_HEAD = "{class_path: MultiHeadAttention"
ADAMW = "  optimizer: {class_path: torch.optim.AdamW"
SLURM = str(Path(__file__).parents[1] / "experiments/profiles/slurm.yaml")
CLAIM = "claim: {source: A paper, metric: val/top1"
TWO_PROCESSES = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    Path("experiment.yaml").write_text(EXPERIMENT)


def attention_vision(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "attention_vision", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def fit(*arguments: str) -> int:
    return main(["classification", "fit", "-c", "experiment.yaml", *arguments])


# Start-up


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_answers_at_once(flag):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        answer = attention_vision(flag)
        seconds.append(time.perf_counter() - start)
        assert answer.returncode == 0
        assert "attention-vision" in answer.stdout
    assert min(seconds) < 0.7


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["clasification"], "unknown task 'clasification'; did you mean classification?"),
        (["classification", "fitt"], "unknown verb 'fitt'; did you mean fit?"),
        (["xyz"], "unknown task 'xyz'; known: classification"),
    ],
)
def test_unknown_word(arguments, line, capsys):
    assert main(arguments) == 2
    assert line in capsys.readouterr().err


def test_help_of_a_verb(capsys):
    with pytest.raises(SystemExit) as end:
        main(["classification", "fit", "--help"])
    assert end.value.code == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


# One-line errors: old -> new in the file, or a line added to it; then what the message says

WRONG_FILES = [
    ("max_epochs", "max_epoch", "no key trainer.max_epoch; did you mean trainer.max_epochs?"),
    ("trainer:", "trianer:", "no key trianer.max_epochs; did you mean trainer.max_epochs?"),
    ("network:", "netwrk:", "did you mean model.network."),
    ("patch_size", "patchsize", "did you mean model.network.patch_size?"),
    ("batch_size", "batchsize", "no key data.batchsize; did you mean data.batch_size?"),
    (
        "class_path: ViT",
        "class_path: VitT",
        "model.network: there is no class VitT; did you mean ViT?",
    ),
    ("class_path: ViT", "class_path: attention_vision.backbones.Vit", "did you mean ViT?"),
    (
        "class_path: ViT",
        "class_path: torch.nn.Linear",
        "is not a Backbone; known: CCT, CompactResNet, EfficientNet, ResNet, Swin, ViT",
    ),
    ("class_path: ViT", "class_pth: ViT", "did you mean model.network.class_path?"),
    ("class_path: ViT", "class_path: ViT\n    depth: 3", "depth stands beside class_path"),
    (SPEC, "init_arg: {image_size: 16", "did you mean data.init_args.image_size?"),
    ("Digits", "Digit", "data: there is no class Digit; did you mean Digits?"),
    ("width: 16", "width: wide", "model.network.width: expected int, got 'wide'"),
    ("width: 16", "attention: MultiHedAttention", "did you mean MultiHeadAttention?"),
    (
        "width: 16",
        f"attention: {MULTI_HEAD}, init_args: {{dropuot: 0.1}}}}",
        "mean model.network.attention.dropout?",
    ),
    (
        "width: 16",
        "position: relativ",
        "position: expected absolute, relative or none, got 'relativ'; did you mean relative?",
    ),
    ("image_size: 16, batch", "recipe: {filp: 0.5}, batch", "did you mean data.recipe.flip?"),
    ("", "  optimizer: AdamWW", "model.optimizer: there is no class AdamWW; did you mean AdamW?"),
    (
        "",
        f"{ADAMW}, init_args: {{lrr: 0.1}}}}",
        "no key model.optimizer.lrr; did you mean model.optimizer.lr?",
    ),
    ("", f"{ADAMW}, init_args: {{lr: fast}}}}", "model.optimizer.lr: expected float, got 'fast'"),
    ("", "seed_everythin: 3", "no key seed_everythin; did you mean seed_everything?"),
    (
        "",
        "attention_backend: fuse",
        "expected fused, eager or fp8, got 'fuse'; did you mean fused?",
    ),
    ("", "task: detection", "experiment.yaml is for `attention-vision detection`"),
    ("", f"{CLAIM}}}", "missing: claim.reported"),
    ("", f"{CLAIM}, reported: high}}", "claim.reported: expected float, got 'high'"),
    ("", f"{CLAIM}, reportd: 0.9}}", "no key claim.reportd; did you mean claim.reported?"),
    ("accelerator: cpu", "callbacks: {class_path: EarlyStoping}", "did you mean EarlyStopping?"),
    ("accelerator: cpu", "logger: {class_path: CSVLoger}", "did you mean CSVLogger?"),
    ("accelerator: cpu", "precision: bf17", "trainer.precision: expected int"),
    ("trainer: {", "trainer: {{", "experiment.yaml, line 3, column 1: not valid YAML"),
    (EXPERIMENT, "a sentence", "experiment.yaml: expected keys and values, found str"),
]
WRONG_FLAGS = [
    ("--trainer.max_epoch 3", "no key --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ("--modle.mixup 0.1", "no key --modle.mixup; did you mean --model.mixup?"),
    ("--max_epochs 3", "no key --max_epochs; did you mean --trainer.max_epochs?"),
    ("--model.network.depht 3", "no key model.network.depht; did you mean model.network.depth?"),
    ("--data.batch_size x", "data.batch_size: expected int, got 'x'"),
    ("--trainer.max_epochs three", "trainer.max_epochs: expected int or null, got 'three'"),
    (
        "--model.optimizer.class_path torch.optim.Adamw",
        "model.optimizer: there is no class torch.optim.Adamw; did you mean AdamW?",
    ),
    (
        "--trainer.logger.group x",
        "trainer.logger.group: no class is chosen for trainer.logger; add -c experiments/profiles/",
    ),
    (
        # The whole path: timm, once another test has imported it, has classes of that name too.
        "--model.network ResNet "
        "--model.network.attention attention_vision.attention.WindowAttention",
        "model.network.attention: WindowAttention is a token attention (width, heads); ResNet takes"
        " a feature attention (channels)",
    ),
    ("--data CIFAR1O", "data: there is no class CIFAR1O; did you mean CIFAR10?"),
    ("--model.network ViTT", "model.network: there is no class ViTT; did you mean ViT?"),
    ("-c nowhere.yaml", "no such file:"),
    ("-c .", " is a folder: give a file in it"),
    ("--batch_size 8", "no key --batch_size; did you mean --data.batch_size?"),
    ("--learning-rate 1", "no key --learning-rate; did you mean --model.optimizer.lr?"),
    ("--epochs 8", "no key --epochs; did you mean --trainer.max_epochs?"),
    ("--seed 8", "no key --seed; did you mean --seed_everything?"),
    ("--model.schedule null", "model.schedule: expected a class, got null"),
    ("--trainer.max_epochs", "--trainer.max_epochs: expected one argument"),
    ("leftover", "unexpected 'leftover'"),
]


def config_error(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse("classification", "fit", list(arguments))
    return str(error.value)


@pytest.mark.parametrize(("old", "new", "line"), WRONG_FILES)
def test_mistake_in_a_file(old, new, line):
    wrong = EXPERIMENT.replace(old, new) if old else f"{EXPERIMENT}{new}\n"
    assert wrong != EXPERIMENT
    Path("experiment.yaml").write_text(wrong)
    message = config_error("-c", "experiment.yaml")
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize(("flags", "line"), WRONG_FLAGS)
def test_mistake_in_a_flag(flags, line):
    message = config_error("-c", "experiment.yaml", *flags.split())
    assert line in message
    assert "\n" not in message


def test_a_file_in_the_place_of_a_class():
    given = yaml.safe_load(EXPERIMENT)
    Path("network.yaml").write_text(yaml.safe_dump(given["model"]["network"]))
    Path("experiment.yaml").write_text(
        yaml.safe_dump(given | {"model": {"network": "network.yaml"}})
    )
    (parsed, inline) = (
        parse("classification", "fit", ["-c", "experiment.yaml", *flags]).config.model.network
        for flags in ([], ["--model.network", "network.yaml"])
    )
    assert parsed.init_args.width == inline.init_args.width == 16


def test_merge_keys_and_anchors_of_yaml():
    Path("more.yaml").write_text(
        "trainer:\n  <<: {max_epochs: 7}\n  <<: {limit_train_batches: 1}\n"
        "data:\n  class_path: Digits\n  init_args: &size {<<: {image_size: 8}, batch_size: 4}\n"
    )
    config = parse("classification", "fit", ["-c", "experiment.yaml", "-c", "more.yaml"]).config
    assert (config.trainer.max_epochs, config.trainer.limit_train_batches) == (7, 1)
    assert (config.data.init_args.image_size, config.data.init_args.batch_size) == (8, 4)


def test_a_key_given_twice():
    Path("twice.yaml").write_text("trainer: {max_epochs: 1, max_epochs: 2}\n")
    assert "twice.yaml, line 1, column 26: not valid YAML: duplicate key 'max_epochs'" in (
        config_error("-c", "experiment.yaml", "-c", "twice.yaml")
    )


def test_nothing_given():
    assert "missing: model.network, data" in config_error()


def test_a_mistake_ends_in_few_lines(capfd):
    assert fit("--trainer.max_epoch=3") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) <= 6
    assert "--trainer.max_epoch;" in lines[-1]
    assert "--trainer.max_epochs?" in lines[-1]


def test_two_processes_tell_bad_data_once():
    flags = ["--data", "CIFAR10", "--data.root", "nowhere", "--run", "run", *TWO_PROCESSES]
    answer = attention_vision("classification", "fit", "--model.network", "ViT", *flags)
    assert answer.returncode == 1
    assert answer.stderr.count("attention-vision: error: CIFAR10: no readable data in nowhere") == 1
    assert "Traceback" not in answer.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--model.network.num_classes 7", "num_classes is 7, but Digits has 10 classes"),
        ("--model.network.patch_size 5", "image_size 16 is not a multiple of patch_size 5"),
        ("--data CIFAR10 --data.root nowhere", "CIFAR10: no readable data in nowhere"),
        ("--data ImageFolder --data.root nowhere", "no class folders in nowhere/train"),
        ("--model.network.heads 3", "ViT: width 16 is not a multiple of heads 3"),
        ("--model.network.attention CBAM", "ViT: attention CBAM does not map (1, 17, 16) to"),
        ("--trainer.strategy dpp", "trainer: You selected an invalid strategy name"),
        ("--ckpt_path last", "--ckpt_path last: of which run?"),
        ("--ckpt_path last --run nowhere", "no checkpoint nowhere/checkpoints/last.ckpt"),
        ("--run experiment.yaml", "--run experiment.yaml is a file: give the folder of the run"),
        ("--claim.source x --claim.metric top1 --claim.reported 1", "'top1' is not a logged key"),
    ],
)
def test_bad_input_in_one_line(flags, line, capsys):
    assert fit(*flags.split()) == 1
    errors = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    assert len(errors) == 1
    assert line in errors[0]


# A chosen class has no argument that was meant for another one


def optimizer(*flags: str) -> torch.optim.Optimizer:
    parsed = parse("classification", "fit", ["-c", "experiment.yaml", *flags])
    model = build(parsed).module
    return model.optimizer([torch.zeros(1, requires_grad=True)])


@pytest.mark.parametrize(
    ("flags", "kind", "lr", "weight_decay"),
    [
        ("", torch.optim.AdamW, 1e-3, 0.01),
        ("--model.optimizer.lr 0.1", torch.optim.AdamW, 0.1, 0.01),
        ("--model.optimizer SGD", torch.optim.SGD, 1e-3, 0),
        ("--model.optimizer SGD --model.optimizer.lr 0.1", torch.optim.SGD, 0.1, 0),
        ("--model.optimizer.lr 0.1 --model.optimizer SGD", torch.optim.SGD, 0.1, 0),
        ("--model.optimizer AdamW --model.optimizer SGD", torch.optim.SGD, 1e-3, 0),
        ("--model.optimizer SGD --model.optimizer AdamW", torch.optim.AdamW, 1e-3, 0.01),
    ],
)
def test_an_optimizer_has_its_own_defaults(flags, kind, lr, weight_decay):
    chosen = optimizer(*flags.split())
    assert type(chosen) is kind
    assert (chosen.defaults["lr"], chosen.defaults["weight_decay"]) == (lr, weight_decay)


def test_an_optimizer_in_a_file_has_its_own_defaults():
    Path("experiment.yaml").write_text(f"{EXPERIMENT}  optimizer: {{class_path: torch.optim.SGD}}")
    assert optimizer().defaults["weight_decay"] == 0
    assert optimizer("--model.optimizer.weight_decay=0.1").defaults["weight_decay"] == 0.1
    assert optimizer("--model.optimizer=AdamW").defaults["weight_decay"] == 0.01


def test_printed_config_is_whole(capsys):
    def printed(flags: str) -> dict:
        with pytest.raises(SystemExit):
            fit("--model.optimizer=SGD", flags)
        return yaml.safe_load(capsys.readouterr().out)["model"]

    whole, changed = printed("--print_config"), printed("--print_config=skip_default")
    assert whole["optimizer"]["init_args"].items() >= {"lr": 1e-3, "weight_decay": 0.0}.items()
    assert whole["schedule"]["init_args"] == {"warmup_epochs": 0.0, "min_lr": 0.0}
    assert whole["network"]["init_args"]["attention"]["init_args"]["bias"] is True
    assert changed["optimizer"] == {"class_path": "torch.optim.SGD"}
    assert changed.keys() == {"network", "optimizer"}
    assert "attention" not in changed["network"]["init_args"]


@pytest.mark.parametrize(("head", "hidden"), [("AttentionBoxHead", 512), ("PlainBoxHead", 1024)])
def test_a_class_inside_a_class_has_its_own_defaults_and_is_saved(head, hidden):
    given = yaml.safe_load(DETECTION)
    if head != "AttentionBoxHead":  # the default
        given["model"]["init_args"]["network"]["init_args"]["head"] = {"class_path": head}
        given["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD"}
    Path("detection.yaml").write_text(yaml.safe_dump(given))
    assert main(["detection", "fit", "-c", "detection.yaml", "--run", "run"]) == 0

    saved = yaml.safe_load(Path("run/config.yaml").read_text())["model"]["init_args"]
    assert saved["network"]["init_args"]["head"]["init_args"] == {"hidden": hidden}
    loaded = load_run("run", "last")
    assert type(loaded.network.roi_heads.box_head).__name__ == head
    again = parse("detection", "fit", ["-c", "run/config.yaml", "--run", "again"])
    rebuilt = build(again).module.state_dict()
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in rebuilt.items()
    }
    config = yaml.safe_load(again.parser.dump(again.config, skip_unset=False))
    assert config["model"]["init_args"]["optimizer"] == saved["optimizer"]
    assert saved["optimizer"]["init_args"]["weight_decay"] == (0.01 if hidden == 512 else 0)


# Run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    arguments = ["-c", str(folder / "experiment.yaml"), "--run", str(folder / "run")]
    assert main(["classification", "fit", *arguments]) == 0
    return folder / "run"


@pytest.fixture
def run(finished):
    """A copy of it, at another place than its config says."""
    return Path(shutil.copytree(finished, "moved/run"))


def test_run_folder_holds_the_run(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*.*")}
    assert names >= {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["task"] == "classification"
    assert config["model"]["network"]["init_args"]["num_classes"] == 10
    assert not {"config", "ckpt_path"} & config.keys()
    for file in finished.glob("checkpoints/*.ckpt"):
        torch.load(file, weights_only=True)


def test_a_run_without_pictures(capsys):
    assert fit("--run", "run", "--pictures=false") == 0
    said, best = capsys.readouterr().out, torch.load("run/checkpoints/best.ckpt", weights_only=True)
    (state,) = (one for name, one in best["callbacks"].items() if name.startswith("BestCheckpoint"))
    score = f"best val/top1 {float(state['best_model_score']):.4g}"
    assert f"{score}: run/checkpoints/best.ckpt\nfinished: run\n" in said
    assert not Path("run/pictures").exists()
    assert yaml.safe_load(Path("run/config.yaml").read_text())["pictures"] is False


def test_a_run_is_not_overwritten(finished, capsys):
    assert main(["classification", "fit", "-c", str(finished / "config.yaml")]) == 1
    assert "contains a run: resume it by --ckpt_path last" in capsys.readouterr().err


def test_arguments_kept_from_another_class_are_said(capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    network = "{class_path: ResNet, init_args: {depth: 10, width: 8, attention: ATTENTION}}"
    attention = "{class_path: SqueezeExcite, init_args: {reduction: 4}}"
    text = yaml.safe_load(EXPERIMENT) | {
        "model": {"network": yaml.safe_load(network.replace("ATTENTION", attention))}
    }
    Path("experiment.yaml").write_text(yaml.safe_dump(text))
    assert fit() == 0
    assert " keeps " not in capsys.readouterr().out
    said = "model.network.attention: CBAM keeps reduction 4, given for SqueezeExcite\n"
    for flag in ("attention", "init_args.attention", "attention.class_path"):
        assert fit(f"--model.network.{flag}", "CBAM") == 0
        assert said in capsys.readouterr().out
    assert fit("--model.network.attention=CBAM", "--model.network.attention.reduction=8") == 0
    assert " keeps " not in capsys.readouterr().out
    Path("change.yaml").write_text("model: {network: {init_args: {attention: CBAM}}}")
    assert fit("-c", "change.yaml") == 0
    assert said in capsys.readouterr().out


def test_a_run_that_crashed_before_its_first_checkpoint_begins_anew(run):
    shutil.rmtree(run / "checkpoints")
    assert main(["classification", "fit", "-c", f"{run}/config.yaml"]) == 0
    assert (run / "checkpoints/last.ckpt").is_file()
    steps = [row.split(",")[1] for row in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == ["1", "3"]


def test_default_run_folder_is_new_each_time(monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert fit() == fit() == 0
    runs = sorted(path.name for path in Path("runs/classification").iterdir())
    assert len(runs) == 2
    assert all("_experiment" in name for name in runs)


def test_a_run_continues_in_its_folder(run):
    flags = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main(["classification", "fit", "-c", f"{run}/config.yaml", *flags]) == 0
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [
        ["0", "1"],
        ["0", "3"],
        ["1", "5"],
        ["1", "7"],
    ]
    assert yaml.safe_load((run / "config.yaml").read_text())["run"] == str(run)


def test_a_moved_run_keeps_its_best(run):
    """The best checkpoint stays when the epochs after the move are worse."""
    best, last = run / "checkpoints/best.ckpt", run / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    (keeper,) = (value for value in state["callbacks"].values() if value.get("monitor"))
    keeper["best_k_models"] = {path: torch.tensor(2.0) for path in keeper["best_k_models"]}
    torch.save(state, last)
    before = best.read_bytes()
    flags = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main(["classification", "fit", "-c", f"{run}/config.yaml", *flags]) == 0
    assert best.read_bytes() == before


class Signal(Callback):
    """Sends a signal in the middle of a step, as SLURM does, a terminal or `timeout`.

    Args:
        number: the signal.
        step: optimizer steps before it; -1 for never.
        group: send it to the loaders too.
        times: how often.
        validation: send it in the first validation after the step instead.
    """

    def __init__(
        self,
        number: int = int(signal.SIGUSR1),
        step: int = 5,
        group: bool = False,
        times: int = 1,
        validation: bool = False,
    ):
        self.number, self.step, self.group = number, step, group
        self.times, self.validation = times, validation

    def on_before_backward(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not self.validation:
            self.send()

    def on_validation_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step > self.step and self.validation:
            self.send()

    def send(self) -> None:
        for _ in range(self.times):
            if self.group:
                os.killpg(os.getpgrp(), self.number)
            else:
                os.kill(os.getpid(), self.number)


def signalled(**arguments: object) -> str:
    """The flag of a trainer with this `Signal`."""
    callback = {"class_path": f"{Signal.__module__}.Signal", "init_args": arguments}
    return f"--trainer.callbacks={json.dumps([callback])}"


def forked_fit(*arguments: str) -> int | None:
    """The exit code of a fit in a process group of its own."""

    def fit_in_a_group() -> None:
        os.setpgrp()
        sys.exit(fit(*arguments))

    process = multiprocessing.get_context("fork").Process(target=fit_in_a_group)
    process.start()
    process.join()
    return process.exitcode


WHOLE = [
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=50",  # one row an epoch, at its end
    "--model.mixup=0.4",
    "--data.num_workers=1",
    "--run",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    words = ["-c", str(folder / "experiment.yaml"), *WHOLE, str(folder / "run")]
    assert main(["classification", "fit", *words]) == 0
    return folder / "run"


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights and curves are equal bit by bit."""
    states, curves = [], []
    for one in (run, whole):
        state = torch.load(one / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        states.append(state)
        with (one / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        curves.append([{key: row[key] for key in row if "per_second" not in key} for row in rows])
    assert curves[0] == curves[1]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_requeued_job_equals_one_that_was_not_stopped(tmp_path, monkeypatch, whole):
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued\nkill -9 $PPID\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for key in ("NTASKS", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{key}", str(int(key == "NTASKS")))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = [*WHOLE, "job", "-c", SLURM, "--trainer.strategy=auto", signalled()]

    assert forked_fit(*job) == -signal.SIGKILL
    assert Path("requeued").read_text() == "requeue 7\n"
    assert torch.load("job/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert fit(*job) == 1  # a job that was not in the queue before
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(*job) == 0
    assert_same_run(Path("job"), whole)


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],  # Ctrl-C reaches the loader too
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_run_stopped_by_a_signal_resumes_from_its_step(number, group, code, whole, capfd):
    flag = signalled(number=int(number), group=group)
    assert forked_fit(*WHOLE, "run", flag) == code
    output, errors = capfd.readouterr()
    assert "stopped: resume with attention-vision classification fit -c run/config.yaml" in output
    assert "Traceback" not in errors
    assert ("stopping: last.ckpt is saved after this step" in errors) == (number == signal.SIGINT)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert fit(*WHOLE, "run", "--ckpt_path=last", signalled(step=-1)) == 0
    assert_same_run(Path("run"), whole)


@pytest.mark.parametrize(
    ("flags", "sent", "code", "step"),
    [
        ("", {"number": signal.SIGINT, "step": 4, "times": 2}, 130, 4),  # the second ends at once
        ("", {"number": signal.SIGINT, "step": 4, "validation": True}, 130, 4),
        ("--trainer.limit_val_batches=0", {"number": signal.SIGINT, "step": 3}, 130, 4),
        ("", {"number": signal.SIGTERM, "step": 0, "validation": True}, 143, None),
        ("", {"number": signal.SIGUSR1, "step": 1}, 138, 2),
    ],
)
def test_a_signal_ends_a_run_with_its_code(flags, sent, code, step, capsys):
    """The last checkpoint is of this step: an epoch's end has one, a validation has none."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stopped:
        fit("--run", "run", "--trainer.max_epochs=2", signalled(**sent), *flags.split())
    assert stopped.value.code == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    output = capsys.readouterr().out
    if step is None:
        assert output.endswith("stopped before the first checkpoint\n")
        assert not Path("run/checkpoints/last.ckpt").exists()
    else:
        assert output.endswith("fit -c run/config.yaml --ckpt_path last\n")
        saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == step


def test_a_signal_ends_a_measurement(run, capsys):
    flag = signalled(number=int(signal.SIGTERM), step=-1, validation=True)
    with pytest.raises(SystemExit) as stopped:
        main(["classification", "validate", "-c", f"{run}/config.yaml", flag, "--trust"])
    assert stopped.value.code == 143
    assert not (run / "validate.json").exists()


def test_a_run_in_a_thread_leaves_signals_alone():
    """A thread cannot set handlers, not even in the place of the one that `main` has left."""
    before = signal.signal(signal.SIGUSR1, KEPT)
    try:
        codes: list[int | None] = []
        thread = threading.Thread(target=lambda: codes.append(fit("--run", "run")))
        thread.start()
        thread.join()
        assert codes == [0]
        assert signal.getsignal(signal.SIGUSR1) is KEPT
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_before_a_run_has_begun(monkeypatch, capsys):
    monkeypatch.setattr("attention_vision.runs.command.build", lambda *_: os.kill(os.getpid(), 2))
    assert fit() == 130
    assert capsys.readouterr().err == "attention-vision: stopped\n"


def digit_folders(root: Path, split: str, numbers: str) -> None:
    """One image of each digit in ROOT/SPLIT/DIGIT."""
    for number in numbers:
        (root / split / number).mkdir(parents=True)
        save_image(torch.rand(3, 16, 16), root / split / number / "0.png")


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_measuring_a_run(run, verb, capsys):
    before = (run / "metrics.csv").read_text()
    split = "val" if verb == "validate" else verb
    digit_folders(Path("folders"), split, "0279")
    other = ["--data.class_path", "ImageFolder", "--data.root", "folders", "--data.num_workers=0"]
    assert main(["classification", verb, "-c", f"{run}/config.yaml", *other]) == 0
    report = json.loads((run / f"{verb}.json").read_text())
    assert report["checkpoint"] == str(run / "checkpoints/best.ckpt")
    assert 0 <= report["metrics"][f"{split}/top1"] <= 1
    assert report["images"] == 4
    assert f"checkpoint: {run}/checkpoints/best.ckpt" in capsys.readouterr().out
    assert (run / "metrics.csv").read_text() == before


def test_without_a_test_split_nothing_is_measured(run, capsys):
    assert main(["classification", "test", "-c", f"{run}/config.yaml"]) == 1
    assert "Digits has no test split here, nothing to test on" in capsys.readouterr().err
    assert not (run / "test.json").exists()


def test_measuring_a_part_says_so(run, capsys):
    flags = ["--trainer.limit_val_batches", "3"]
    assert main(["classification", "validate", "-c", f"{run}/config.yaml", *flags]) == 0
    assert "validate.json (96 of 355 images: trainer.limit_" in capsys.readouterr().out
    assert json.loads((run / "validate.json").read_text())["images"] == 96


def test_predicting_says_what_it_wrote(run, capsys):
    Path("photographs").mkdir()
    save_image(torch.rand(3, 16, 16), "photographs/a.png")
    flags = ["--data.images", "photographs"]
    assert main(["classification", "predict", "-c", f"{run}/config.yaml", *flags]) == 0
    assert f"written: {run}/predictions.csv" in capsys.readouterr().out
    assert (run / "predictions.csv").is_file()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_measuring_without_a_checkpoint(verb, run, capsys):
    assert main(["classification", verb, "-c", "experiment.yaml"]) == 1
    assert f"no checkpoint to {verb}: give -c RUN/config.yaml" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["classification", verb, "-c", f"{run}/config.yaml"]) == 1
    assert (
        f"no checkpoint to {verb}: {run} does not contain one, train it" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "flags",
    [
        "--weights nowhere.pth",  # found out when config.yaml is written
        "--data.batch_size 4000",
        "--trainer.strategy dpp",  # before the trainer is there
    ],
)
def test_a_start_that_fails_leaves_no_new_folder(flags, run):
    assert fit("--run", "new", *flags.split()) == 1
    assert not Path("new").exists()
    (run / "checkpoints/last.ckpt").unlink()
    (run / "checkpoints/best.ckpt").unlink()
    before = sorted(run.rglob("*"))
    assert fit("--run", str(run), *flags.split()) == 1
    assert sorted(run.rglob("*")) == before
    Path("old").mkdir()
    assert fit("--run", "old", *flags.split()) == 1
    assert Path("old").is_dir()


def test_checkpoint_of_another_model(run, capsys):
    flags = ["--model.network.width", "32"]
    assert main(["classification", "validate", "-c", f"{run}/config.yaml", *flags]) == 1
    assert "is of another model" in capsys.readouterr().err


def test_damaged_checkpoint(run, capsys):
    (run / "checkpoints/best.ckpt").write_text("junk")
    assert main(["classification", "validate", "-c", f"{run}/config.yaml"]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_load_run(run):
    state = torch.get_rng_state()
    module = load_run(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training
    saved = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


def test_load_run_before_the_first_validation(run):
    (run / "checkpoints/best.ckpt").unlink()
    with pytest.warns(UserWarning, match="no best checkpoint yet: loading last"):
        assert not load_run(run).training


def test_load_run_needs_no_data(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {"class_path": "ImageFolder", "init_args": {"root": "nowhere"}}
    config["model"]["weights"] = "nowhere.pth"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_run(run, "last").network.num_classes == 10


@pytest.mark.parametrize("checkpoint", ["middle", "nowhere.ckpt"])
def test_load_run_names_what_is_missing(run, checkpoint):
    with pytest.raises(InputError, match=r"no checkpoint .*: .* has best, last"):
        load_run(run, checkpoint)
    with pytest.raises(InputError, match="does not contain a run"):
        load_run("nowhere")


@pytest.mark.parametrize("file", ["config.yaml", "checkpoints/best.ckpt"])
def test_load_run_wants_the_folder(run, file):
    with pytest.raises(InputError, match=rf"{file} is a file: give the folder of the run, {run}$"):
        load_run(run / file)


def test_saved_config_is_the_run(run):
    """Fitting the saved config again, in a new folder, gives the same weights."""
    assert main(["classification", "fit", "-c", f"{run}/config.yaml", "--run", "again"]) == 0
    first, second = (load_run(folder, "last").state_dict() for folder in (run, "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_attention_backend_holds_for_the_run(monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: seen.append(kernel._backend))
    assert fit("--attention_backend", "eager") == 0
    assert seen == ["eager"]
    assert kernel._backend == "fused"


def losses(output: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, output)]


def epoch_losses(run: str) -> list[float]:
    with open(f"{run}/metrics.csv", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(
        ProgressLines.__init__.__wrapped__, "__defaults__", (0.0,)
    )  # a line for each batch
    assert fit("--run", "run", "--trainer.max_epochs=2") == 0
    output = capsys.readouterr().out
    assert "parameters: 4,554\n" in output
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 10
    assert all(re.search(r"  [\d,]+ images/s  \d+ s", line) for line in lines)
    assert [" to go" in line for line in lines] == [True] * 8 + [False] * 2
    inside, ends = r"epoch \d/2  4/4  train/loss (\S+)", r"epoch \d/2  train/loss (\S+)"
    assert losses(output, inside) == losses(output, ends)  # this epoch's, not the last one's
    assert losses(output, ends) == pytest.approx(epoch_losses("run"), abs=5e-4)
    assert "val/top1 " in lines[4]
    assert "val/" not in lines[5]
    assert "validation  12/12\n" in output


def test_progress_on_a_terminal(capsys):
    assert fit("--run", "run", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=true") == 0
    bars = capsys.readouterr().out.split("\r")
    pattern = r"epoch (\d)/2: 100%.* 4/4, loss=(\S+), images/s=\d+"
    shown = {found[1]: float(found[2]) for bar in bars if (found := re.match(pattern, bar))}
    assert list(shown.values()) == pytest.approx(epoch_losses("run"), abs=5e-3)
    assert any("epoch 1/2: 100%" in bar and "to go=" in bar for bar in bars)


def test_a_run_shorter_than_the_interval_is_logged():
    flags = "--trainer.max_epochs=2 --trainer.limit_train_batches=3 --trainer.log_every_n_steps=4"
    assert fit("--run", "run", *flags.split()) == 0
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # Step 3 is one of the interval: the second epoch needs no further row.
    assert [int(row["step"]) for row in rows if row["train/loss_step"]] == [2, 3]
    assert all(float(row["train/lr"]) and row["train/images_per_second"] for row in rows[:2])


STOPPING = """
import os
import signal

from lightning.pytorch import Callback


class SecondProcess(Callback):
    def on_before_backward(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_two_processes_share_one_run_folder_and_stop_at_one_step():
    Path("stopping.py").write_text(STOPPING)
    flags = ["-c", "experiment.yaml", "--trainer.callbacks=stopping.SecondProcess", *TWO_PROCESSES]
    answer = attention_vision("classification", "fit", *flags, SLURM_JOB_ID="")
    assert answer.returncode == 128 + signal.SIGTERM, answer.stderr
    assert "Traceback" not in answer.stderr
    (run,) = Path("runs/classification").iterdir()
    assert answer.stdout.endswith(
        f"stopped: resume with attention-vision classification fit -c "
        f"{run}/config.yaml --ckpt_path last\n"
    )
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
