"""Trainings that decide claims, as many as the time holds, with results for the ledger.

Each part calls the command, `fit` or `study run`, and stops it when its time is over; the next
call resumes it. Finished runs are written in the format of experiments/results into OUT/ledger, a
copy of the repository's claims, which `attention-vision claims OUT/ledger` reads. A smoke test
trains on the embedded digits, two steps each.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cifar import FOLDER, PACKS, unpack
from commands import run_command
from run import ROOT, Part

EXPERIMENTS = ROOT / "experiments"
GPU = EXPERIMENTS / "profiles/gpu.yaml"
STRONG = EXPERIMENTS / "classification/compact_resnet_cifar10.yaml"
DIGITS = EXPERIMENTS / "classification/resnet8_digits.yaml"  # of a smoke test
SMALL = ("cct_2_3x2_cifar10", "vit_lite_7_4_cifar10", "se_resnet20_cifar10")
SEEDS = 25  # of a cell, at most
JOBS = "auto"  # as many as share the GPU best: each leaves it idle most of the time
GAN_STEPS = 2000  # of the generator: 2 % of the recipe
BEFORE = 15  # seconds before the end in which runs stop and results are written
SMOKE = {
    "trainer": {
        "accelerator": "cpu",
        "check_val_every_n_epoch": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
}


class Trainings:
    """Commands of a part, and the ledger's copy that their results go to."""

    def __init__(self, part: Part):
        self.part = part
        self.rows: list[dict[str, Any]] = []
        self.ledger = part.out / "ledger"
        shutil.copytree(
            EXPERIMENTS, self.ledger / "experiments", dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.py", "gpu", "__pycache__"),
        )  # fmt: skip
        self.hardware = part.out / f"{part.name}_hardware.yaml"
        if part.smoke:
            profile: dict[str, Any] = SMOKE
        else:
            data = {"data": {"init_args": {"root": str(cifar_root(part))}}}
            profile = yaml.safe_load(GPU.read_text()) | data
        self.hardware.write_text(yaml.safe_dump(profile))

    def command(self, *words: str) -> bool:
        """Run `attention-vision WORDS` until its end, or until this part's is near.

        Returns:
            Whether it went through; what went wrong is in the rows.
        """
        if (seconds := self.part.left - BEFORE) <= 0:
            return False
        self.rows.append(run_command(self.part, words, ROOT, seconds))
        self.part.save(rows=self.rows)
        return self.rows[-1]["exit"] == 0

    def fit(self, file: Path, run: str) -> bool:
        """Train a run, or resume it; nothing where it is finished."""
        folder = self.part.out / "runs" / run
        done = folder / "finished"
        if done.is_file():
            return True
        last = folder / "checkpoints/last.ckpt"
        if folder.is_dir() and not last.is_file():  # stopped before its first checkpoint
            shutil.rmtree(folder)
        resumed = ["--ckpt_path", "last"] if last.is_file() else []
        task = yaml.safe_load(file.read_text())["task"]
        words = [task, "fit", "-c", str(file), "-c", str(self.hardware), "--run", str(folder)]
        if not self.command(*words, *resumed):
            return False
        done.touch()
        return True

    def record(self, experiment: str, *runs: str) -> None:
        """Write the results file of finished runs of an experiment, unless it exists."""
        file = self.ledger / "experiments/results" / f"{experiment}.json"
        if not self.part.smoke:  # whose runs are shorter than their experiment
            file.unlink(missing_ok=True)
            folders = [str(self.part.out / "runs" / run) for run in runs]
            self.command("claims", str(self.ledger), "--record", *folders)

    def study(self, file: Path, *words: str) -> bool:
        """Run a study, and write what is finished of it.

        Returns:
            Whether all of it is finished.
        """
        folder = self.part.out / "studies" / file.stem
        known = str(file.relative_to(ROOT) if ROOT in file.parents else file)
        jobs = "1" if self.part.smoke else JOBS
        run = ["study", "run", known, "--folder", str(folder), "--jobs", jobs, *words]
        finished = self.command(*run, "--profile", str(self.hardware))
        results = self.ledger / "experiments/results" / f"{file.stem}.json"
        if any(folder.glob("cells/*/*/result.json")):
            results.unlink(missing_ok=True)
            self.command_at_the_end("study", "export", str(folder), "--results", str(results))
            written = json.loads(results.read_text())
            summary = list(means(written))
            self.part.save(results=str(results.relative_to(self.part.out)), summary=summary)
        return finished

    def command_at_the_end(self, *words: str) -> None:
        """Run a short command in the seconds that are kept for it."""
        self.part.until += BEFORE
        try:
            if not self.command(*words):
                raise RuntimeError(json.dumps(self.rows[-1], indent=1))
        finally:
            self.part.until -= BEFORE


