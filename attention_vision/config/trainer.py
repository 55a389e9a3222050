"""What the trainer refuses, and settings of it that would hang, in one line."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from attention_vision.errors import InputError

MAX_CPU_PROCESSES = 16  # or one per core, where there are more


@contextmanager
def refusals_of_trainer() -> Iterator[None]:
    """Context in which an exception that Lightning raises itself becomes an InputError.

    Lightning checks some settings when the trainer is built, others when it has seen the data, such
    as a `val_check_interval` of more batches than there are, and raises many classes.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError) and is_refusal(error):
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        raise


def is_refusal(error: Exception) -> bool:
    """Whether Lightning raised an exception by a statement of its own, not by a fault."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    folder = f"{os.sep}lightning{os.sep}"
    return folder in last.filename and (last.line or "").startswith("raise ")


def check_before(options: Namespace) -> None:
    """Check settings before the trainer is built. Raises InputError for those that cannot work."""
    if "spawn" in str(options.strategy):
        raise InputError(
            f"trainer.strategy is {options.strategy}: its processes would start without the config;"
            " choose ddp"
        )
    most = max(MAX_CPU_PROCESSES, os.cpu_count() or 1)
    count = int(options.devices) if str(options.devices).isdecimal() else 0
    if options.accelerator == "cpu" and count > most:
        raise InputError(
            f"trainer.devices is {count}: that many processes on this machine's"
            f" {os.cpu_count()} cores; at most {most}"
        )
    least, most = options.min_epochs or 0, options.max_epochs or -1
    if least > most >= 0:
        raise InputError(f"trainer.min_epochs is {least}, more than trainer.max_epochs, {most}")


def check_after(trainer: Trainer) -> None:
    """Refuse several nodes where nothing starts the others, for which it would wait for ever.

    Raises:
        InputError: neither SLURM, torchrun or the like nor the user's own variables name the nodes.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    named = {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not named:
        raise InputError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing starts the other nodes: use"
            " srun or torchrun, or set MASTER_ADDR and NODE_RANK on every node"
        )
