"""The names of labels, which travel in the checkpoints of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.training.run_folder import read_checkpoint


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
