"""Words of `--compile`, and the life of what CUDA graphs return."""

from typing import Any

import torch
from lightning.pytorch import Callback

MODES = ("reduce-overhead", "max-autotune")  # of inductor, with CUDA graphs


def compiled_by(word: str) -> dict[str, str]:
    """Arguments of `nn.Module.compile` for a word of `--compile`."""
    return {"mode": word} if word in MODES else {"backend": word}


class GraphsOfBatch(Callback):
    """Keep the outputs of compiled networks whole until the next batch begins.

    A CUDA graph writes its outputs to the same memory in each run. Without this, torch takes every
    call of a network for a step of its own, and a GAN, which calls each network several times in a
    step, would read outputs that were overwritten.
    """

    def on_train_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def on_test_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def on_predict_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()
