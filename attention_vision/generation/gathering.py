"""What processes tell each other; one alone needs no process group."""

from typing import Any

import torch


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """The values of all processes on rank zero, none on the others; all of them call it."""
    if processes() == 1:
        return [value]
    values = None if rank() else [None] * processes()
    torch.distributed.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """Rank zero's value; all processes call it."""
    if processes() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]
