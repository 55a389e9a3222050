"""Classification data from Hugging Face data sets on disk."""

import io
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_vision.checkpoints.preprocessing import Preprocessing
from attention_vision.classification.data import PHOTOGRAPHS, UNSET, ClassificationData
from attention_vision.classification.label_table import LABEL_COLUMNS, as_split, in_order
from attention_vision.classification.sources import ClassificationSource
from attention_vision.classification.transforms import Augmentation
from attention_vision.data.encoded_image import EncodedImage
from attention_vision.data.findings import Findings
from attention_vision.data.formats import hint
from attention_vision.data.image_files import reason_broken
from attention_vision.data.loading import OnBadImage
from attention_vision.data.resident import RESIDENT_GIB
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.ranges import Count, NonNegative, Seed, Size, Workers, checked

if TYPE_CHECKING:
    from datasets import Dataset

PART = re.compile(r"\d{4}$|.*?-\d{5}-of-\d{5}")  # names of the hub: which part of a split
IMAGE_COLUMNS = ("image", "img", "images", "picture")


@checked
class HuggingFaceImages(ClassificationData):
    """A data set of the Hugging Face hub on disk: parquet files, or a `save_to_disk` folder.

    Splits are told by the names of files and folders, such as train-00000-of-00002.parquet,
    validation/0000.parquet or test; what names none is for training. Names of the classes are
    those of the label's `ClassLabel`, else its values. Images without a label (-1) are left out
    and counted.

    Nothing is downloaded. Parquet files are converted once, into the cache of `datasets`
    (~/.cache/huggingface), from where images are read without loading the set into memory.

    Args:
        root: the folder, or one parquet file.
        image_column, label_column: names of the columns, where they are not found.
        recipe, image_size, repeats, preprocessing, balanced, resident_gib: see
            `ClassificationData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        root: str,
        image_column: str | None = None,
        label_column: str | None = None,
        recipe: Augmentation = PHOTOGRAPHS,
        image_size: Size = 224,
        batch_size: Count = 64,
        num_workers: Workers = 4,
        seed: Seed | None = None,
        images: str | None = None,
        repeats: Count = 1,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
        preprocessing: Preprocessing = UNSET,
        balanced: bool = False,
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(
            image_size, batch_size, num_workers, seed, images, repeats, split, on_bad_image,
            preprocessing, balanced, resident_gib,
        )  # fmt: skip
        self.recipe = recipe
        self.root = Path(root)
        self.image_column, self.label_column = image_column, label_column

    @cached_property
    def opened(self) -> dict[str, "Dataset"]:
        """Split -> its rows, as they are stored."""
        return open_splits(self.root)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Read when first asked for: a missing root is not an error of the configuration."""
        rows = self.opened.get("train") or next(iter(self.opened.values()))
        return tuple(names_and_labels(rows, self._label_of(rows))[0])

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or split in self.opened

    def source(self, split: str) -> ClassificationSource:
        divided = self.divides(split, f"{split} in {self.root}" if split in self.opened else None)
        part = "train" if divided else split
        if part not in self.opened:
            raise InputError(
                f"{self.root} has no {part} split, only {', '.join(self.opened)}: hold out images"
                " by data.split: {val: 0.2}"
            )
        rows = self.opened[part]
        names, labels = names_and_labels(rows, self._label_of(rows))
        source = StoredImages(rows, self._image_of(rows), labels, names, f"{self.root}, {part}")
        labeled = [index for index, label in enumerate(labels) if label >= 0]
        findings = self.findings.setdefault(split, Findings())
        if len(labeled) < len(labels):
            unlabeled = [name for name, n in zip(source.titles, labels, strict=True) if n < 0]
            findings.left_out["images without a label"] = unlabeled
            source = source.chosen(labeled)
        if divided:
            names = [f"row {index}" for index in source.indices]
            source = source.chosen(self.part(split, names, source.targets))
        return source.chosen(self.sound(split, source.titles, source.broken))

    def _label_of(self, rows: "Dataset") -> str:
        if self.label_column is not None:
            return self._column(rows, "label", self.label_column)
        known = [name for name in LABEL_COLUMNS if name in rows.column_names]
        typed = [name for name, kind in rows.features.items() if hasattr(kind, "names")]
        found = [name for name in known if name in typed] or (typed if len(typed) == 1 else known)
        if not found:
            raise InputError(
                f"{self.root}: which column is the label? Set data.label_column to one of"
                f" {', '.join(rows.column_names)}"
            )
        return found[0]

    def _image_of(self, rows: "Dataset") -> str:
        if self.image_column is not None:
            return self._column(rows, "image", self.image_column)
        named = [name for name in IMAGE_COLUMNS if name in rows.column_names]
        found = [name for name, kind in rows.features.items() if is_image(kind)]
        if not found and not named:
            raise InputError(
                f"{self.root}: which column is the image? Set data.image_column to one of"
                f" {', '.join(rows.column_names)}"
            )
        return next((name for name in named if name in found), (found or named)[0])

    def _column(self, rows: "Dataset", kind: str, name: str) -> str:
        if name not in rows.column_names:
            raise InputError(
                f"data.{kind}_column {name}: {self.root} has no such column; it has"
                f" {', '.join(rows.column_names)}"
            )
        return name


