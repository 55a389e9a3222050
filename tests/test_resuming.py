"""A resumed run: what changes, what is refused, what one long run would have done."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from torch import Tensor, nn
from torch.optim import lr_scheduler

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.runs.resume import (
    differences,
    flags_of_run,
    refusal,
    rule_of,
    split_words,
    table,
)
from attention_vision.training.changes import ApplyChanges, Change
from attention_vision.training.checkpoint_io import AtomicCheckpointIO
from attention_vision.training.optim import (
    EpochWarmupCosine,
    StepOnPlateau,
    WarmupCosine,
    configure,
)
from attention_vision.training.run_folder import new_run, remove_empty
from attention_vision.training.run_lock import RunLock

EXPERIMENT = """
threads: 1
pictures: false
trainer: {accelerator: cpu, devices: 1, limit_train_batches: 4, limit_val_batches: 1,
  num_sanity_val_steps: 0, log_every_n_steps: 1, max_epochs: 1}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 8, num_workers: 0}}
model:
  mixup: 0.4
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}
  schedule: {class_path: torch.optim.lr_scheduler.ConstantLR, init_args: {factor: 1.0}}
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 8, width: 16, depth: 1, heads: 2}
"""
GAN = """
threads: 1
pictures: false
trainer: {accelerator: cpu, devices: 1, limit_train_batches: 4, limit_val_batches: 0,
  num_sanity_val_steps: 0, log_every_n_steps: 1, max_epochs: -1}
data: {class_path: DigitImages, init_args: {size: 16, batch_size: 4, num_workers: 0}}
model:
  class_path: SAGAN
  init_args:
    generator: {class_path: Generator, init_args: {size: 16, width: 4, attention_at: [8]}}
    discriminator: {class_path: Discriminator, init_args: {size: 16, width: 4}}
    discriminator_steps: 2
    ema_decay: 0.9
    scorer: {class_path: Unscored}
"""
DETECTION = """
threads: 1
pictures: false
trainer: {accelerator: cpu, devices: 1, limit_train_batches: 4, limit_val_batches: 0,
  num_sanity_val_steps: 0, log_every_n_steps: 1, max_epochs: -1}
data: {class_path: DigitScenes,
  init_args: {scenes: 8, val_scenes: 1, batch_size: 2, num_workers: 0}}
model:
  class_path: DETRDetector
  init_args:
    schedule: {class_path: torch.optim.lr_scheduler.ConstantLR, init_args: {factor: 1.0}}
    network:
      class_path: DETR
      init_args: {num_queries: 6, width: 8, heads: 2, encoder_layers: 1, decoder_layers: 2,
        hidden: 8, backbone: {class_path: ResNet, init_args: {depth: 8, width: 4}}}
