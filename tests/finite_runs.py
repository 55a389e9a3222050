"""Small modules of every task, and callbacks that break one of their steps."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from attention_vision.backbones import ResNet
from attention_vision.classification import Classifier, Digits
from attention_vision.detection import (
    DETR,
    AttentionRCNN,
    DeformableDETR,
    DeformableDETRDetector,
    Denoising,
    DETRDetector,
    DigitScenes,
    PlainBoxHead,
    RCNNDetector,
)
from attention_vision.generation import (
    SAGAN,
    AttentionUNet,
    DegradedDigits,
    DigitImages,
    Discriminator,
    Generator,
    ImageToImage,
    Noise,
    Restoration,
    Unscored,
)
from attention_vision.training.metrics_csv import MetricsCSV

ADAM = partial(torch.optim.AdamW, lr=1e-3)


def backbone() -> ResNet:
    return ResNet(8, num_classes=10, width=4, stem="cifar")


def classifier(ema: bool = False) -> Classifier:
    return Classifier(backbone(), ADAM, ema_decay=0.9 * ema)


def detr(ema: bool = False) -> DETRDetector:
    network = DETR(10, 4, backbone(), width=8, heads=2, encoder_layers=1, decoder_layers=2)
    return DETRDetector(network, optimizer=ADAM, backbone_weights=None)


def dino(ema: bool = False) -> DeformableDETRDetector:
    network = DeformableDETR(
        10, 4, backbone(), refine=True, two_stage=True, mixed_queries=True, look_forward_twice=True,
        denoising=Denoising(8), width=8, heads=2, encoder_layers=1, decoder_layers=2, hidden=16,
        levels=2,
    )  # fmt: skip
    return DeformableDETRDetector(network, optimizer=ADAM)


def rcnn(ema: bool = False) -> RCNNDetector:
    head = partial(PlainBoxHead, hidden=8)
    network = AttentionRCNN(10, backbone(), head, 8, 2, sampled_proposals=16, train_proposals=50)
    return RCNNDetector(network, optimizer=ADAM)


def sagan(ema: bool = False) -> SAGAN:
    shape: dict[str, Any] = {"size": 16, "num_classes": 10, "width": 8, "attention_at": (8,)}
    generator = Generator(latent=4, **shape)
    return SAGAN(generator, Discriminator(**shape), scorer=Unscored())


def unet(ema: bool = False) -> ImageToImage:
    network = AttentionUNet(3, 0, width=4, depth=2, gated_levels=(1,), residual=True)
    return ImageToImage(network, Restoration(), ADAM, ema_decay=0.9 * ema)


MODULES: dict[str, Callable[..., LightningModule]] = {
    "classifier": classifier,
    "detr": detr,
    "dino": dino,
    "rcnn": rcnn,
    "sagan": sagan,
    "unet": unet,
}
DATA: dict[str, Callable[[], Any]] = {
    "classifier": partial(Digits, image_size=16, batch_size=4),
    "detr": partial(DigitScenes, scenes=12, val_scenes=3, batch_size=2),
    "dino": partial(DigitScenes, scenes=12, val_scenes=3, batch_size=2),
    "rcnn": partial(DigitScenes, scenes=12, val_scenes=3, batch_size=2),
    "sagan": partial(DigitImages, size=16, batch_size=4),
    "unet": partial(DegradedDigits, Noise(50), size=16, batch_size=4),
}
LAYERS = {  # one of each, which training steps run through
    "classifier": "network.stages.1",
    "detr": "network.backbone.stages.1",
    "dino": "network.backbone.stages.1",
    "rcnn": "network.backbone.stages.1",
    "sagan": "generator.blocks.0",
    "unet": "network.head",
}


class Break(Callback):
    """Makes a layer's output NaN in some training steps."""

    def __init__(self, layer: str, *steps: int):
        self.layer, self.steps, self.step = layer, steps, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        layer = module.get_submodule(self.layer)
        self.hook = layer.register_forward_hook(lambda _, __, output: self.broken(output))

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, idx: int) -> None:
        self.step = idx

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.step = -1

    def broken(self, output: Tensor) -> Tensor | None:
        return output * torch.nan if self.step in self.steps else None

    @contextmanager
    def on(self, module: LightningModule, image: int | None = None) -> Iterator[None]:
        """Context in which the layer is broken, for all images or that of the first batch."""

        def broken(_: Any, __: Any, output: Tensor) -> Tensor:
            factors = torch.full((len(output),), torch.nan if image is None else 1.0)
            if image is not None:
                factors[image] = torch.nan
            return output * factors.view(-1, *[1] * (output.ndim - 1))

        hook = module.get_submodule(self.layer).register_forward_hook(broken)
        try:
            yield
        finally:
            hook.remove()


class BreakGradient(Callback):
    """Makes gradients of the first parameters infinite in some training steps."""

    def __init__(self, *steps: int):
        self.steps, self.step = steps, 0

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, idx: int) -> None:
        self.step = trainer.fit_loop.total_batch_idx

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if self.step in self.steps:
            first = next(one for one in module.parameters() if one.requires_grad)
            if first.grad is not None:
                first.grad.view(-1)[0] = torch.inf


def fit(
    module: LightningModule,
    data: Any,
    folder: Path,
    callbacks: list[Callback],
    ckpt_path: Path | None = None,
    **trainer: Any,
) -> None:
    """Trains 4 steps, or as `trainer` says."""
    seed_everything(0, verbose=False)
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 4,
        "limit_val_batches": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "logger": MetricsCSV(str(folder)),
        "callbacks": callbacks,
    }
    Trainer(**options | trainer).fit(module, data, ckpt_path=ckpt_path, weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without empty cells."""
    with (folder / "metrics.csv").open() as file:
        return [{key: one for key, one in row.items() if one} for row in csv.DictReader(file)]
