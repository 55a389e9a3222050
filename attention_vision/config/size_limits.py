"""Limits of the networks that a config may ask for, checked while they are built."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from attention_vision.errors import InputError

MAX_TENSORS = 20_000  # of parameters; EfficientNet-B7 has 711


@contextmanager
def limited_networks() -> Iterator[None]:
    """Context in which networks that can never be trained on this machine are not built.

    A parameter is registered before it is initialized, which is when its memory is taken: a width
    of a million is refused at once, not by the system when memory is used up.

    Raises:
        InputError: parameters of more bytes than the machine's memory, or more than `MAX_TENSORS`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tensors = taken = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, taken
        if parameter is None or parameter.is_meta:
            return
        tensors += 1
        taken += parameter.numel() * parameter.element_size()
        kind = type(module).__name__
        if taken > memory:
            raise InputError(
                f"{kind}.{name} of shape {tuple(parameter.shape)}: with it the networks need"
                f" {taken / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
            )
        if tensors > MAX_TENSORS:
            raise InputError(
                f"networks of more than {MAX_TENSORS:,} tensors of parameters: lower the number of"
                " layers (depth)"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
