"""The training of image-to-image networks: losses, metrics, resuming, what is written, refusals."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from image_to_image_folders import balls, discs
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import nn

from attention_vision.__main__ import main
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.generation import (
    AttentionUNet,
    DegradedDigits,
    DigitMasks,
    Holes,
    ImageToImage,
    MaskFolder,
    Noise,
    Restoration,
    Segmentation,
    VolumeFolder,
)
from attention_vision.generation.image_to_image.module import dice_loss
from attention_vision.runs import load_run
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.resume import StepCheckpoint


def module(objective: nn.Module, in_channels: int = 3, num_classes: int = 0, **arguments):
    seed_everything(3, verbose=False)
    network = AttentionUNet(
        in_channels, num_classes, width=4, depth=2, gated_levels=(1, 2), residual=not num_classes
    )
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    return ImageToImage(network, objective, optimizer, **arguments)


TRAINER = {
    "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
    "log_every_n_steps": 1, "enable_checkpointing": False, "logger": False,
}  # fmt: skip

WORK = {
    "denoise": (partial(module, Restoration()), partial(DegradedDigits, Noise(50))),
    "inpaint": (partial(module, Restoration(nn.L1Loss), 4), partial(DegradedDigits, Holes())),
    "segment": (partial(module, Segmentation(), 3, 2), DigitMasks),
}


@pytest.mark.parametrize(("make", "data"), WORK.values(), ids=WORK)
def test_learns(make, data, tmp_path):
    """Better after 20 steps, and the panel and the metrics are there."""
    images = data(size=16, batch_size=32)
    trainer = Trainer(
        **TRAINER | {"logger": MetricsCSV(str(tmp_path))},
        max_epochs=1,
        limit_train_batches=20,
        limit_val_batches=1,
    )
    before = trainer.validate(make(), images, verbose=False)[0]["val/score"]
    trainer.fit(make(), images)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert logged["val/score"] > before
    assert logged["val/score"] == logged.get("val/psnr", logged.get("val/dice"))
    if "val/psnr" in logged:
        assert logged["val/psnr"] > logged["val/psnr_input"]
        assert 0 < logged["val/ssim"] < 1
    panel = np.asarray(Image.open(next((tmp_path / "pictures").glob("val_panel*.png"))))
    assert panel.std() > 20


def test_volumes_train(tmp_path):
    data = VolumeFolder(
        *balls(tmp_path), val_names=["2"], class_names=("none", "liver", "spleen"),
        window=(-20, 140), patch=(8, 8, 8), batch_size=2, num_workers=0,
    )  # fmt: skip
    network = AttentionUNet(
        1, 3, width=2, depth=2, dimensions=3, attention=nn.Identity, deep_supervision=True
        , gated_levels=()
    )  # fmt: skip
    net = ImageToImage(network, Segmentation(cross_entropy_weight=0.0))
    trainer = Trainer(**TRAINER | {"logger": MetricsCSV(str(tmp_path / "run"))}, max_epochs=2)
    trainer.fit(net, data)
    assert {
        "val/dice",
        "val/dice_of/liver",
        "val/dice_of/spleen",
    } <= trainer.callback_metrics.keys()
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
    data.images = str(tmp_path / "images")
    trainer.predict(net, data)
    mask = np.load(tmp_path / "run" / "results" / "1.npy")
    assert mask.shape == (9, 12, 10)
    assert mask.max() < 3
    trainer = Trainer(**TRAINER | {"default_root_dir": str(tmp_path / "alone")})
    alone = trainer.predict(net, data.predict_dataloader())
    assert np.array_equal(alone[1][0], mask)
    assert not (tmp_path / "alone").exists()


def naive_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(((a - b) ** 2).mean())


def test_psnr_and_ssim_are_means_over_images():
    targets = torch.rand(5, 3, 24, 20)
    inputs = targets + 0.1 * torch.randn_like(targets)
    output = targets + torch.rand(5, 1, 1, 1) * 0.2 * torch.randn_like(targets)
    metrics = Restoration().metrics(0)
    for part in ((0, 2), (2, 5)):  # batches that are not alike
        metrics.update(*(x[slice(*part)] for x in (inputs, output, targets)))
    numbers = metrics.compute()
    restored = output.clamp(0, 1)
    expected = np.mean([naive_psnr(a, b) for a, b in zip(restored, targets, strict=True)])
    assert numbers["psnr"] == numbers["score"]
    assert numbers["psnr"].item() == pytest.approx(expected, abs=1e-4)
    expected = np.mean([naive_psnr(a, b) for a, b in zip(inputs.clamp(0, 1), targets, strict=True)])
    assert numbers["psnr_input"].item() == pytest.approx(expected, abs=1e-4)
    expected = np.mean([naive_ssim(a, b) for a, b in zip(restored, targets, strict=True)])
    assert numbers["ssim"].item() == pytest.approx(expected, abs=1e-3)


def naive_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wang et al. 2004: windows of 11 x 11, sigma 1.5, K 0.01 and 0.03, mean over whole windows."""
    along = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = torch.outer(along, along) / along.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x[:, None].double(), window[None, None].double())

    low, high = 0.01**2, 0.03**2
    of_a, of_b = mean(a), mean(b)
    spread = mean(a * a) - of_a**2, mean(b * b) - of_b**2
    shared = mean(a * b) - of_a * of_b
    score = (2 * of_a * of_b + low) * (2 * shared + high)
    return (score / ((of_a**2 + of_b**2 + low) * (sum(spread) + high))).mean().item()