def cifar_root(part: Part) -> Path:
    """Return torchvision's root of CIFAR-10, unpacked first if it is packed.

    Raises:
        FileNotFoundError: there is neither.
    """
    if part.data is None:
        raise FileNotFoundError("CIFAR-10: give its folder by --data")
    if (part.data / FOLDER).is_dir():
        return part.data
    if all((part.data / name).is_file() for name in PACKS):
        unpack(part.data, part.out / "data")
        return part.out / "data"
    raise FileNotFoundError(f"{part.data} has neither {FOLDER} nor {', '.join(PACKS)}")


def means(results: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each cell of a results file: mean and number of its runs."""
    metric, values = results["study"]["metric"], {}
    for run in results["runs"]:
        values.setdefault(run["cell"], []).append(run["metrics"].get(metric))
    for cell, found in values.items():
        known = [value for value in found if value is not None]
        mean = f"{sum(known) / len(known):.4f}" if known else "-"
        yield f"{cell:<8} {metric} {mean}, {len(known)} seeds"


def strong_baseline(part: Part) -> bool:
    """Train the strong small network once, with the GPU for itself, for its claim."""
    trainings = Trainings(part)
    finished = trainings.fit(DIGITS if part.smoke else STRONG, "strong_baseline")
    if finished:
        trainings.record(STRONG.stem, "strong_baseline")
    claim = part.out / "runs/strong_baseline/claim.json"
    if claim.is_file():
        outcome = json.loads(claim.read_text())
        part.save(outcome=outcome, summary=[f"{outcome['metric']} {outcome['measured']:.4f}"])
    return finished


def channel_attention(part: Part) -> bool:
    """Compare attention modules in the strong small network, paired by seed."""
    if part.smoke:
        few = ("--seeds", "0", "--only", "none", "se")
        return Trainings(part).study(EXPERIMENTS / "ablations/channel_attention.yaml", *few)
    return Trainings(part).study(EXPERIMENTS / "ablations/compact_attention.yaml")


def small_networks(part: Part) -> bool:
    """Train the small networks whose numbers papers report, one after the other."""
    trainings = Trainings(part)
    names = (DIGITS.stem,) if part.smoke else SMALL
    files = [EXPERIMENTS / "classification" / f"{name}.yaml" for name in names]
    finished, lines = [], []
    for file in files:
        if not file.is_file():
            continue
        finished.append(trainings.fit(file, file.stem))
        if finished[-1]:
            trainings.record(file.stem, file.stem)
        claim = part.out / "runs" / file.stem / "claim.json"
        if claim.is_file():
            outcome = json.loads(claim.read_text())
            lines.append(f"{file.stem}: {outcome['metric']} {outcome['measured']:.4f}")
        part.save(summary=lines)
    return all(finished)


def sagan(part: Part) -> bool:
    """Compare SAGAN with SNGAN for a small part of the recipe, by a classifier's score.

    The Inception's weights are not at hand everywhere: the strong baseline is the classifier.
    """
    judge = part.out / "runs/strong_baseline"
    if not (judge / "finished").is_file():
        part.save(summary=["waits for the strong baseline, which scores it"])
        return False
    name = "sagan_digits" if part.smoke else "sagan_cifar10"
    base = yaml.safe_load((EXPERIMENTS / "ablations" / name / "base.yaml").read_text())
    steps = 2 if part.smoke else GAN_STEPS
    base["trainer"] = {"max_steps": steps}
    if not part.smoke:
        base["trainer"] |= {"val_check_interval": steps // 2, "check_val_every_n_epoch": None}
    scorer = {"run": str(judge), "samples": 20 if part.smoke else 10_000, "manifold": 0}
    arguments = base["model"]["init_args"]
    arguments["scorer"] = {"class_path": "ClassifierEvaluator", "init_args": scorer}
    file = part.out / "gpu_sagan_base.yaml"
    file.write_text(yaml.safe_dump(base, sort_keys=False))
    networks = ("generator", "discriminator")
    slot = "model.init_args.{}.init_args.attention"
    study = {
        "study": {
            "question": "Does SAGAN score above SNGAN early in training?",
            "metric": "val/score",
            "baseline": "sngan",
            "expect": ["sagan > sngan"],
            "seeds": [0] if part.smoke else [0, 1, 2],
        },
        "base": str(file),
        "axes": {
            "network": {
                "sngan": {slot.format(one): "torch.nn.Identity" for one in networks},
                "sagan": {slot.format(one): "SelfAttention2d" for one in networks}
                | {"model.init_args.spectral_norm_generator": True},
            }
        },
    }
    file = part.out / "gpu_sagan.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return Trainings(part).study(file)


PARTS = {
    "strong_baseline": strong_baseline,
    "channel_attention": channel_attention,
    "small_networks": small_networks,
    "sagan": sagan,
}
