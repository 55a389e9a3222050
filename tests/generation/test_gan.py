"""The training of SAGAN: steps, averages, resume, two processes, half precision, bad input."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import gan_two_processes
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny_gan import STEPS_PER_EPOCH, Brightness, curves, few_digits, gan, train
from torch import Tensor
from torch.nn.utils import parametrize

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.generation import DigitMasks, Discriminator, Generator, Unscored
from attention_vision.generation.gan.module import SAGAN
from attention_vision.generation.gan.spectral_norm import step
from attention_vision.runs import load_run


class SaveEverywhere(Checkpoint):
    """A checkpoint at every point where one can be saved, with the curves at that moment."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)

    def save(self, trainer: Trainer, event: str) -> None:
        stem = self.folder / f"{trainer.global_step:02d}_{event}"
        trainer.save_checkpoint(stem.with_suffix(".ckpt"))
        shutil.copy(trainer.logger.file, stem.with_suffix(".csv"))

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if not trainer.is_last_batch:
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        self.save(trainer, "epoch")


class Final(Callback):
    """What is trained at the end: weights, averages, vectors, optimisers."""

    def on_train_end(self, trainer: Trainer, module: SAGAN) -> None:
        self.state = {
            "module": {name: value.clone() for name, value in module.state_dict().items()},
            "optimizers": [optimizer.state_dict()["state"] for optimizer in trainer.optimizers],
            "schedules": [c.scheduler.last_epoch for c in trainer.lr_scheduler_configs],
        }


def assert_equal(one: object, other: object, where: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict | list):
        items = one.items() if isinstance(one, dict) else enumerate(one)
        assert len(one) == len(other), where
        for key, value in items:
            assert_equal(value, other[key], f"{where} {key}")
    else:
        assert one == other, where


def test_a_resumed_run_equals_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    """20 steps and more: losses, noise, data, both networks, averages, vectors, optimisers."""
    epochs, whole = 5, Final()
    saving = SaveEverywhere(tmp_path / "saved")
    train(tmp_path / "whole", None, [saving, whole], max_epochs=epochs)
    rows = curves(tmp_path / "whole")
    assert [int(row["step"]) for row in rows] == list(range(epochs * STEPS_PER_EPOCH))
    assert rows[0]["train/loss_generator"] != rows[1]["train/loss_generator"]

    for cut in ("02_batch", "05_validation", "05_epoch"):
        folder, final = tmp_path / cut, Final()
        folder.mkdir()
        shutil.copy(saving.folder / f"{cut}.csv", folder / "metrics.csv")
        train(folder, saving.folder / f"{cut}.ckpt", [final], max_epochs=epochs)
        assert curves(folder) == rows, cut
        assert_equal(final.state, whole.state, cut)


@pytest.mark.parametrize(
    ("interval", "cuts"),
    [(3, ("05_epoch", "06_validation", "07_batch")), (5, ("05_validation", "05_epoch"))],
)
def test_a_run_of_so_many_steps_resumes_too(
    tmp_path: Path, interval: int, cuts: tuple[str, ...]
) -> None:
    """As recipes of GANs count: without epochs, validated every so many steps."""
    counted = {
        "max_epochs": -1, "max_steps": 12, "val_check_interval": interval,
        "check_val_every_n_epoch": None,
    }  # fmt: skip
    saving, whole = SaveEverywhere(tmp_path / "saved"), Final()
    train(tmp_path / "whole", None, [saving, whole], **counted)
    for cut in cuts:
        folder, final = tmp_path / cut, Final()
        folder.mkdir()
        shutil.copy(saving.folder / f"{cut}.csv", folder / "metrics.csv")
        train(folder, saving.folder / f"{cut}.ckpt", [final], **counted)
        assert curves(folder) == curves(tmp_path / "whole"), cut
        assert_equal(final.state, whole.state, cut)


