"""The demo's runs on a GPU, some epochs each, through the command, and what reads a run.

They go side by side beside the other checks, and digits are augmented on the CPU in the process
that trains: their images per second say that a run works, not how fast a GPU is. `speed.py` does.
"""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import yaml
from commands import run_command
from digit_images import write_images
from run import ROOT, Part

DEMO = ROOT / "experiments/demo"
UNET = {
    "task": "generation",
    "seed_everything": 0,
    "threads": 1,
    "trainer": {"log_every_n_steps": 10},
    "data": {
        "class_path": "DegradedFolder",
        "init_args": {
            "train_images": "scenes/train",
            "val_images": "scenes/val",
            "degradation": {"class_path": "Noise", "init_args": {"sigma": 25.0}},
            "size": 64,
            "batch_size": 32,
            "num_workers": 2,
        },
    },
    "model": {
        "class_path": "ImageToImage",
        "init_args": {
            "network": {
                "class_path": "AttentionUNet",
                "init_args": {"width": 16, "depth": 3, "gated_levels": [2, 3], "residual": True},
            },
            "objective": "Restoration",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}},
        },
    },
}
EPOCHS = {  # of the training, and between validations
    "vit_digits": (20, 10),
    "se_resnet_digits": (3, 3),
    "detr_digits": (2, 2),
    "sagan_digits": (8, 8),
    "unet_digits": (10, 5),
}
SMOKE = ("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1",
         "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
         "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
         "--trainer.log_every_n_steps", "1")  # fmt: skip


class Fits:
    """Commands in a folder of their own, where the demo's paths hold."""

    def __init__(self, part: Part):
        self.part = part
        self.folder = part.out / "fits"
        self.folder.mkdir(exist_ok=True)
        self.rows: list[dict[str, object]] = []
        self.profile = ["-c", str(ROOT / "experiments/profiles/gpu.yaml")]
        self.extra = SMOKE if part.smoke else ()

    def command(self, name: str, *words: str) -> dict[str, object]:
        """Run `attention-vision WORDS`; a row with what went wrong, if anything did."""
        return {"name": name} | run_command(self.part, words, self.folder, self.part.left - 2)

    def add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        self.part.save(rows=self.rows)

    def fit(self, task: str, name: str, file: Path, *more: str) -> None:
        run = f"runs/demo/{name}"
        words = [task, "fit", "-c", str(file), *self.profile, "--run", run]
        if name in EPOCHS and not self.part.smoke:
            epochs, between = map(str, EPOCHS[name])
            words += ["--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", between]
        words += [*self.extra, *more]
        row = self.command(name, *words)
        self.add(row | measured(self.folder / run / "metrics.csv"))

    def vit(self) -> None:
        self.fit("classification", "vit_digits", DEMO / "vit_digits.yaml")
        run = "runs/demo/vit_digits"
        self.add(self.command("validate", "classification", "validate", "-c", f"{run}/config.yaml"))
        if self.part.smoke:
            return
        pictures = ["--images", "scenes/val", "--out", "explained"]
        self.add(self.command("explain", "explain", run, *pictures))
        predict = ["-c", f"{run}/config.yaml", "--data.images", "scenes/val"]
        self.add(self.command("predict", "classification", "predict", *predict))
        self.resume()

    def resume(self) -> None:
        """A run in two halves has the curve of the whole one."""
        once = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2"]
        constant = ["--model.schedule", "torch.optim.lr_scheduler.ConstantLR"]
        half = ["--trainer.max_epochs", "2"]
        file = DEMO / "vit_digits.yaml"
        self.fit("classification", "whole", file, *once, *constant)
        self.fit("classification", "halves", file, *once, *constant, *half)
        self.fit("classification", "halves", file, *once, *constant, "--ckpt_path", "last")
        curves = [
            values(self.folder / f"runs/demo/{run}/metrics.csv") for run in ("whole", "halves")
        ]
        self.add({"name": "resumed curve", "equal": curves[0] == curves[1], "curves": curves})

    def chain(self) -> None:
        """The classifier, then what starts from it and what it judges."""
        self.fit("classification", "se_resnet_digits", DEMO / "se_resnet_digits.yaml")
        with ThreadPoolExecutor(2) as pool:
            detr = pool.submit(self.fit, "detection", "detr_digits", DEMO / "detr_digits.yaml")
            whole = ["--trainer.limit_val_batches", "1.0"]  # as many samples as the score needs
            sagan = pool.submit(
                self.fit, "generation", "sagan_digits", DEMO / "sagan_digits.yaml", *whole
            )
            detr.result(), sagan.result()
        count = ["--data.count", "20"]
        config = "runs/demo/sagan_digits/config.yaml"
        self.add(self.command("samples", "generation", "predict", "-c", config, *count))
        for run in ("detr_digits", "sagan_digits"):
            self.add(self.command(f"explain {run}", "explain", f"runs/demo/{run}"))

    def unet(self) -> None:
        file = self.folder / "unet_digits.yaml"
        file.write_text(yaml.safe_dump(UNET, sort_keys=False))
        self.fit("generation", "unet_digits", file)

    def profiles(self) -> None:
        files = [str(DEMO / f"{name}.yaml") for name in ("vit_digits", "detr_digits")]
        device = ["--device", self.part.device, "--csv"]
        self.add(self.command("profile", "profile", *files, *device, "costs.csv"))
        sizes = ["--mechanisms", "--size", "16", "8", "8"]
        self.add(self.command("profile", "profile", *sizes, *device, "mechanisms.csv"))


