"""Communication between processes; a single one needs no process group."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Index of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """Collect the values of all processes on rank zero, [] on the others; all call it."""
    if world_size() == 1:
        return [value]
    values = None if rank() else [None] * world_size()
    dist.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """Return rank zero's value; all processes call it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over processes; with one, return the tensor itself."""
    if world_size() == 1:
        return values
    dist.all_reduce(values)
    return values / world_size()