def test_steps_are_those_of_the_generator(tmp_path: Path) -> None:
    """For `max_steps`, checkpoints, rows, schedules and the buffer, however many D takes."""
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    module = train(tmp_path, None, [every], max_epochs=-1, max_steps=7)
    assert module.trainer.global_step == 7 == module.generator_steps
    assert [int(row["step"]) for row in curves(tmp_path)] == list(range(7))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=3.ckpt", "step=6.ckpt"]
    assert [c.scheduler.last_epoch for c in module.trainer.lr_scheduler_configs] == [7, 7]
    taken = [optimizer.state_dict()["state"][0]["step"] for optimizer in module.trainer.optimizers]
    assert taken == [7, 14]


def test_a_step_of_one_network_leaves_the_other_without_gradients(tmp_path: Path) -> None:
    seen = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: SAGAN, optimizer) -> None:
            steps_generator = optimizer is trainer.optimizers[0]
            pair = (module.generator, module.discriminator)
            trained, other = pair if steps_generator else pair[::-1]
            assert all(parameter.grad is not None for parameter in trained.parameters())
            assert all(parameter.grad is None for parameter in other.parameters())
            seen.append(steps_generator)

    module = train(tmp_path, None, [Watch()], max_epochs=1)
    assert seen == [False, False, True] * STEPS_PER_EPOCH
    for network in (module.generator, module.discriminator):
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    """Of D, which has no batch norm: two halves give what the whole gives."""
    gradients = []

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: SAGAN, optimizer) -> None:
            if optimizer is trainer.optimizers[1]:
                gradients.append([p.grad.clone() for p in module.discriminator.parameters()])

    images, labels = torch.rand(12, 3, 16, 16) * 2 - 1, torch.arange(12) % 10
    noise, wanted = torch.randn(12, 4), torch.arange(12) % 7
    for parts in (1, 2):
        module = gan(discriminator_steps=1, accumulate=parts, augment=())
        module.generator.eval()
        z, y = iter(noise.chunk(parts)), iter(wanted.chunk(parts))

        def generate(count: int, module=module, z=z, y=y) -> tuple[Tensor, Tensor]:
            labels = next(y)
            return module.generator(next(z), labels), labels

        module.generate = generate
        batches = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
        module.manual_backward = Tensor.backward
        for norm in module.discriminator.modules():
            norm.frozen = True  # else the second half would see vectors a step further
        module._discriminator_losses(batches)
        gradients.append([p.grad.clone() for p in module.discriminator.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_spectral_vectors_of_d_move_once_in_its_step_and_never_in_that_of_g(tmp_path: Path) -> None:
    module = gan(discriminator_steps=1)
    layer = module.discriminator.blocks[1].conv2.parametrizations.weight
    with torch.no_grad():
        _, expected, _ = step([(layer[0], layer.original)])
        _, twice, _ = step([(layer[0].train(), layer.original + 0)])
    assert torch.equal(expected, twice)  # `step` alone moves nothing
    train(tmp_path, None, None, module, max_steps=1, max_epochs=-1, limit_val_batches=0)
    assert torch.equal(layer[0].u, expected[0])


def test_the_average_is_of_normalised_weights() -> None:
    module = gan(ema_decay=0.75)
    assert not any(parametrize.is_parametrized(layer) for layer in module.average.modules())
    z, labels = torch.randn(4, 4), torch.arange(4)
    module.eval()
    assert torch.allclose(module.average(z, labels), module.generator(z, labels), atol=1e-5)

    before = module.average.conv.weight.clone()
    with torch.no_grad():
        module.generator.conv.bias += 1
        module.generator.conv.parametrizations.weight.original *= -3  # normalised: another sign
    module._average_generator(0.75)
    assert torch.allclose(module.average.conv.weight, 0.5 * before, atol=1e-4)
    assert torch.allclose(module.average.conv.bias, torch.full((3,), 0.25))
    state = module.average.state_dict()
    Generator(size=16, latent=4, width=8, attention_at=(8,)).load_state_dict(state)


def test_until_its_start_the_average_is_the_generator(tmp_path: Path) -> None:
    differences = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: SAGAN, *_: object) -> None:
            ours, theirs = module.average.conv.bias, module.generator.conv.bias
            differences.append((ours - theirs).abs().max().item())

    train(tmp_path, None, [Watch()], max_epochs=1)
    assert differences[:3] == [0, 0, 0]
    assert min(differences[3:]) > 0


def test_without_classes_and_without_spectral_norm(tmp_path: Path) -> None:
    class Unlabelled(type(few_digits())):
        class_names = ()

    module = gan(
        num_classes=0, spectral_norm_generator=False, spectral_norm_discriminator=False, clip=0.1
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Unlabelled(16, batch_size=6))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_trains_in_half_precision(tmp_path: Path, precision: str) -> None:
    """On a CPU Lightning takes bf16 for fp16 unless it is given the scaler."""
    scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
    module = gan(clip=0.5, accumulate=2, discriminator_steps=1)
    plugin = MixedPrecision(precision, "cpu", scaler)
    train(tmp_path, None, None, module, max_epochs=-1, max_steps=6, plugins=[plugin])
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.trainer.global_step == 6
    assert scaler is None or scaler.get_scale() > 1


def test_two_processes_agree(tmp_path: Path) -> None:
    """Plain `ddp` trains both networks, weights stay equal, and the samples are those of one."""
    command = [sys.executable, gan_two_processes.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["step"] == second["step"] == 2 * (60 // (2 * 12))
    start = dict(gan(accumulate=2, discriminator_steps=1).named_parameters())
    for name, value in first["parameters"].items():
        assert torch.equal(value, second["parameters"][name]), name
    assert any(not torch.equal(value, start[name]) for name, value in first["parameters"].items())
    assert sorted([*first["images"], *second["images"]]) == list(range(12))


def test_what_it_logs(tmp_path: Path) -> None:
    train(tmp_path, max_epochs=1)
    *_, row = curves(tmp_path)
    for key in (
        "train/loss_discriminator",
        "train/loss_generator",
        "train/output_real",
        "train/output_fake",
        "train/gamma_generator/blocks.0.attention",
        "train/gamma_discriminator/blocks.0.attention",
        "train/spectral_norm_generator/linear",
        "train/spectral_norm_discriminator/embedding",
        "val/score",
    ):
        assert float(row[key]) == float(row[key]), key  # neither missing nor NaN
    assert list((tmp_path / "pictures").glob("val_samples_*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discriminator_steps": 0}, "discriminator_steps is 0: it has to be"),
        ({"accumulate": 0}, "accumulate is 0: it has to be"),
        ({"clip": -1.0}, "clip is -1.0: it has to be"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: it has to be"),
        ({"augment": ("color",)}, "no part 'color' of DiffAugment; there are colour, translation"),
        ({"attention_points": [(0.5, 8.0)]}, "attention_points[0][1] is 8.0: it has to be in 0..1"),
    ],
)
def test_refuses_numbers_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as refused:
        gan(**arguments)
    assert message in str(refused.value)


EXPERIMENT = """
trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu, devices: 1, log_every_n_steps: 1}
data: {class_path: DigitImages, init_args: {batch_size: 4, count: 4}}
model:
  class_path: SAGAN
  init_args:
    generator: {class_path: Generator, init_args: {size: 16, width: 8, attention_at: [8]}}
    discriminator: {class_path: Discriminator, init_args: {size: 16, width: 8, attention_at: [8]}}
    scorer: {class_path: InceptionEvaluator, init_args: {samples: 50000}}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    Path("gan.yaml").write_text(EXPERIMENT)
    return ["-c", "gan.yaml", "--run", "run"]


def test_trains_without_a_score(experiment: list[str]) -> None:
    """A run then has a last checkpoint alone, which the other verbs and `load_run` take."""
    assert main(["generation", "fit", *experiment, "--model.scorer", "Unscored"]) == 0
    assert [file.name for file in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    assert "score" not in Path("run/metrics.csv").read_text()
    assert list(Path("run/pictures").glob("val_samples_*.png"))
    assert main(["generation", "validate", "-c", "run/config.yaml"]) == 0
    report = json.loads(Path("run/validate.json").read_text())
    assert (report["checkpoint"], report["metrics"]) == ("run/checkpoints/last.ckpt", {})
    assert report["images"] == 64  # not the 50,000 of the evaluator in the file
    with pytest.warns(UserWarning, match="no best checkpoint yet: loading last"):
        assert load_run("run").generator_steps == 2


def test_without_a_score_divergence_is_still_seen() -> None:
    with pytest.raises(InputError, match="generated images are not finite"):
        Unscored().update(torch.full((2, 3, 4, 4), torch.nan))


def test_the_size_of_networks_and_data_in_one_line(
    experiment: list[str], capsys: pytest.CaptureFixture
) -> None:
    Path("gan.yaml").write_text(EXPERIMENT.replace("size: 16, ", ""))  # both have 32 by default
    assert main(["generation", "fit", *experiment]) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "error:" in x)
    assert "make and judge images of 32 pixels, data.size is 16: set the size of" in line
    assert not Path("run").exists()


def test_refuses_networks_that_do_not_fit(tmp_path: Path) -> None:
    shape = {"width": 8, "attention_at": (8,)}
    with pytest.raises(InputError, match="generator's size 32 is not the discriminator's 16"):
        SAGAN(Generator(32, **shape), Discriminator(16, **shape), scorer=Brightness())
    module = SAGAN(Generator(32, **shape), Discriminator(32, **shape), scorer=Brightness())
    with pytest.raises(InputError, match=r"images of 32 pixels, data.size is 16: set the size"):
        train(tmp_path, module=module)
    with pytest.raises(InputError, match="the network has 7 classes, FewDigits 10"):
        train(tmp_path, module=gan(num_classes=7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val clips no GAN: set model.clip"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches counts no GAN's batches"),
    ],
)
def test_refuses_what_the_trainer_cannot_do(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, **arguments)


def test_the_module_tells_the_data_what_to_load(tmp_path: Path) -> None:
    module, data = gan(discriminator_steps=3, accumulate=2, scorer=Brightness(14)), few_digits()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**options, enable_checkpointing=False, max_steps=1, default_root_dir=tmp_path)
    trainer.fit(module, data)
    assert trainer.num_training_batches == 60 // (6 * 3 * 2)
    assert sum(len(batch[0]) for batch in data.val_dataloader()) == 14
    assert (data.batches_per_step, data.samples) == (6, 14)
    other = DigitMasks(size=16)
    other.class_names = data.class_names
    with pytest.raises(InputError, match="SAGAN does not train on DigitMasks: set data to a"):
        trainer.fit(module, other)


def test_a_plateau_follows_the_score(tmp_path: Path) -> None:
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0)
    module = gan(schedule=plateau, scorer=Falling())
    train(tmp_path, module=module, num_sanity_val_steps=0)
    for optimizer, first in zip(module.optimizers(), (1e-4, 4e-4), strict=True):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(first / 4)  # 2 of 3 are worse


def test_a_plateau_without_a_score_is_refused(tmp_path: Path) -> None:
    module = gan(schedule=torch.optim.lr_scheduler.ReduceLROnPlateau, scorer=Unscored())
    with pytest.raises(InputError, match="follows val/score, which Unscored does not measure"):
        train(tmp_path, module=module)


class Falling(Brightness):
    """Scores lower with each validation."""

    score = 1.0

    def compute(self) -> dict[str, float]:
        self.score /= 2
        return {"score": self.score}