def test_dice_is_a_mean_over_images_without_the_background():
    logits, targets = torch.randn(6, 3, 9, 7), torch.randint(0, 3, (6, 9, 7))
    logits[0, 2], targets[0][targets[0] == 2] = -9, 0  # image 0 knows no class 2 at all
    metrics = Segmentation().metrics(3)
    for part in ((0, 1), (1, 6)):
        chosen = slice(*part)
        metrics.update(torch.empty(0), logits[chosen], targets[chosen])
    found = logits.argmax(1)

    def dice(image: int, label: int) -> float:
        a, b = found[image] == label, targets[image] == label
        return (2 * (a & b).sum() / (a.sum() + b.sum())).item()

    first = np.mean([dice(image, 1) for image in range(6)])
    second = np.mean([dice(image, 2) for image in range(1, 6)])
    numbers = metrics.compute()
    assert numbers["dice_of/1"].item() == pytest.approx(first, abs=1e-6)
    assert numbers["dice_of/2"].item() == pytest.approx(second, abs=1e-6)
    assert numbers["dice"].item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_losses():
    logits, targets = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4))
    scores = []
    for image in range(2):
        for label in range(3):
            p, t = logits[image].softmax(0)[label], (targets[image] == label).float()
            scores.append(2 * ((p * t).sum() + 0.01) / (p.sum() + t.sum() + 0.01))
    expected = 1 - torch.stack(scores).mean()
    torch.testing.assert_close(dice_loss(logits, targets), expected)
    both = 2 * expected + 3 * F.cross_entropy(logits, targets)
    torch.testing.assert_close(Segmentation(2.0, 3.0).loss(logits, targets), both)
    perfect = 50 * F.one_hot(targets, 3).movedim(-1, 1).float()
    assert dice_loss(perfect, targets) < 0.01
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(Restoration().loss(a, b), (a - b).square().mean())


class SaveAt(StepCheckpoint):
    """The checkpoint after one step."""

    def __init__(self, folder: Path, step: int):
        super().__init__(folder, "cut", every_n_train_steps=step, save_on_train_epoch_end=False)
        self.step = step

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.global_step == self.step:
            super()._save_checkpoint(trainer, filepath)


