"""What the framework costs: whole trainings by the command, against a bare loop of PyTorch.

Ours is `attention-vision classification fit` with its curves, pictures, checks and checkpoints. The
bare loop has the same network, optimizer, loss and batch size. Its images are one uint8 tensor,
which it crops and flips by one index. It measures the accuracy, and writes nothing. Its variants
are torch's default step of the optimizer, and one fused kernel.

Rows named "steps" measure batches inside an epoch. Rows named "small epochs" add a fifth as many
images of validation, as CIFAR-10 has, and an end of an epoch: checkpoints, pictures and rows, which
cost the same in an epoch of 50,000 images, of 40 to 80 times as many batches.

Images are random, of CIFAR-10's size: the time does not depend on them.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from frame import ROOT, Row, Side, Step, main
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from attention_vision.classification.data import CIFAR10, ClassificationData
from attention_vision.classification.sources import TensorImages
from attention_vision.classification.transforms import Augmentation
from attention_vision.runs.command import fit, prepare
from attention_vision.training.optim import parameter_groups

FILES = ROOT / "experiments/classification"
FOLDER = tempfile.TemporaryDirectory()  # of the runs
NAMES = tuple(str(number) for number in range(10))


@cache
def images_of(count: int) -> tuple[Tensor, Tensor]:
    """Random images (n, 3, 32, 32) uint8 and labels (n,)."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (count,), generator=generator)


