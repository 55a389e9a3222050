"""Losses, gradients, weights, outputs and scores that are NaN or infinite, in every task."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import finite_two_processes
import pytest
import torch
import yaml
from finite_runs import DATA, LAYERS, MODULES, Break, BreakGradient, fit, rows
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.training.finite import (
    ADVICE,
    MOST_IN_A_ROW,
    FiniteSteps,
    require_finite,
    run_again,
)
from attention_vision.training.logging import ResumableMean, log_finite
from attention_vision.training.resume import BestCheckpoint, checkpoint_callbacks

TERMS = {  # of the loss that a broken layer makes NaN first
    "classifier": "loss_ce",
    "detr": "class",
    "dino": "class",
    "rcnn": "rpn_class",
    "sagan": "loss_discriminator",
    "unet": "loss",
}


@pytest.mark.parametrize("task", MODULES)
def test_a_loss_that_is_nan_ends_the_run_in_one_line(task: str, tmp_path: Path) -> None:
    module = MODULES[task]()
    last = tmp_path / "checkpoints" / "last.ckpt"
    saved = SaveAt(0, last)
    with pytest.raises(InputError) as caught:
        fit(module, DATA[task](), tmp_path, [Break(LAYERS[task], 1), saved])
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"step 1 of epoch 0: {TERMS[task]} is not finite, images number ")
    assert f"; first layer with such an output: {LAYERS[task]}; " in line
    assert f"{last} is the last good checkpoint; {tmp_path / 'nonfinite'} reproduces" in line
    assert all(one.isfinite().all() for one in module.parameters())
    assert last.stat().st_mtime_ns == saved.time
    assert all(math.isfinite(float(value)) for row in rows(tmp_path) for value in row.values())

    record = torch.load(tmp_path / "nonfinite" / "step.ckpt", weights_only=True)
    assert (record["step"], record["epoch"], record["batch_idx"]) == (1, 0, 1)
    again = MODULES[task]()
    again.load_state_dict(record["state_dict"])
    sound = run_again(again, record)
    assert sound["layer"] is None  # of the layer that is not broken
    with Break(LAYERS[task]).on(again):
        broken = run_again(again, record)
    assert math.isnan(broken[TERMS[task]])
    assert broken["layer"] == LAYERS[task]


@pytest.mark.parametrize("task", MODULES)
def test_gradients_that_are_nan_name_their_parameter(task: str, tmp_path: Path) -> None:
    module = MODULES[task]()
    name = next(name for name, one in module.named_parameters() if one.requires_grad)
    name = "discriminator" if task == "sagan" else name  # which has the first step
    with pytest.raises(InputError, match=f"step 1 of epoch 0: the gradient of {name}.* is not"):
        fit(module, DATA[task](), tmp_path, [BreakGradient(1)])
    assert all(one.isfinite().all() for one in module.parameters())


@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(task: str, fault: str, tmp_path: Path) -> None:
    module = MODULES[task](ema=True)
    breaks = Break(LAYERS[task], 1) if fault == "loss" else BreakGradient(1)
    before = Unchanged(1)
    fit(module, DATA[task](), tmp_path, [FiniteSteps("skip"), breaks, before])
    assert before.changed == set()
    assert all(one.isfinite().all() for one in module.state_dict().values())
    written = rows(tmp_path)
    assert [row["train/skipped"] for row in written if "train/skipped" in row] == ["1"]
    assert all(math.isfinite(float(value)) for row in written for value in row.values())
    assert (tmp_path / "nonfinite" / "README.txt").is_file()


def test_steps_in_a_row_end_a_run_that_skips(tmp_path: Path) -> None:
    steps = range(2, 100)
    with pytest.raises(InputError, match=f"step 21: {MOST_IN_A_ROW} steps in a row"):
        fit(
            MODULES["classifier"](),
            DATA["classifier"](),
            tmp_path,
            [FiniteSteps("skip"), BreakGradient(*steps)],
            max_steps=40,
        )
    assert rows(tmp_path)[-1]["train/skipped"] == str(MOST_IN_A_ROW)


def test_accumulated_steps_are_left_out_as_a_whole(tmp_path: Path) -> None:
    module = MODULES["classifier"]()
    before = Unchanged(2, until=3)
    fit(
        module,
        DATA["classifier"](),
        tmp_path,
        [FiniteSteps("skip"), Break(LAYERS["classifier"], 2), before],
        accumulate_grad_batches=2,
        max_steps=3,
    )
    assert before.changed == set()


def test_a_fault_that_is_read_late_names_its_step(tmp_path: Path) -> None:
    """As on a GPU: read at a logged step, by when the weights are lost."""
    module = MODULES["classifier"]()
    late = ReadLate()
    last = tmp_path / "checkpoints" / "last.ckpt"
    callbacks = [late, Break(LAYERS["classifier"], 1), SaveAt(0, last)]
    with pytest.raises(InputError) as caught:
        fit(module, DATA["classifier"](), tmp_path, callbacks, log_every_n_steps=4)
    line = str(caught.value)
    assert line.startswith("step 1 of epoch 0: loss_ce is not finite, images number ")
    assert "(by the weights of last.ckpt)" in line
    assert module.trainer.global_step == 4
    record = torch.load(tmp_path / "nonfinite" / "step.ckpt", weights_only=True)
    saved = torch.load(last, weights_only=True)["state_dict"]
    name = next(iter(saved))
    torch.testing.assert_close(record["state_dict"][name], saved[name], rtol=0, atol=0)
    assert "--on_nonfinite skip" in (tmp_path / "nonfinite" / "README.txt").read_text()
    batch = Batches(1)  # it was loaded again, as it was
    fit(MODULES["classifier"](), DATA["classifier"](), tmp_path / "other", [batch], max_steps=2)
    torch.testing.assert_close(record["batch"][0], batch.batch[0], rtol=0, atol=0)


def test_two_processes_agree(tmp_path: Path) -> None:
    command = [sys.executable, finite_two_processes.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert lines[0] == lines[1]
    assert lines[0].startswith("step 2 of epoch 0: loss_ce is not finite, images number ")
    for run in ("skip", "dino", "rcnn"):
        one, two = (torch.load(tmp_path / f"{run}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(parameter.isfinite().all() for parameter in one.values())
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"

    class Lose(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(file)
                self.before = file.read_bytes()
                module.network.head.weight.data[0, 0] = math.inf
                trainer.save_checkpoint(file)

    lose = Lose()
    with pytest.raises(InputError, match=r"network.head.weight of the model is not finite, no ch"):
        fit(MODULES["classifier"](), DATA["classifier"](), tmp_path, [lose])
    assert file.read_bytes() == lose.before


@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_nothing_is_measured_of_weights_that_are_not_finite(
    task: str, verb: str, tmp_path: Path
) -> None:
    module = MODULES[task]()
    next(module.parameters()).data.fill_(math.nan)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    run = partial(trainer.validate, verbose=False) if verb == "validate" else trainer.predict
    with pytest.raises(InputError, match="of the model is not finite, nothing is measured"):
        run(module, torch.utils.data.DataLoader([0]))
    assert not any(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("task", ["classifier", "unet", "rcnn", "detr", "dino"])
def test_outputs_that_are_not_finite_name_their_images(task: str, tmp_path: Path) -> None:
    module = MODULES[task]()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        limit_val_batches=1,
    )
    words = (
        "image 2 is not finite" if task in ("rcnn", "detr", "dino") else "1 val images, number 1:"
    )
    with Break(LAYERS[task]).on(module, image=1), pytest.raises(InputError, match=words):
        trainer.validate(module, DATA[task](), verbose=False)


def test_an_output_to_write_names_its_file() -> None:
    require_finite(torch.zeros(2, 3), ["a.png", "b.png"])
    with pytest.raises(InputError, match=r"output for b.png is not finite"):
        require_finite(torch.tensor([[0.0, 1.0], [0.0, math.inf]]), ["a.png", "b.png"])


def test_a_score_that_is_not_finite_is_not_the_best(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, "best", monitor="val/score", mode="max")
    kept: list[float] = []
    best._save_checkpoint = lambda trainer, path: kept.append(float(best.current_score))  # type: ignore
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    for score in (math.nan, 0.2, math.inf, math.nan, 0.1, 0.3):
        best._save_topk_checkpoint(trainer, {"val/score": torch.tensor(score)})
    assert kept == pytest.approx([0.2, 0.3])


def test_a_mean_leaves_out_what_is_not_finite() -> None:
    mean = ResumableMean()
    for value in (1.0, math.nan, 4.0, math.inf):
        mean.update(torch.tensor(value))
    assert mean.compute() == 2.5


def test_metrics_that_are_not_finite_are_not_logged(capsys: pytest.CaptureFixture) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.logged: dict[str, float] = {}
            self._trainer = Trainer(accelerator="cpu", logger=False)

        def log(self, name: str, value: Any, **_: Any) -> None:  # type: ignore[override]
            self.logged[name] = value

    module = Module()
    log_finite(module, {"val/a": math.nan, "val/b": 1.0, "val/c": torch.tensor(-math.inf)})
    assert module.logged == {"val/b": 1.0}
    assert "val/a is not finite" in capsys.readouterr().out


def test_the_command_stops_and_its_lines_of_python_reproduce_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "task": "classification",
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_train_batches": 3},
        "data": {"class_path": "Digits", "init_args": {"image_size": 16, "batch_size": 16}},
        "model": {
            "network": {"class_path": "ResNet", "init_args": {"depth": 8, "width": 4}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e18}},
        },
    }
    file, run = tmp_path / "e.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["classification", "fit", "-c", str(file), "--run", str(run)]) == 1
    shown = capsys.readouterr()
    error = shown.err.strip().splitlines()[-1]
    assert error.startswith("attention-vision: error: step 1 of epoch 0: loss_ce is not finite")
    assert error.endswith(ADVICE)
    assert "finished" not in shown.out
    assert not (run / "checkpoints").exists()

    readme = (run / "nonfinite" / "README.txt").read_text()
    code = "\n".join(line[4:] for line in readme.splitlines() if line.startswith("    "))
    exec(code, {})
    printed = capsys.readouterr().out
    assert "'loss_ce': nan" in printed
    layer = error.split("first layer with such an output: ")[1].split(";")[0]
    assert f"'layer': '{layer}'" in printed


def test_a_resumed_run_keeps_the_last_score(tmp_path: Path) -> None:
    """Which Lightning leaves out, so that the next checkpoint differed from a whole run's."""

    def train(folder: Path, epochs: int, checkpoint: Path | None = None) -> dict[str, Any]:
        callbacks = checkpoint_callbacks(folder, "val/top1", True, None)
        options = {"max_steps": -1, "max_epochs": epochs, "limit_train_batches": 2}
        options |= {"enable_checkpointing": True, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        module, data = MODULES["classifier"](), DATA["classifier"]()
        fit(
            module,
            data,
            folder,
            callbacks,
            ckpt_path=checkpoint,
            check_val_every_n_epoch=2,
            **options,
        )
        last = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
        return next(one for key, one in last.items() if "BestCheckpoint" in key)

    train(tmp_path / "two", 2)
    whole, resumed = (
        train(tmp_path / "whole", 3),
        train(tmp_path / "two", 3, tmp_path / "two" / "last.ckpt"),
    )
    for key in ("current_score", "best_model_score", "kth_value"):
        assert resumed[key] == whole[key], key


class SaveAt(Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step: int, file: Path):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: Trainer, module: Any, *batch: Any) -> None:
        if batch[-1] == self.step:
            trainer.save_checkpoint(self.file)
            self.time = self.file.stat().st_mtime_ns


