"""Run by test_gan.py: trains and validates a GAN in two processes.

python gan_two_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from tiny_gan import SAGAN, gan, train


class SaveEach(Callback):
    """What each process holds at the end."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_end(self, trainer: Trainer, module: SAGAN) -> None:
        kept = {"parameters": dict(module.named_parameters()), "step": trainer.global_step}
        torch.save(
            kept | {"images": module.scorer.images}, self.folder / f"{trainer.global_rank}.pt"
        )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    two = {"devices": 2, "strategy": "ddp", "num_sanity_val_steps": 0}
    module = gan(accumulate=2, discriminator_steps=1, clip=1.0)
    train(folder / "run", None, [SaveEach(folder)], module, max_epochs=2, **two)
