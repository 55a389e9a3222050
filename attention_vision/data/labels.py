"""The meaning of labels: names that travel in checkpoints, and mapping by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.training.run_folder import read_checkpoint

SHOWN = 6  # names in a message


@dataclass(frozen=True)
class Labels:
    """Names of the labels that weights were trained with.

    Attributes:
        class_names: by label.
        category_ids: number of each label in the annotation files of detection, else empty.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()


def labels_in(checkpoint: Mapping[str, Any]) -> Labels | None:
    """The labels in a checkpoint of a run; None in one that was written without."""
    for state in checkpoint.values():  # Lightning keeps the data's state under its class's name
        if isinstance(state, Mapping) and "class_names" in state:
            ids = state.get("category_ids", ())
            return Labels(tuple(map(str, state["class_names"])), tuple(ids))
    return None


def read_labels(file: Path) -> Labels | None:
    """The labels in a checkpoint file. Raises InputError for a damaged one."""
    return labels_in(read_checkpoint(file))


def labels_by_name(trained: Sequence[str], here: Sequence[str], where: str) -> list[int]:
    """The trained label of each label of some data, found by their names.

    Args:
        trained: names of the classes that the weights know.
        here: names of the classes of the data.
        where: the data, for the message.

    Raises:
        InputError: the data has classes that the weights do not know; it names them.
    """
    numbers = {name: number for number, name in enumerate(trained)}
    unknown = [name for name in here if name not in numbers]
    if unknown:
        raise InputError(
            f"{where}: {shown(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the"
            f" {len(trained)} classes that the weights were trained on ({shown(trained)}): take"
            " data of those, or train on this data"
        )
    return [numbers[name] for name in here]


def shown(names: Sequence[str]) -> str:
    """The first names in words."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