"""
FILES = {"classification": EXPERIMENT, "detection": DETECTION, "generation": GAN}
FROM_RUN = ["-c", "run/config.yaml", "--ckpt_path=last"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for task, text in FILES.items():
        Path(f"{task}.yaml").write_text(text)


def fit(*words: str, task: str = "classification") -> int:
    if "-c" not in words:
        words = ("-c", f"{task}.yaml", *words)
    return main([task, "fit", *words])


def rows(run: str) -> list[dict[str, str]]:
    with open(f"{run}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: str, name: str = "last") -> dict[str, Tensor]:
    return torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(run: str, other: str) -> None:
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], value) for name, value in two.items())


def files(run: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}


# What may change


def test_the_documentation_has_the_table():
    guide = Path(__file__).parents[1] / "docs/guides/resuming.md"
    assert table() in guide.read_text(), f"copy the table into {guide}:\n{table()}"


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("model.optimizer", "refused"),
        ("model.generator_optimizer.lr", "applied"),
        ("model.generator.width", "refused"),
        ("model.class_weights", "applied"),
        ("model.no_weight_decay", "applied"),
        ("model.weights", "refused"),
        ("model.ema_decay", "applied, not to or from 0"),
        ("data.batch_size", "at an epoch's end"),
        ("data.root", "applied"),
        ("data.count", "applied"),
        ("data.degrade", "applied"),
        ("data.split.val", "refused"),
        ("seed_everything", "refused"),
        ("trainer.max_epochs", "applied"),
        ("trainer.devices", "at an epoch's end"),
        ("trainer.callbacks.0.patience", "applied"),
    ],
)
def test_the_rule_of_a_key(key, effect):
    assert rule_of(key).effect == effect


def test_effects_of_changes():
    assert refusal("model.ema_decay", Change(0.9, 0.99), inside=True) is None
    assert "averaged" in (refusal("model.ema_decay", Change(0.9, 0.0), inside=False) or "")
    assert refusal("data.batch_size", Change(8, 16), inside=False) is None
    assert "inside" in (refusal("data.batch_size", Change(8, 16), inside=True) or "")


def test_differences_of_configs():
    node = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    other = {"class_path": "AdamW", "init_args": {"lr": 0.2, "eps": 1e-8}}
    found = differences({"model": {"optimizer": node}, "run": "a"}, {"model": {"optimizer": other}})
    assert found == {"model.optimizer": ("SGD", "AdamW")}  # the rest follows from it
    assert differences({"model": {"x": None}}, {"model": {"x": node}}) == {"model.x": (None, "SGD")}
    added = {"trainer": {"callbacks": [node]}}
    assert differences({"trainer": {"callbacks": None}}, added).keys() == {"trainer.callbacks"}
    assert differences({"a": 1}, {"a": 1, "b": 2}) == {"b": (None, 2)}
    assert differences({"a": 1}, {"a": 1, "b": 2}, same_version=False) == {}


def test_flags_of_a_command_line():
    words = [
        "-c",
        "a.yaml",
        "--trainer.max_steps",
        "-1",
        "--data.x=--y",
        "--run",
        "r",
        "--weights=w",
    ]
    assert split_words(words) == [
        ("-c", "a.yaml"), ("--trainer.max_steps", "-1"), ("--data.x", "--y"), ("--run", "r"),
        ("--weights", "w"),
    ]  # fmt: skip
    assert flags_of_run(words) == ["--trainer.max_steps=-1", "--data.x=--y", "--weights=w"]


def test_a_refused_resume_leaves_the_run_and_a_changed_one_keeps_its_config(capsys):
    """A run of SGD goes on with AdamW, then with a tenth of the rate, then as it is."""
    assert fit("--run=run") == 0
    before = files("run")
    assert fit(*FROM_RUN, "--trainer.max_epochs=2", "--model.optimizer=torch.optim.AdamW") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.endswith("has the state of the other class; leave it out, or start a new run with"
                         " --weights RUN")  # fmt: skip
    assert files("run") == before

    changes = {"lr": 0.005, "momentum": 0.5, "weight_decay": 0.1}
    flags = [f"--model.optimizer.{name}={value}" for name, value in changes.items()]
    assert fit(*FROM_RUN, "--trainer.max_epochs=2", *flags) == 0
    output = capsys.readouterr().out
    assert (
        "changed on resume: trainer.max_epochs 1 -> 2, model.optimizer.lr 0.05 -> 0.005" in output
    )
    assert "learning rate: 0.005 from here on, 0.05 before" in output
    assert [row["train/lr"] for row in rows("run")] == ["0.05"] * 4 + ["0.005"] * 4
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    decays, spared = state["optimizer_states"][0]["param_groups"]
    assert changes.items() <= decays.items()
    assert spared["weight_decay"] == 0.0
    assert Path("run/config.1.yaml").read_bytes() == before["run/config.yaml"]
    written = yaml.safe_load(Path("run/config.yaml").read_text())["model"]["optimizer"]["init_args"]
    assert changes.items() <= written.items()

    before = files("run")
    assert fit("--run=run", "--ckpt_path=last", "--model.mixup=0.1") == 0
    assert "nothing trained, run has all of its epochs or steps" in capsys.readouterr().out
    assert files("run")["run/config.yaml"] == before["run/config.yaml"]
    assert fit("--run=run", "--ckpt_path=last", "--trainer.max_epochs=3") == 0  # a file of before
    output = capsys.readouterr().out
    kept = " ".join(flags)
    assert f"flags of the run that hold on: {kept}\n" in output
    assert rows("run")[-1]["train/lr"] == "0.005"
    assert main(["classification", "fit", "--run=run", "--ckpt_path=last"]) == 0  # and none
    assert "arguments of the run: run/config.yaml" in capsys.readouterr().out


def test_the_flags_of_a_run_are_its_own(capsys):
    """Not those of the run that it is a copy of.

    They hold on behind a resume from config.yaml, and where that was lost.
    """
    assert fit("--run=run", "--model.mixup=0.1") == 0
    shutil.copytree("run", "copy")
    longer = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit("--run=run", *longer, "--model.label_smoothing=0.1") == 0
    capsys.readouterr()
    assert fit("-c", "copy/config.yaml", *longer) == 0
    output = capsys.readouterr().out
    assert "changed on resume: trainer.max_epochs 1 -> 2\n" in output
    assert "flags of the run" not in output
    Path("copy/config.yaml").unlink()
    assert fit("--run=copy", "--ckpt_path=last", "--trainer.max_epochs=3") == 0
    output = capsys.readouterr().out
    assert "flags of the run that hold on: --model.mixup=0.1\n" in output
    assert "changed on resume: trainer.max_epochs 2 -> 3\n" in output


def test_a_folder_that_is_named_by_a_flag_is_worked_in():
    assert fit("--run=run") == 0
    shutil.copytree("run", "copy")
    validate = ["classification", "validate", "-c", "copy/config.yaml"]
    assert main([*validate, "--run=run"]) == 0
    measured = Path("run/validate.json").read_bytes()
    assert not Path("copy/validate.json").exists()
    assert main([*validate, "--run=run", "--trainer.fast_dev_run=true"]) == 0
    assert Path("run/validate.json").read_bytes() == measured  # one batch to try it is no result
    Path("run/validate.json").unlink()
    assert main(["classification", "validate", "--run", "run"]) == 0  # by its own config
    assert json.loads(Path("run/validate.json").read_text()) == json.loads(measured)


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    last, previous = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/previous.ckpt"
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"step": step}, last)
    last.write_bytes(last.read_bytes()[:-20])
    later = AtomicCheckpointIO()
    for step, kept in ((2, 1), (3, 2)):
        later.save_checkpoint({"step": step}, last)
        assert torch.load(previous, weights_only=True) == {"step": kept}


def test_a_config_edited_by_hand_is_compared_with_what_was_trained():
    assert fit("--run=run") == 0
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace("seed_everything: 0", "seed_everything: 1"))
    assert fit(*FROM_RUN, "--trainer.max_epochs=2") == 1


@pytest.mark.parametrize("ended", ["--trainer.max_epochs=1", "--trainer.max_steps=4"])
def test_workers_and_batches_change_at_the_end_of_an_epoch(ended, capsys):
    assert fit("--run=run", ended) == 0
    flags = ["--data.num_workers=1", "--data.batch_size=16", "--trainer.max_steps=6"]
    assert fit(*FROM_RUN, "--trainer.max_epochs=9", *flags) == 0
    assert [row["epoch"] for row in rows("run")] == ["0"] * 4 + ["1"] * 2
    assert fit(*FROM_RUN, "--trainer.max_steps=8", "--data.num_workers=0") == 1
    assert "this checkpoint lies inside one" in capsys.readouterr().err


# Numbers that a checkpoint restores, against a run that had the new ones from its start


class Line(LightningModule):
    """A linear layer, with a score that never rises."""

    monitor = "val/score"

    def __init__(self, schedule: partial, lr: float, momentum: float = 0.9):
        super().__init__()
        self.weight = nn.Linear(2, 2)
        self.schedule, self.optimizer = schedule, partial(torch.optim.SGD, lr=lr, momentum=momentum)
        self.rates: list[float] = []

    def configure_optimizers(self) -> dict:
        return configure(self, self, self.optimizer, self.schedule)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/score", 1.0)

    def configure_callbacks(self) -> list[Callback]:
        return [StepOnPlateau()]


def rates(module: Line, epochs: int, *callbacks: Callback, checkpoint: str | None = None) -> list:
    loader = torch.utils.data.DataLoader(torch.ones(12, 2), 4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint("line.ckpt")
    return module.rates


@pytest.mark.parametrize(
    ("schedule", "new"),
    [
        (partial(WarmupCosine, warmup_epochs=1), {"warmup_epochs": 2, "min_lr": 0.01}),
        (partial(EpochWarmupCosine, warmup_epochs=1), {"warmup_epochs": 2, "warmup": "harmonic"}),
        (partial(lr_scheduler.StepLR, step_size=1, gamma=0.5), {"gamma": 0.1}),
        (partial(lr_scheduler.MultiStepLR, milestones=[1, 3], gamma=0.5), {"milestones": [2, 3]}),
        (partial(lr_scheduler.ConstantLR, factor=0.5, total_iters=3), {"total_iters": 1}),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=4), {"T_max": 8, "eta_min": 0.01}),
        (partial(lr_scheduler.PolynomialLR, total_iters=4), {"power": 2.0}),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else "",
)
def test_a_changed_schedule_has_the_rates_of_a_run_with_it(schedule, new):
    schedule_now = partial(schedule.func, **{**schedule.keywords, **new})
    whole = rates(Line(schedule_now, 0.2, momentum=0.5), 4)
    rates(Line(schedule, 0.1), 2)
    changes = {"model.optimizer.lr": Change(0.1, 0.2), "model.schedule.x": Change(0, 1)}
    resumed = Line(schedule_now, 0.2, momentum=0.5)
    assert rates(resumed, 4, ApplyChanges(changes, False, 1), checkpoint="line.ckpt") == whole[6:]
    assert resumed.trainer.optimizers[0].param_groups[0]["momentum"] == 0.5


def test_a_plateau_keeps_its_reductions():
    schedule = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
    # The first validation is the best one; from the second on, each halves the rate.
    assert rates(Line(schedule, 0.1), 3)[::3] == pytest.approx([0.1, 0.1, 0.05])
    schedule = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1)
    changes = {"model.optimizer.lr": Change(0.1, 0.2), "model.schedule.factor": Change(0.5, 0.1)}
    apply = ApplyChanges(changes, False, 1)
    resumed = rates(Line(schedule, 0.2), 5, apply, checkpoint="line.ckpt")
    assert resumed[::3] == pytest.approx([0.05, 0.005])


def test_a_longer_cosine_falls_to_its_new_end():
    schedule = partial(WarmupCosine, warmup_epochs=1)
    whole = rates(Line(schedule, 0.1), 4)
    rates(Line(schedule, 0.1), 2)
    apply = ApplyChanges({"trainer.max_epochs": Change(2, 4)}, False, 1)
    assert rates(Line(schedule, 0.1), 4, apply, checkpoint="line.ckpt") == whole[6:]


def test_a_callback_has_the_patience_that_is_given():
    def stops(patience: int) -> EarlyStopping:
        return EarlyStopping("val/score", patience=patience)

    schedule = partial(lr_scheduler.ConstantLR, factor=1.0)
    assert len(rates(Line(schedule, 0.1), 9, stops(2))) == 9  # 3 epochs of 3 steps
    changes = {"trainer.callbacks.0.patience": Change(2, 4)}
    longer = rates(
        Line(schedule, 0.1), 9, ApplyChanges(changes, False, 1), stops(4), checkpoint="line.ckpt"
    )
    assert len(longer) == 6


def test_other_processes_inside_an_epoch_are_refused():
    schedule = partial(lr_scheduler.ConstantLR, factor=1.0)
    rates(Line(schedule, 0.1), 1)
    apply = ApplyChanges({}, True, 2)
    with pytest.raises(InputError, match="an epoch of 2 processes"):
        rates(Line(schedule, 0.1), 2, apply, checkpoint="line.ckpt")


# A run that ended inside an epoch, and goes on


IMAGES = "--data=ImageFolder --data.root=images --data.image_size=16 --data.batch_size=2"
LONGER = [
    ("classification", "--trainer.accumulate_grad_batches=2 --data.num_workers=1"),
    ("classification", f"{IMAGES} --model.class_weights=balanced --data.split.val=0.3"),
    ("classification", "--data.balanced=true --model.ema_decay=0.9 --trainer.limit_val_batches=0"),
    ("detection", ""),
    ("generation", ""),
]


@pytest.mark.parametrize(("task", "flags"), LONGER, ids=[f"{t} {f}" for t, f in LONGER])
def test_a_run_of_more_steps_does_those_of_one_long_run(task, flags, capsys):
    if "images" in flags:
        few_images()
    steps, more = ("3", "5") if "accumulate" in flags else ("6", "9")
    flags = ["--trainer.max_epochs=9", *flags.split()]
    assert fit("--run=whole", f"--trainer.max_steps={more}", *flags, task=task) == 0
    assert fit("--run=run", f"--trainer.max_steps={steps}", *flags, task=task) == 0
    assert fit(*FROM_RUN, f"--trainer.max_steps={more}", task=task) == 0
    assert "metrics.csv was" not in capsys.readouterr().out  # changed, or cut
    assert_same_weights("run", "whole")
    keys = ("epoch", "step", "train/loss_step", "train/lr")
    curves = [[[row.get(key) for key in keys] for row in rows(run)] for run in ("run", "whole")]
    assert curves[0] == curves[1]


def few_images() -> None:
    """12 images of one class and 6 of another."""
    generator = np.random.default_rng(0)
    for name, count in (("cat", 12), ("dog", 6)):
        folder = Path("images/train", name)
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda: Path("images/train/cat/3.png").unlink(), "are not those of the training"),
        (
            lambda: Path("images/train/cat").rename("images/train/ant"),
            "ant is not among the 2 classes",
        ),
        (lambda: None, "data.split.seed is 1 here and 0 in"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(change, line, capsys):
    few_images()
    assert fit("--run=run", *IMAGES.split(), "--data.split.val=0.3") == 0
    before, flags = files("run"), ["--data.split.seed=1"] if "seed" in line else []
    change()
    assert fit(*FROM_RUN, "--trainer.max_epochs=2", *flags) == 1
    assert line in capsys.readouterr().err
    assert files("run") == before


class StopAt(Callback):
    """Asks for the end of the run behind a batch, as `max_time` does."""

    def __init__(self, batch: int = 5):
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx == self.batch


def test_a_run_that_a_callback_ends_between_accumulated_batches_goes_on():
    """The end is asked for behind the first of two batches, in the second epoch."""
    flags = ["--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2"]
    stop = f"--trainer.callbacks={__name__}.StopAt"
    assert fit("--run=whole", *flags) == 0
    assert fit("--run=run", *flags, stop, "--trainer.callbacks.batch=4") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert fit(*FROM_RUN, "--trainer.callbacks=null") == 0
    assert_same_weights("run", "whole")


# A folder belongs to one run


def test_a_run_is_not_continued_from_another_ones_checkpoint(capsys):
    assert fit("--run=a") == fit("--run=b", "--model.mixup=0.2") == 0
    before = files("b")
    from_a = ["--ckpt_path=a/checkpoints/last.ckpt", "--trainer.max_epochs=2"]
    assert fit("--run=b", *from_a) == 1
    assert "b contains a run, and a/checkpoints/last.ckpt is of another" in capsys.readouterr().err
    assert files("b") == before
    assert fit("--run=c", *from_a) == 0
    output = capsys.readouterr().out
    assert "c continues a/checkpoints/last.ckpt: its weights, optimizer and position" in output
    assert [row["step"] for row in rows("c")] == ["4", "5", "6", "7"]


class DieBehindBest(Callback):
    """Kills the process when best.ckpt has been saved, and last.ckpt has not."""

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        Path("run/checkpoints/last.ckpt").unlink(missing_ok=True)
        if Path("run/checkpoints/best.ckpt").is_file():
            os.kill(os.getpid(), signal.SIGKILL)


def forked(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("requeued", [False, True])
def test_a_run_with_best_alone_goes_on(requeued, monkeypatch, capsys):
    """Killed behind its first validation, inside the epoch; its lock is left behind."""
    flags = ["--run=run", "--trainer.val_check_interval=2"]
    process = forked(fit, *flags, f"--trainer.callbacks={__name__}.DieBehindBest")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.listdir("run/checkpoints") == ["best.ckpt"]
    assert Path("run/run.lock").is_file()
    if requeued:
        for name, value in (("JOB_ID", 7), ("NTASKS", 1), ("RESTART_COUNT", 1)):
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    else:
        flags.append("--ckpt_path=last")
    assert fit(*flags, "--trainer.callbacks=null") == 0
    assert "there is no last.ckpt: resumed from run/checkpoints/best.ckpt" in (
        capsys.readouterr().out
    )
    assert not Path("run/run.lock").exists()
    assert [row["step"] for row in rows("run")] == ["0", "1", "2", "3"]


def hold(run: str) -> None:
    Path(run).mkdir()
    lock = RunLock(Path(run))
    Path("held").touch()
    time.sleep(60)
    lock.release()


def test_a_folder_is_trained_in_by_one_process(capsys):
    process = forked(hold, "run")
    while not Path("held").exists():
        time.sleep(0.01)
    assert fit("--run=run") == 1
    assert f"a run trains in run ({os.uname().nodename}, process {process.pid}, since" in (
        capsys.readouterr().err
    )
    assert os.listdir("run") == ["run.lock"]
    process.kill()
    process.join()
    RunLock(Path("run")).release()  # of a dead owner
    assert os.listdir("run") == []


def test_a_lock_where_the_file_system_has_none(monkeypatch):
    def lockf(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", lockf)
    Path("run").mkdir()
    first = RunLock(Path("run"))  # of this process, which may take it again
    RunLock(Path("run"))
    text = first.file.read_text()
    first.file.write_text(text.replace(f'"process": {os.getpid()}', '"process": 1'))
    with pytest.raises(InputError, match=r"process 1, .*or remove run/run.lock"):
        RunLock(Path("run"))
    first.file.write_text('{"host": "elsewhere", "process": 1, "since": "then"}')
    with pytest.raises(InputError, match="elsewhere"):
        RunLock(Path("run"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(Path("run"))


def claim(name: str) -> None:
    for _ in range(10):  # starts that fail and remove the parents that another one needs
        new_run("classification", "refused").rmdir()
        remove_empty([Path("runs/classification"), Path("runs")])
    run = new_run("classification", "experiment")
    (run / name).touch()


def test_runs_that_start_together_have_folders_of_their_own():
    processes = [forked(claim, str(number)) for number in range(8)]
    for process in processes:
        process.join()
    runs = [os.listdir(run) for run in Path("runs/classification").iterdir()]
    assert sorted(runs) == [[str(number)] for number in range(8)]


def test_a_failed_start_leaves_no_folder():
    assert fit("--trainer.accelerator=tpu") == 1
    assert fit("--run=new", "--data.batch_size=0") == 2
    assert fit("--run=new/run", "--ckpt_path=last") == 1
    assert not Path("new").exists()
    assert not Path("runs").exists()
    Path("runs/other").mkdir(parents=True)
    assert fit("--trainer.accelerator=tpu") == 1
    assert os.listdir("runs") == ["other"]


def test_no_folder_can_be_made_below_a_link_to_nowhere(capsys: pytest.CaptureFixture[str]):
    Path("runs").symlink_to("nowhere")
    assert fit() == 1
    assert "cannot be made: give --run RUN" in capsys.readouterr().err