def values(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv without what a clock says."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [
        {key: float(value) for key, value in row.items() if value and "per_second" not in key}
        for row in rows
    ]


def measured(file: Path) -> dict[str, object]:
    """The last value of every metric, and the median of images per second."""
    if not file.is_file():
        return {}
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    last = {key: float(value) for row in rows for key, value in row.items() if value}
    rates = [float(row[key]) for row in rows if row.get(key := "train/images_per_second")]
    first = [float(row[key]) for row in rows if row.get(key := "train/loss")][:1]
    few = {key: value for key, value in last.items() if "ap_of" not in key}
    return {
        "metrics": few,
        "first train/loss": first[0] if first else None,
        "images_per_second": median(rates) if rates else None,
    }


def fits(part: Part) -> None:
    all_fits = Fits(part)
    sizes = (40, 4) if part.smoke else (400, 40)
    for split, count in zip(("train", "val"), sizes, strict=True):
        write_images(all_fits.folder / "scenes" / split, count, 64, split)
    branches = [all_fits.vit, all_fits.unet]
    if not part.smoke:
        branches += [all_fits.chain, all_fits.profiles]
    problems = []
    if part.smoke:  # commands in this process, which has one working folder
        for branch in branches:
            branch()
    else:
        with ThreadPoolExecutor(len(branches)) as pool:
            for branch in [pool.submit(branch) for branch in branches]:
                if problem := branch.exception():
                    problems.append(repr(problem)[:1000])
    lines = [line_of(row) for row in all_fits.rows]
    part.save(problems=problems, summary=[*lines, *problems])
    failed = [row["name"] for row in all_fits.rows if row.get("exit") and not row["stopped"]]
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def line_of(row: dict[str, object]) -> str:
    if "equal" in row:
        return f"resumed curve is the whole run's: {row['equal']}"
    metrics = row.get("metrics", {})
    shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "train/loss"))}
    line = f"{row['name']:<18} exit {row['exit']} {row['seconds']:>6} s "
    if row.get("images_per_second"):
        line += f" {row['images_per_second']:,.0f} images/s "
    line += " ".join(f"{key} {value:.4g}" for key, value in list(shown.items())[:6])
    if row["exit"]:
        line += " " + str(row.get("stderr", "")).strip().splitlines()[-1][:300]
    return line


PARTS = {"fits": fits}
