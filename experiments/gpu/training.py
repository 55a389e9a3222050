"""Steps of every task through Lightning: GPU against CPU, twice alike, resumed, compiled."""

import contextlib
import io
import os
import time
import traceback
from pathlib import Path
from xml.etree import ElementTree

import torch
import yaml
from correctness import error, exact_float32, vector
from run import ROOT, Part
from torch import Tensor

from attention_vision.runs.command import evaluate, prepare
from attention_vision.runs.command import fit as fit_work

UNET = """
data:
  class_path: DegradedFolder
  init_args:
    train_images: images
    val_images: images
    degradation: {class_path: Noise, init_args: {sigma: 25.0}}
    size: 16
    batch_size: 4
    num_workers: 0
model:
  class_path: ImageToImage
  init_args:
    network:
      class_path: AttentionUNet
      init_args: {width: 8, depth: 2, gated_levels: [2], residual: true}
    objective: Restoration
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
"""
RANDOM_ON_DEVICE = ("generation", "detection of proposals")  # noise and samples differ by device


def experiments() -> dict[str, str]:
    """Tiny ones, of every task."""
    import test_compile

    return test_compile.EXPERIMENTS | {"generation of images from images": UNET}


def fit(name: str, run: str, device: str, *arguments: str, **trainer: object) -> dict[str, Tensor]:
    """Two steps and a validation -> the weights afterwards."""
    import test_compile

    task = name.split()[0]
    accelerator = {"accelerator": "gpu" if device == "cuda" else "cpu"}
    config = {"task": task, "trainer": test_compile.TRAINER | accelerator | trainer}
    Path("experiment.yaml").write_text(yaml.safe_dump(config | yaml.safe_load(experiments()[name])))
    if name == "generation":
        arguments = ("--model.scorer", "Unscored", *arguments)
    work = prepare(task, "fit", ["-c", "experiment.yaml", "--run", run, *arguments])
    fit_work(work)
    kept = work.objects.module.state_dict()
    return {key: value.detach().cpu().clone() for key, value in kept.items()}


def floats(weights: dict[str, Tensor]) -> Tensor:
    return vector([value for value in weights.values() if value.is_floating_point()])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def ways(name: str, device: str, at: str) -> dict[str, object]:
    """One task in float32, twice, and in bf16."""
    first = fit(name, f"{at}-1", device)
    again = fit(name, f"{at}-2", device)
    row: dict[str, object] = {
        "task": name,
        "same twice": equal(first, again),
        "difference twice": error(floats(again), floats(first)),
    }
    # For R-CNN torchvision then compiles a roi_align of its own, which takes minutes.
    if not row["same twice"] and name != "detection of proposals":
        held = fit(name, f"{at}-3", device, deterministic=True)
        row["same twice, deterministic"] = equal(
            held, fit(name, f"{at}-4", device, deterministic=True)
        )
    if name not in RANDOM_ON_DEVICE and device != "cpu":
        row["from the CPU's"] = error(floats(first), floats(fit(name, f"{at}-cpu", "cpu")))
    rounded = floats(fit(name, f"{at}-bf16", device, precision="bf16-mixed", benchmark=True))
    row["bf16 finite"] = bool(rounded.isfinite().all())
    row["bf16 from float32"] = error(rounded, floats(first))
    return row


def verbs(name: str, at: str, device: str) -> str:
    """Validates a run where it was trained."""
    trainer = ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
    folder = f"{at}-1"
    evaluate(prepare(name.split()[0], "validate", ["-c", f"{folder}/config.yaml", *trainer]))
    return Path(folder, "validate.json").read_text()


def resume(device: str) -> dict[str, object]:
    whole = fit("classification", "whole", device, max_epochs=2)
    fit("classification", "cut", device, max_epochs=1)
    resumed = fit("classification", "cut", device, "--ckpt_path", "last", max_epochs=2)
    return {
        "resumed is the whole run": equal(whole, resumed),
        "difference": error(floats(resumed), floats(whole)),
    }


def training(part: Part) -> None:
    import test_compile  # noqa: F401  (before the folder changes)
    from digit_images import write_images

    exact_float32()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which `deterministic` asks for
    folder = part.out / "training"
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    rows, failures = [], []
    try:
        write_images(Path("images"), 8, 24)
        at = str(int(time.time()))  # run folders of an earlier try may be there
        names = list(experiments())[: 1 if part.smoke else None]
        for number, name in enumerate(names):
            run = f"{at}-{number}"
            attempt(rows, failures, name, lambda n=name, r=run: ways(n, part.device, r))
            part.save(rows=rows, failures=failures)
            attempt(
                rows, failures, f"{name}, validate",
                lambda n=name, r=run: {"validate": verbs(n, r, part.device)},
            )  # fmt: skip
        os.makedirs(at)
        os.chdir(at)
        if not part.smoke:
            attempt(rows, failures, "resume", lambda: resume(part.device))
        part.save(rows=rows, failures=failures)
        os.chdir(folder)
        for number, name in enumerate(names if not part.smoke else []):
            attempt(
                rows, failures, f"{name}, compiled",
                lambda n=name, k=number: compiled(n, f"{at}-{k}-c", part.device),
            )  # fmt: skip
            part.save(rows=rows, failures=failures)
    finally:
        os.chdir(before)
    lines = [
        ", ".join(f"{key}: {value}" for key, value in row.items() if key != "validate")
        for row in rows
    ]
    lines += [f"failed: {one['name']}: {one['error'].splitlines()[-1][:300]}" for one in failures]
    part.save(summary=lines)


def compiled(name: str, run: str, device: str) -> dict[str, object]:
    start = time.perf_counter()
    weights = floats(fit(name, run, device, "--compile", "inductor"))
    row: dict[str, object] = {"compiled finite": bool(weights.isfinite().all())}
    row["seconds"] = round(time.perf_counter() - start, 1)
    first = floats(fit(name, f"{run}-eager", device))
    row["compiled from eager"] = error(weights, first)
    return row


def attempt(rows: list, failures: list, name: str, work) -> None:
    try:
        row = work()
        rows.append({"name": name} | {key: value for key, value in row.items() if key != "task"})
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        failures.append({"name": name, "error": traceback.format_exc()})


def tests(part: Part) -> None:
    """The tests that need a GPU, as pytest runs them; without one they are skipped."""
    import pytest

    file = part.out / "tests.xml"
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        words = ["-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={file}"]
        code = pytest.main([*words, str(ROOT / "tests/test_gpu.py")])
    suite = ElementTree.parse(file).getroot()[0]
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    shown = ", ".join(f"{count} {key}" for key, count in counts.items())
    part.save(counts=counts, output=log.getvalue()[-20000:], summary=[shown])
    if code:
        raise RuntimeError(log.getvalue()[-3000:])


PARTS = {"training": training, "tests": tests}