class Unchanged(Callback):
    """Notes the names of weights, states and buffers that some batches have changed."""

    def __init__(self, first: int, until: int | None = None):
        self.first, self.until = first, first if until is None else until

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, idx: int) -> None:
        if idx == self.first:
            self.before = everything(trainer, module)
        if idx == self.until + 1:
            after = everything(trainer, module)
            self.changed = {
                name for name, one in self.before.items() if not torch.equal(one, after[name])
            }


def everything(trainer: Trainer, module: LightningModule) -> dict[str, torch.Tensor]:
    """Weights, buffers, moving averages and the state of the optimizers, but counters."""
    found = {f"own.{key}": one for key, one in module.state_dict().items()}
    for callback in trainer.callbacks:
        average = getattr(callback, "_average_model", None)
        if average is not None:
            found |= {f"average.{key}": one for key, one in average.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, state in enumerate(optimizer.state.values()):
            found |= {f"{number}.{index}.{key}": one for key, one in state.items()}
    counters = ("train_loss", "generator_steps", "num_batches_tracked")
    return {
        key: one.detach().clone()
        for key, one in found.items()
        if isinstance(one, torch.Tensor) and not any(word in key for word in counters)
    }


class ReadLate(FiniteSteps):
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._reads_each = False


class Batches(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, idx: int) -> None:
        if idx == self.step:
            self.batch = batch
