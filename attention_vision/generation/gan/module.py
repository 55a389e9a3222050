"""Training of SAGAN: hinge loss, TTUR or several D steps, spectral norm, EMA of the generator."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn

from attention_vision.errors import InputError
from attention_vision.generation.data import Batch, GenerationData
from attention_vision.generation.gan.batch_picture import RealBatch
from attention_vision.generation.gan.data import LabelledImages
from attention_vision.generation.gan.diff_augment import DiffAugment, Part
from attention_vision.generation.gan.figures import SampleGrid
from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss
from attention_vision.generation.gan.predictions import GeneratedImages
from attention_vision.generation.gan.sagan import Discriminator, Generator
from attention_vision.generation.gan.scores import Evaluator, InceptionEvaluator, Unscored
from attention_vision.generation.gan.spectral_norm import (
    add_spectral_norm,
    frozen_spectral_norm,
    shared_spectral_norm,
    spectral_norms,
)
from attention_vision.generation.module import GenerationModule
from attention_vision.ranges import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Probability,
    checked,
)
from attention_vision.training.logging import log_finite, log_now
from attention_vision.training.optim import configure
from attention_vision.training.steps import mix, step_number


@checked
class MomentumFreeAdam(Adam):
    """Adam with the moments of SAGAN's paper, betas (0, 0.9); its released code has (0, 0.999)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Positive = 1e-4,
        betas: tuple[Fraction, Fraction] = (0.0, 0.9),
        eps: NonNegative = 1e-8,
        fused: bool | None = None,
    ):
        beta1, beta2 = betas
        super().__init__(params, lr, (beta1, beta2), eps, fused=fused)