class StoredImages:
    """A source of images whose files are cells of a table.

    Args:
        rows: the table.
        column: of the images: {bytes, path}, bytes or a path.
        targets: label of each row.
        class_names: by label.
        where: the table, for messages.
        indices: rows to use; all where none are given.
    """

    fixed = True

    def __init__(
        self,
        rows: "Dataset",
        column: str,
        targets: Sequence[int],
        class_names: Sequence[str],
        where: str,
        indices: Sequence[int] | None = None,
    ):
        self.rows, self.column, self.where = encoded(rows, column), column, where
        self.all_targets, self.class_names = targets, class_names
        self.indices = list(range(len(targets)) if indices is None else indices)
        self.targets = [targets[index] for index in self.indices]

    @property
    def titles(self) -> list[str]:
        """A name of each image: its table and row."""
        return [f"{self.where}, row {index}" for index in self.indices]

    def chosen(self, positions: Sequence[int]) -> "StoredImages":
        indices = [self.indices[position] for position in positions]
        return StoredImages(
            self.rows, self.column, self.all_targets, self.class_names, self.where, indices
        )

    def broken(self, titles: Sequence[str]) -> dict[str, str]:
        """Title -> reason, of the images that do not decode."""
        found = {}
        for title in titles:
            content, path = self.content(int(title.rpartition(" ")[2]), title)
            reason = reason_broken(path if content is None else io.BytesIO(content))
            if reason:
                found[title] = reason
        return found

    def content(self, row: int, title: str) -> tuple[bytes | None, str]:
        """Encoded image of a row, None if it is a file, and its path or title."""
        cell: Any = self.rows[row][self.column]
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell, title
        if isinstance(cell, str):
            return None, cell
        raise InputError(f"{title}: column {self.column} is not an image: set data.image_column")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        content, path = self.content(
            self.indices[index], f"{self.where}, row {self.indices[index]}"
        )
        return EncodedImage(path, content), self.targets[index]


def open_splits(root: Path) -> dict[str, "Dataset"]:
    """Split -> the rows of a folder, or of a parquet file.

    Raises:
        InputError: there is no such folder or data in it, or `datasets` is not installed.
    """
    if not root.exists():
        raise InputError(f"no folder {root}: set data.root to a Hugging Face data set on disk")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise InputError(
            "HuggingFaceImages needs the package datasets: pip install"
            " 'attention-vision[huggingface]'"
        ) from None
    try:
        if {"dataset_dict.json", "state.json"} & {path.name for path in root.glob("*.json")}:
            saved = datasets.load_from_disk(str(root))
            found = dict(saved.items()) if isinstance(saved, dict) else {"train": saved}
        else:
            files = parquet_files(root)
            found = dict(datasets.load_dataset("parquet", data_files=files).items())
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"cannot read the data set {root}: {reason}") from None
    if len(found) == 1 and not any(as_split(str(name)) for name in found):
        return {"train": next(iter(found.values()))}
    return {split: rows for name, rows in found.items() if (split := as_split(str(name)))}


def parquet_files(root: Path) -> dict[str, list[str]]:
    """Split -> parquet files below a folder, told by their names and by their folders'.

    Raises:
        InputError: there are none, or those of several data sets: the configurations of one on the
            hub, which lie in folders beside each other.
    """
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    if not files:
        raise InputError(
            f"no parquet files in {root}, and nothing that save_to_disk wrote: set data.root to a"
            f" Hugging Face data set on disk{hint(root, 'HuggingFaceImages')}"
        )
    splits: dict[str, list[str]] = {}
    for file in files:
        parts = [file.stem] if root.is_file() else file.relative_to(root).with_suffix("").parts
        words = [word for part in reversed(parts) for word in re.split(r"[\W_]+", part)]
        split = next((split for word in words if (split := as_split(word))), "train")
        splits.setdefault(split, []).append(str(file))
    for several in splits.values():
        folders: dict[str, Path] = {}  # of a part
        for file in map(Path, several):
            if found := PART.match(file.stem):
                folder = folders.setdefault(found[0], file.parent)
                if folder != file.parent:
                    raise InputError(
                        f"{root} has several data sets, {folder} and {file.parent}: set data.root"
                        " to one of them"
                    )
    return splits


def names_and_labels(rows: "Dataset", column: str) -> tuple[list[str], list[int]]:
    """Names of the classes, and the label of each row, -1 without one."""
    kind, cells = rows.features[column], list(rows[column])
    if any(isinstance(cell, list) for cell in cells[:1]):
        raise InputError(f"column {column}: several labels for an image are not supported")
    if (names := getattr(kind, "names", None)) is not None:
        return list(names), [-1 if cell is None else int(cell) for cell in cells]
    texts = ["" if cell is None or cell == -1 else str(cell) for cell in cells]
    names = in_order({text for text in texts if text})
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers.get(text, -1) for text in texts]


def is_image(kind: Any) -> bool:
    """Whether a feature is an image: of that type, or bytes, alone or with a path."""
    if type(kind).__name__ == "Image":
        return True
    cell = kind.get("bytes") if isinstance(kind, dict) else kind
    return getattr(cell, "dtype", "") in ("binary", "large_binary")


def encoded(rows: "Dataset", column: str) -> "Dataset":
    """The rows with that column alone, its images as the bytes that they are stored in."""
    import datasets

    rows = rows.select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