class RandomImages(ClassificationData):
    """Random images with the size and the normalization of CIFAR-10."""

    class_names = NAMES
    mean, std = CIFAR10.mean, CIFAR10.std

    def __init__(self, recipe: Augmentation, count: int, batch_size: int):
        super().__init__(32, batch_size, 0, None, None, 1)
        self.recipe, self.count = recipe, count

    def source(self, split: str) -> TensorImages:
        images, labels = images_of(self.count if split == "train" else self.count // 5)
        return TensorImages(images, labels.tolist())


class OnDemand(Callback):
    """Holds a training that runs in a thread until it is asked to go on.

    Args:
        batches: between two holds; 0 for epochs.
    """

    def __init__(self, batches: int):
        self.batches = batches
        self.asked, self.held = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        if not self.batches:
            self.hold()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        if self.batches and number % self.batches == 0:
            self.hold()

    def hold(self) -> None:
        self.held.release()
        self.asked.acquire()

    def step(self) -> None:
        """Let some batches run, or an epoch with all that belongs to its end."""
        self.asked.release()
        self.wait()

    def wait(self) -> None:
        """Wait until the training is held. Raises what ended it."""
        with redirect_stdout(StringIO()):
            self.held.acquire()
        if self.error:
            raise self.error


@dataclass(frozen=True)
class Training:
    """A training of an experiment's network.

    Args:
        experiment: file below experiments/classification, without its ending.
        batches: of a step.
        ends: whether a step is an epoch, with its end.
        device: "cpu" or "cuda".
        recipe: augmentation, in the place of the experiment's.
    """

    experiment: str
    batches: int
    ends: bool
    device: str
    recipe: dict[str, Any]

    @property
    def in_epoch(self) -> int:
        """Batches of an epoch; more than all steps take where its end is not measured."""
        return self.batches if self.ends else 40 * self.batches

    def words(self, run: str) -> list[str]:
        """Write the config of a run; return the arguments of its command."""
        config = yaml.safe_load((FILES / f"{self.experiment}.yaml").read_text())
        batch_size = config["data"]["init_args"]["batch_size"]
        config["data"] = {
            "class_path": f"{Path(__file__).stem}.RandomImages",
            "init_args": {
                "count": self.in_epoch * batch_size, "batch_size": batch_size,
                "recipe": {"class_path": "CIFARAugmentation", "init_args": self.recipe},
            },
        }  # fmt: skip
        config["trainer"] |= {"max_epochs": 1_000_000, "accelerator": self.device, "devices": 1}
        config["trainer"] |= {"num_sanity_val_steps": 0}
        config |= {"threads": torch.get_num_threads(), "claim": None}
        file = Path(FOLDER.name, f"{run}.yaml")
        file.write_text(yaml.safe_dump(config))
        return ["-c", str(file), "--run", str(Path(FOLDER.name, run))]

    def ours(self) -> Step:
        """Start a training, which waits at its first batch."""
        epochs = OnDemand(0 if self.ends else self.batches)

        def train() -> None:
            try:
                name = f"{self.experiment}-{threading.get_ident()}"
                fit(prepare("classification", "fit", self.words(name), [epochs]))
                raise RuntimeError("the training came to its end")
            except BaseException as error:
                epochs.error = error
                epochs.held.release()

        threading.Thread(target=train, daemon=True).start()
        epochs.wait()
        return epochs.step

    def bare(self, fused: bool) -> Step:
        """The loop without a framework."""
        with redirect_stdout(StringIO()):
            work = prepare("classification", "fit", self.words("bare"))
        module: Any = work.objects.module
        work.run.give_up()
        network = module.network.to(self.device)
        optimizer: Optimizer = module.optimizer(
            parameter_groups(network, no_weight_decay=module.no_weight_decay)
        )
        for group in optimizer.param_groups:
            group["fused"] = fused or None
        padding = self.recipe.get("padding", 4)
        data: Any = work.objects.data
        size = data.batch_size
        batches = Batches(self.batches * size, size, padding, self.device)

        def epoch() -> None:
            network.train()
            for images, labels in batches.training():
                logits = network(images)
                loss = functional.cross_entropy(
                    logits, labels, label_smoothing=module.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not self.ends:
                return
            network.eval()
            right = torch.zeros((), device=self.device)
            with torch.no_grad():
                for images, labels in batches.validation():
                    right += (network(images).argmax(1) == labels).sum()
            right.item()

        return epoch


class Batches:
    """Batches of images that lie in memory, cropped and flipped by one index."""

    def __init__(self, count: int, size: int, padding: int, device: str):
        images, labels = images_of(count)
        self.padded = functional.pad(images, (padding,) * 4).to(device)
        self.labels, self.size, self.padding = labels.to(device), size, padding
        self.others, self.of_others = (one.to(device) for one in images_of(count // 5))
        self.mean = torch.tensor(CIFAR10.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(CIFAR10.std, device=device).view(3, 1, 1)

    def normalized(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.padded.device
        side = torch.arange(32, device=device)
        channels = torch.arange(3, device=device)[:, None, None]
        for chosen in torch.randperm(len(self.labels), device=device).split(self.size):
            draws = partial(torch.randint, size=(len(chosen), 1), device=device)
            rows = draws(2 * self.padding + 1) + side
            columns = side.where(draws(2) == 1, 31 - side) + draws(2 * self.padding + 1)
            images = self.padded[
                chosen[:, None, None, None], channels, rows[:, None, :, None],
                columns[:, None, None, :],
            ]  # fmt: skip
            yield self.normalized(images), self.labels[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(
            self.others.split(self.size), self.of_others.split(self.size), strict=True
        ):
            yield self.normalized(images), labels


def row(name: str, training: Training, size: int, note: str = "") -> Row:
    sides = [
        Side("ours", training.ours),
        Side("bare loop", partial(training.bare, fused=False)),
        Side("bare loop", partial(training.bare, fused=True), "fused"),
    ]
    targets = {} if training.ends or note else {"bare loop": 0.95}
    images = training.batches * size
    return Row(name, sides, images, targets=targets, memory=False, turns=5, note=note)


def rows(device: str, smoke: bool) -> Iterator[Row]:
    batches = 2 if smoke else 10
    flips: dict[str, Any] = {"padding": 0}
    for ends in (False, True):
        what = "small epochs" if ends else "steps"
        senet = Training("se_resnet20_cifar10", batches, ends, device, {})
        yield row(f"SE-ResNet-20, {what}", senet, 64)
        if smoke:
            continue
        cct = Training("cct_2_3x2_cifar10", batches // 2, ends, device, flips)
        yield row(f"CCT-2/3x2, {what}", cct, 128)
    if smoke:
        return
    policy = flips | {"autoaugment": "cifar10"}
    augmented = Training("cct_2_3x2_cifar10", batches // 2, False, device, policy)
    note = "the bare loop lacks AutoAugment"
    yield row("CCT-2/3x2 with AutoAugment, steps", augmented, 128, note)


if __name__ == "__main__":
    main(rows)