@checked
class SAGAN(GenerationModule):
    """Trains a generator against a discriminator on the hinge loss.

    One batch of the loop is one step of the generator, before which the discriminator takes
    `discriminator_steps`; the data loads the images of all of them as one batch. So everything that
    counts batches or steps (`max_steps`, `val_check_interval`, checkpoints, logs, schedules) counts
    steps of the generator, as does the buffer `generator_steps`.

    Validation, pictures and predict use `average`, the moving average of the generator: a plain
    `Generator` whose weights are averages of the normalized ones.

    Args:
        generator, discriminator: of the same size and classes. The module trains these very
            networks and adds spectral norm to them in place.
        generator_optimizer, discriminator_optimizer: by default the paper's two time scales, 1e-4
            and 4e-4, one step each.
        schedule: of both learning rates; each schedule moves once per step of the generator, and
            `ReduceLROnPlateau` with each `val/score`.
        discriminator_steps: per step of the generator, n_dis.
        spectral_norm_generator, spectral_norm_discriminator: add it to all layers of the network.
        spectral_norm_eps: see `add_spectral_norm`.
        ema_decay: of the average; with 0 it is the generator itself.
        ema_start: step of the generator until which the average is the generator itself.
        accumulate: number of batches whose gradients are averaged for one step of either network.
        clip: largest norm of either network's gradients, 0 for no limit.
        augment: parts of DiffAugment, applied to real and generated images alike.
        scorer: measures `val/score`. None (null) is `InceptionEvaluator()`, whose weights are
            downloaded if they are missing; `Unscored` trains without a score.
        attention_points: (x, y) in 0..1 of the image: the queries of the attention pictures.

    Raises:
        InputError: a number that is out of its range, or networks that do not fit.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        generator_optimizer: OptimizerCallable = lambda parameters: MomentumFreeAdam(
            parameters, lr=1e-4
        ),
        discriminator_optimizer: OptimizerCallable = lambda parameters: MomentumFreeAdam(
            parameters, lr=4e-4
        ),
        schedule: LRSchedulerCallable = lambda optimizer: ConstantLR(optimizer, factor=1.0),
        discriminator_steps: Count = 1,
        spectral_norm_generator: bool = True,
        spectral_norm_discriminator: bool = True,
        spectral_norm_eps: Positive = 1e-12,
        ema_decay: Fraction = 0.999,
        ema_start: NonNegativeInt = 0,
        accumulate: Count = 1,
        clip: NonNegative = 0.0,
        augment: Sequence[Part] = (),
        scorer: Evaluator | None = None,
        attention_points: Sequence[tuple[Probability, Probability]] = (
            (0.5, 0.5),
            (0.5, 0.25),
            (0.25, 0.5),
        ),
    ):
        super().__init__()
        if generator.size != discriminator.size:
            raise InputError(
                f"the generator's size {generator.size} is not the discriminator's"
                f" {discriminator.size}"
            )
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator
        self.average = deepcopy(generator).requires_grad_(False)
        if spectral_norm_generator:
            add_spectral_norm(generator, spectral_norm_eps)
        if spectral_norm_discriminator:
            add_spectral_norm(discriminator, spectral_norm_eps)
        self._average_generator(0.0)
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.schedule = schedule
        self.discriminator_steps, self.accumulate, self.clip = discriminator_steps, accumulate, clip
        self.ema_decay, self.ema_start = ema_decay, ema_start
        self.augment = DiffAugment(augment)
        # In a tuple, so that its network is not part of the module's state.
        self.scorers = (InceptionEvaluator() if scorer is None else scorer,)
        self.scored: GenerationData | None = None  # the data that the scorer is prepared for
        self.attention_points = attention_points
        self.register_buffer("generator_steps", torch.zeros((), dtype=torch.int64))

    generator_steps: Tensor

    @property
    def scorer(self) -> Evaluator:
        return self.scorers[0]

    @property
    def batches_per_step(self) -> int:
        """Batches of real images that a step takes."""
        return self.discriminator_steps * self.accumulate

    def networks(self) -> list[nn.Module]:
        return [self.generator, self.discriminator]

    def setup(self, stage: str) -> None:
        """Tell the data how many images a step and a validation take; find the scorer's network.

        Lightning builds loaders after this, and calls the data's own `setup` before.

        Raises:
            InputError: the data is not a GAN's, or has other classes or another size; or the
                scorer's network is missing or does not fit.
        """
        super().setup(stage)
        data = self.datamodule
        if data is None:
            return
        if not isinstance(data, LabelledImages):
            raise InputError(
                f"SAGAN does not train on {type(data).__name__}: set data to a LabelledImages, such"
                " as FolderImages"
            )
        if data.size != self.generator.size:
            raise InputError(
                f"the networks make and judge images of {self.generator.size} pixels, data.size is"
                f" {data.size}: set the size of model.generator and model.discriminator to it"
            )
        data.batches_per_step, data.samples = self.batches_per_step, self.scorer.samples
        if stage == "fit" and self.trainer.limit_val_batches:  # else it would be missed after hours
            self.scorer.find(data)

    def configure_callbacks(self) -> list[Callback]:
        """Raise InputError for arguments of the trainer that two networks do not allow."""
        if self.trainer.gradient_clip_val:
            raise InputError("trainer.gradient_clip_val clips no GAN: set model.clip instead")
        if self.trainer.accumulate_grad_batches != 1:
            raise InputError(
                "trainer.accumulate_grad_batches counts no GAN's batches: set model.accumulate"
            )
        return [*super().configure_callbacks(), RealBatch(), SampleGrid(), GeneratedImages()]

    def configure_optimizers(self) -> list[dict]:
        configured = (
            configure(self, self.generator, self.generator_optimizer, self.schedule),
            configure(self, self.discriminator, self.discriminator_optimizer, self.schedule),
        )
        schedules = (one["lr_scheduler"]["scheduler"] for one in configured)
        plateau = any(isinstance(one, ReduceLROnPlateau) for one in schedules)
        if plateau and isinstance(self.scorer, Unscored):
            raise InputError(
                "model.schedule ReduceLROnPlateau follows val/score, which Unscored does not"
                " measure: set model.scorer, or take another schedule"
            )
        # Without the rest, which tells Lightning when to move a schedule: `training_step` does it.
        return [one | {"lr_scheduler": one["lr_scheduler"]["scheduler"]} for one in configured]

    def batch_augmentation(self) -> list[str]:
        """The parts of DiffAugment that are on."""
        names = [part.__name__ for part in self.augment.parts]
        return [f"DiffAugment: {', '.join(names)}"] if names else []

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        batches = list(
            zip(
                images.chunk(self.batches_per_step),
                labels.chunk(self.batches_per_step),
                strict=True,
            )
        )
        optimizers: Any = self.optimizers()
        generator_optimizer, discriminator_optimizer = optimizers
        # Through these two hooks, which Lightning sets anew before every step, `global_step` counts
        # the steps of every optimizer: those of the discriminator are not to count.
        discriminator_optimizer._on_before_step = discriminator_optimizer._on_after_step = nothing
        losses = {}
        with self._without_reducer():
            self.generator.requires_grad_(False)
            for first in range(0, len(batches), self.accumulate):
                losses |= self._discriminator_losses(batches[first : first + self.accumulate])
                self._step(discriminator_optimizer, self.discriminator)
            self.generator.requires_grad_(True)
            self.discriminator.requires_grad_(False)
            losses["loss_generator"] = self._generator_losses(len(batches[0][0]))
            stepped = self._step(generator_optimizer, self.generator)
            self.discriminator.requires_grad_(True)
        schedules: Any = self.lr_schedulers()
        for schedule in schedules:
            if not isinstance(schedule, ReduceLROnPlateau):  # which follows the score
                schedule.step()
        # Until the start, the average is the generator itself.
        started = self.trainer.global_step > max(1, self.ema_start)
        if stepped:
            self._average_generator(self.ema_decay if started else 0.0)
        self.generator_steps += 1
        names = ("loss_discriminator", "loss_generator", "output_real", "output_fake")
        self._log_step({name: losses[name] for name in names})
        return {"loss": losses["loss_generator"]}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the first step of either network, as they are now; nothing is trained."""
        images, labels = (part.chunk(self.batches_per_step)[0] for part in batch)
        return {
            "loss_discriminator": discriminator_loss(*self._judge(images, labels)),
            "loss_generator": self._generator_loss(len(images)),
        }

    def _judge(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """D's logits (B,) of real images and of as many generated ones."""
        with torch.no_grad():
            generated, wanted = self.generate(len(images))
        with shared_spectral_norm(self.discriminator):  # its vectors move once, on both
            fake = self.discriminator(self.augment(generated), wanted).float()
            return self.discriminator(self.augment(images), labels).float(), fake

    def _generator_loss(self, count: int) -> Tensor:
        generated, wanted = self.generate(count)
        network = self.discriminator
        with frozen_spectral_norm(network), shared_spectral_norm(network):
            return generator_loss(self.discriminator(self.augment(generated), wanted).float())

    def _discriminator_losses(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Add up D's gradients; return its loss, and mean outputs on real and generated images."""
        numbers = []
        for images, labels in batches:
            real, fake = self._judge(images, labels)
            loss = discriminator_loss(real, fake)
            self.step_losses = {"loss_discriminator": loss}
            self.manual_backward(loss / len(batches))
            numbers.append(torch.stack([real.mean(), fake.mean(), loss]).detach())
        real, fake, loss = torch.stack(numbers).mean(0).unbind()
        return {"output_real": real, "output_fake": fake, "loss_discriminator": loss}

    def _generator_losses(self, count: int) -> Tensor:
        """Add up G's gradients over batches of `count` images; return its loss."""
        losses = []
        for _ in range(self.accumulate):
            loss = self._generator_loss(count)
            self.step_losses = {"loss_generator": loss}
            self.manual_backward(loss / self.accumulate)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def generate(self, count: int) -> tuple[Tensor, Tensor]:
        """Generate images of random noise and classes, in training; return both."""
        z = torch.randn(count, self.generator.latent, device=self.device)
        classes = max(1, self.generator.num_classes)
        labels = torch.randint(classes, (count,), device=self.device)
        with shared_spectral_norm(self.generator):
            return self.generator(z, labels), labels

    def _step(self, optimizer: Optimizer | LightningOptimizer, network: nn.Module) -> bool:
        """Train a network by its gradients; False where `FiniteSteps` left the step out."""
        if self.trainer.world_size > 1:
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        optimizer.step()
        stepped = any(one.grad is not None for one in network.parameters())
        optimizer.zero_grad()
        return stepped

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.clip:  # here, because 16-mixed has unscaled the gradients just before
            groups = (group["params"] for group in optimizer.param_groups)
            nn.utils.clip_grad_norm_(list(chain.from_iterable(groups)), self.clip)

    def _without_reducer(self) -> AbstractContextManager:
        """Keep DDP from waiting for all gradients in each backward pass; `_step` averages them."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    @torch.no_grad()
    def _average_generator(self, decay: float) -> None:
        """average <- decay average + (1 - decay) generator, of normalized weights."""
        with frozen_spectral_norm(self.generator), shared_spectral_norm(self.generator):
            averages, present = [], []
            for name, old in chain(self.average.named_parameters(), self.average.named_buffers()):
                layer, _, attribute = name.rpartition(".")
                new = getattr(self.generator.get_submodule(layer), attribute)  # normalized
                if decay and old.is_floating_point():
                    averages.append(old)
                    present.append(new)
                else:
                    old.copy_(new)
            if averages:
                get_ema_multi_avg_fn(decay)(averages, present, None)

    def _log_step(self, numbers: dict[str, Tensor]) -> None:
        self.log_dict({f"train/{name}": value for name, value in numbers.items()}, logger=False)
        trainer: Any = self.trainer  # Lightning sets this number on it without declaring it
        if (step_number(trainer) + 1) % trainer.log_every_n_steps:
            return
        values = torch.stack(list(numbers.values())).tolist()
        row = {f"train/{name}": value for name, value in zip(numbers, values, strict=True)}
        for part, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            for name, sigma in spectral_norms(network).items():
                row[f"train/spectral_norm_{part}/{name}"] = sigma
            for name, gamma in gammas(network).items():
                row[f"train/gamma_{part}/{name}"] = gamma
        log_now(trainer, row)

    def draw(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Images (n, 3, H, W) of the averaged generator, from `noise`."""
        return self.average(self.noise(indices), labels)

    def noise(self, indices: Tensor) -> Tensor:
        """Normal noise (n, latent), which follows from each index alone, in any run or process."""
        rows = [torch.Generator().manual_seed(mix(index)) for index in indices.tolist()]
        z = [torch.randn(self.average.latent, generator=row) for row in rows]
        return torch.stack(z).to(self.device)

    def on_validation_epoch_start(self) -> None:
        self._begin_scores()

    def on_test_epoch_start(self) -> None:
        self._begin_scores()

    def _begin_scores(self) -> None:
        data = self.datamodule
        if self.scored is not data:
            self.scored = data
            self.scorer.prepare(data, self.device)
        self.scorer.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        indices, labels = batch
        self.scorer.update(self.draw(indices, labels), labels, indices)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        trainer: Any = self.trainer
        if trainer.sanity_checking or trainer.fast_dev_run:  # of too few images
            return
        numbers = self.scorer.compute()  # of all processes
        named = {f"{split}/{name}": value for name, value in numbers.items()}
        log_finite(self, named, prog_bar=(f"{split}/score",))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.draw(*batch)


def gammas(network: nn.Module) -> dict[str, float]:
    """Name of each attention layer -> the factor that it is added with; 0 at the start."""
    found = {
        name.removesuffix(".gamma"): gamma.detach()
        for name, gamma in network.named_parameters()
        if name.endswith(".gamma")
    }
    values = torch.stack(list(found.values())).tolist() if found else []  # one transfer for all
    return dict(zip(found, values, strict=True))


def nothing() -> None:
    pass