@pytest.mark.parametrize("name", ["denoise", "segment"])
def test_a_resumed_run_equals_one_that_was_not_stopped(name, tmp_path):
    make, data = WORK[name]

    def train(folder: Path, callbacks: list, checkpoint: Path | None = None) -> ImageToImage:
        net = make(ema_decay=0.9)
        torch.manual_seed(torch.seed())  # nothing may lean on the stream that it began with
        trainer = Trainer(
            **TRAINER | {"logger": MetricsCSV(str(folder)), "enable_checkpointing": True},
            max_epochs=2, limit_val_batches=1, callbacks=callbacks,
        )  # fmt: skip
        images = data(size=16, batch_size=360)
        trainer.fit(net, images, ckpt_path=checkpoint, weights_only=True)
        return net

    whole = train(tmp_path / "whole", [SaveAt(tmp_path, 6)])
    cut = train(tmp_path / "cut", [SaveAt(tmp_path, 10**6)], tmp_path / "cut.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(cut.state_dict()[key], value), key

    def losses(run: str) -> list[str]:
        rows = (tmp_path / run / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("train/loss_step")
        return [row.split(",")[column] for row in rows[1:]]

    assert len(losses("whole")) == 8  # 1,442 digits in batches of 360, twice
    assert losses("cut") == losses("whole")[6:]


CONFIG = {
    "task": "generation",
    "threads": 1,
    "trainer": {
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
    },
    "model": {
        "class_path": "ImageToImage",
        "init_args": {
            "network": {
                "class_path": "AttentionUNet",
                "init_args": {"width": 4, "depth": 2, "gated_levels": [1, 2]},
            },
        },
    },
}  # fmt: skip


def config(folder: Path, data: dict, objective: str) -> str:
    given = json.loads(json.dumps(CONFIG)) | {"data": data}
    given["model"]["init_args"]["objective"] = {"class_path": objective}
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(given))
    return str(file)


def run(verb: str, *arguments: str) -> None:
    assert main(["generation", verb, *arguments]) == 0


def test_command_of_segmentation(tmp_path, capsys):
    """fit, validate and predict: masks have their files' sizes and the levels of the data."""
    images, masks = discs(tmp_path, size=(20, 27))
    data = {"train_images": images, "train_masks": masks, "val_names": ["3"], "values": [0, 255]}
    data |= {"shrink": 2.0, "size": 8, "num_workers": 0}
    file = config(tmp_path, {"class_path": "MaskFolder", "init_args": data}, "Segmentation")
    folder = tmp_path / "run"
    run("fit", "-c", file, "--run", str(folder))
    run("validate", "-c", str(folder / "config.yaml"))
    measured = json.loads((folder / "validate.json").read_text())
    assert measured["images"] == 1
    assert 0 <= measured["metrics"]["val/dice"] <= 1
    run("predict", "-c", str(folder / "config.yaml"), "--data.images", images)
    for number in range(4):
        mask = np.asarray(Image.open(folder / "results" / f"{number}.png"))
        assert mask.shape == (20, 27)
        assert set(np.unique(mask)) <= {0, 255}
        assert (folder / "pictures" / f"{number}.png").is_file()
    assert load_run(folder).network.num_classes == 2
    shutil.rmtree(folder / "pictures")
    capsys.readouterr()
    words = ["-c", str(folder / "config.yaml"), "--data.images", images, "--pictures=false"]
    run("predict", *words)
    assert not (folder / "pictures").exists()
    assert f"written: {folder}/results\n" in capsys.readouterr().out


def test_results_have_names_of_their_own(tmp_path):
    """Also where two files differ in their ending alone; volumes give volumes."""
    data = DigitMasks(size=16, images=str(tmp_path))
    for name in ("a.png", "a.bmp", "b.png", "a.png.bmp"):
        Image.new("RGB", (9, 5)).save(tmp_path / name)
    trainer = Trainer(**TRAINER | {"default_root_dir": str(tmp_path / "run")})
    trainer.predict(module(Segmentation(), 3, 2), data)
    for folder in ("results", "pictures"):
        written = {path.name for path in (tmp_path / "run" / folder).iterdir()}
        assert written == {"a.png.png", "a.bmp.png", "b.png", "a.png.bmp.png"}


def test_command_of_restoration(tmp_path, capsys):
    """Holes are made at the images' own size; without `degrade` one line says that they cannot."""
    images, _ = discs(tmp_path)
    degradation = {"class_path": "Holes"}
    data = {"class_path": "DegradedDigits", "init_args": {"degradation": degradation, "size": 16}}
    file = config(tmp_path, data, "Restoration")
    folder = tmp_path / "run"
    channels = ["--model.network.init_args.in_channels", "4"]
    run("fit", "-c", file, *channels, "--run", str(folder))
    saved = ["-c", str(folder / "config.yaml"), "--data.images", images]
    run("predict", *saved, "--data.degrade", "true")
    result = np.asarray(Image.open(folder / "results" / "0.png"))
    assert result.shape == (20, 26, 3)
    capsys.readouterr()
    assert main(["generation", "predict", *saved]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "data.degrade" in error


def fails(net: ImageToImage, data, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        Trainer(**TRAINER, max_epochs=1).fit(net, data)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_one_line():
    masks = DigitMasks(size=16)
    fails(module(Segmentation(), 3, 5), masks, "has 5 classes, DigitMasks 2")
    fails(module(Restoration()), DegradedDigits(Holes(), 16), "has 4: set in_channels .* to 4")
    with pytest.raises(InputError, match=r"has 2 classes: set .* to Segmentation"):
        module(Restoration(), 3, 2)
    with pytest.raises(InputError, match=r"has 0: set .* to Restoration"):
        module(Segmentation())
    with pytest.raises(InputError, match="dice_weight or cross_entropy_weight has to be above 0"):
        Segmentation(0.0, 0.0)
    with pytest.raises(InputError, match=r"ema_decay is 1\.0: it has to be in 0\.\.1, 1 excluded"):
        module(Restoration(), ema_decay=1.0)
    trainer = Trainer(**TRAINER)
    with pytest.raises(InputError, match="nothing to predict"):
        trainer.predict(module(Segmentation(), 3, 2), masks)


def test_an_image_without_classes_does_not_count_in_the_dice_loss() -> None:
    logits = torch.randn(3, 2, 4, 4, requires_grad=True)
    targets = torch.randint(2, (3, 4, 4))
    whole = dice_loss(logits[:2], targets[:2])
    targets[2] = 255
    torch.testing.assert_close(dice_loss(logits, targets), whole)
    nothing = dice_loss(logits, torch.full_like(targets, 255))
    assert nothing == 0
    nothing.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_the_psnr_of_equal_images_is_bounded_and_counted() -> None:
    metrics = Restoration().metrics(0)
    flat, other = torch.full((1, 3, 16, 16), 0.5), torch.rand(1, 3, 16, 16)
    metrics.update(torch.cat([flat, other]), torch.cat([flat, other * 0.9]), torch.cat([flat] * 2))
    numbers = metrics.compute()
    (of_other,) = (10 * torch.log10(1 / (other * 0.9 - flat).square().mean())).view(1)
    torch.testing.assert_close(numbers["psnr"], (100 + of_other) / 2)
    assert numbers["score"] == numbers["psnr"]
    assert numbers["psnr_bounded"] == numbers["psnr_input_bounded"] == 1

    metrics.reset()
    metrics.update(other, other * 0.9, flat)
    numbers = metrics.compute()
    torch.testing.assert_close(numbers["psnr"], of_other)
    assert not {"psnr_bounded", "psnr_input_bounded"} & numbers.keys()


def test_a_dice_of_no_class_is_no_number() -> None:
    metrics = Segmentation().metrics(3)
    targets = torch.zeros(1, 4, 4, dtype=torch.int64)
    targets[0, 0] = 1
    output = F.one_hot(targets, 3).movedim(-1, 1).float()
    metrics.update(output, output, targets)
    assert {key: float(value) for key, value in metrics.compute().items()} == {
        "score": 1,
        "dice": 1,
        "dice_of/1": 1,
    }


@pytest.mark.parametrize("work", WORK)
def test_overfits_one_batch(work: str, tmp_path: Path) -> None:
    make, data = WORK[work]
    images = data(size=16, batch_size=4)
    trainer = Trainer(**TRAINER, max_epochs=3, overfit_batches=1, default_root_dir=tmp_path)
    trainer.fit(make(), images)
    assert trainer.global_step == 3


def test_overfits_one_batch_of_folders(tmp_path: Path) -> None:
    discs(tmp_path, 4)
    folders = str(tmp_path / "images"), str(tmp_path / "masks")
    data = MaskFolder(*folders, split=SplitShares(val=0.5), size=16, batch_size=2, num_workers=0)
    trainer = Trainer(**TRAINER, max_epochs=2, overfit_batches=1, default_root_dir=tmp_path)
    trainer.fit(module(Segmentation(), 3, data.num_classes), data)
    assert trainer.global_step == 2
