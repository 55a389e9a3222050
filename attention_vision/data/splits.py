"""Division of samples into training, validation and test, the same on every machine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, Seed, checked

Split = Literal["train", "val", "test"]
# Names that folders of a split have; the first is the one that this project writes.
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


@checked
@dataclass(frozen=True)
class SplitShares:
    """Shares of the training samples that are held out.

    Attributes:
        val: share to validate on, 0 for none.
        test: share to test on, 0 for none.
        seed: of the division; the run's seed does not move it, so that runs can be compared.
    """

    val: Fraction = 0.0
    test: Fraction = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, share in (("val", self.val), ("test", self.test)):
            if not 0 <= share < 1:
                raise InputError(f"data.split.{name} {share} is not a share in 0..1, 1 excluded")
        if self.val + self.test >= 1:
            raise InputError(
                f"data.split: val {self.val} and test {self.test} leave nothing to train on"
            )

    def __bool__(self) -> bool:
        return bool(self.val or self.test)


def divide(
    names: Sequence[str], labels: Sequence[int] | None, shares: SplitShares
) -> dict[str, list[int]]:
    """Indices of the samples of "train", "val" and "test", each in order.

    Stratified: of every label the shares are held out, rounded, at least one where the label has a
    sample to spare. Which samples follows from the seed and their names alone.

    Args:
        names: of the samples, as paths below the root with forward slashes.
        labels: of the samples; None to divide all as one label.
        shares: what is held out.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels if labels is not None else [0] * len(names)):
        members.setdefault(int(label), []).append(index)
    parts: dict[str, list[int]] = {split: [] for split in SPLIT_NAMES}
    for group in members.values():
        group = sorted(group, key=lambda index: digest(f"{shares.seed}/{names[index]}"))
        begin = 0
        for split, share in (("val", shares.val), ("test", shares.test)):
            spare = len(group) - begin - 1
            count = min(max(round(share * len(group)), 1), spare) if share and spare > 0 else 0
            parts[split] += group[begin : begin + count]
            begin += count
        parts["train"] += group[begin:]
    return {split: sorted(indices) for split, indices in parts.items()}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split under one of the names that it may have, in letters of any case.

    None without one.
    """
    found = {path.name: path for path in sorted(root.iterdir())} if root.is_dir() else {}
    found = {name.lower(): path for name, path in found.items()} | found
    folders = (found[name] for name in SPLIT_NAMES[split] if name in found)
    return next((folder for folder in folders if folder.is_dir()), None)


def refuse_splits_among_classes(names: Sequence[str], folder: Path) -> None:
    """Raise InputError where a folder named after a split lies beside class folders."""
    splits = {name for several in SPLIT_NAMES.values() for name in several}
    if len(names) > 1 and (found := [name for name in names if name.lower() in splits]):
        raise InputError(
            f"{folder / found[0]} is named after a split and lies beside class folders: move the"
            f" class folders of the training into {folder / 'train'}"
        )
