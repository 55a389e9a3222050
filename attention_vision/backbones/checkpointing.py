"""Activation checkpointing: blocks that compute their activations again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_vision.attention.recording import is_recorded


def recomputable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate the forward of a block, so that `checkpoint_blocks` can switch it.

    A switched block keeps its inputs alone for the backward pass, which computes the block again
    with the same random numbers (Chen et al., arXiv 1604.06174). Gradients and the statistics of
    norms are bit by bit those of an unswitched block. A block whose attention is recorded keeps its
    activations: recorded maps are part of the graph.
    """

    @wraps(forward)
    def run(self: nn.Module, *inputs: Any) -> Tensor:
        on = getattr(self, "checkpointing", False) and self.training and torch.is_grad_enabled()
        if not on or is_recorded(self):
            return forward(self, *inputs)
        if torch.compiler.is_compiling():  # which updates statistics once by itself
            return checkpoint(partial(forward, self), *inputs, use_reentrant=False)
        contexts = partial(first_and_again, self)
        return checkpoint(partial(forward, self), *inputs, use_reentrant=False, context_fn=contexts)

    run.is_recomputable = True  # type: ignore[attr-defined] a mark on the function
    return run


def checkpoint_blocks(network: nn.Module) -> None:
    """Switch on the checkpointing of all blocks of a network."""
    for module in network.modules():
        if hasattr(type(module).forward, "is_recomputable"):
            module.checkpointing = True  # type: ignore[assignment] a flag, no submodule


def first_and_again(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the forward pass and of its repetition."""
    return nullcontext(), same_statistics(block)


@contextmanager
def same_statistics(block: nn.Module) -> Iterator[None]:
    """Update copies of running means and variances: the forward pass has updated them."""
    norms = [module for module in block.modules() if getattr(module, "track_running_stats", False)]
    buffers = [
        (norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)
    ]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
