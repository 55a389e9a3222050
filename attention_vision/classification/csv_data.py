"""Classification data from tables of file names and labels."""

from functools import cached_property
from pathlib import Path

from attention_vision.checkpoints.preprocessing import Preprocessing
from attention_vision.classification.data import PHOTOGRAPHS, UNSET, ClassificationData
from attention_vision.classification.label_table import (
    Columns,
    ImagesBelow,
    Row,
    in_order,
    read_label_table,
)
from attention_vision.classification.sources import ClassificationSource, LabeledFiles
from attention_vision.classification.transforms import Augmentation
from attention_vision.data.findings import Findings
from attention_vision.data.loading import OnBadImage
from attention_vision.data.resident import RESIDENT_GIB
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.ranges import Count, NonNegative, Seed, Size, Workers, checked


@checked
class ImageCSV(ClassificationData):
    """Images with a CSV of their names and labels.

    Any delimiter, with a header or without; names with or without folders and endings. The columns
    are found: names of images are those of files below the root, the label is the column `label`,
    `class`, `category` or `target`, or the only other one; columns of 0 and 1 are labels too, one
    for each class. A column `split` of train, val and test divides the images; without one,
    `val_csv` and `test_csv`, or `data.split`, do.

    Rows without a label are left out and counted. The classes are the labels of the training rows,
    words by the alphabet, numbers by their value.

    Args:
        csv: the table of the training images, or of all.
        root: folder of the images, searched through its subfolders; that of the CSV where none is
            given.
        val_csv, test_csv: tables of the images to validate and to test on.
        file_column, label_column, split_column: names of the columns, or their numbers from 0,
            where they are not found.
        recipe, image_size, repeats, preprocessing, balanced, resident_gib, cache: see
            `ClassificationData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`; under "skip"
            rows whose image is missing are left out too.
    """

    def __init__(
        self,
        csv: str,
        root: str | None = None,
        val_csv: str | None = None,
        test_csv: str | None = None,
        file_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
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
        cache: str | None = None,
    ):
        super().__init__(
            image_size, batch_size, num_workers, seed, images, repeats, split, on_bad_image,
            preprocessing, balanced, resident_gib, cache,
        )  # fmt: skip
        self.recipe = recipe
        self.root = Path(csv).parent if root is None else Path(root)
        self.tables = {"train": csv, "val": val_csv, "test": test_csv}
        self.columns = Columns(file_column, label_column, split_column)
        self._read: dict[str, list[Row]] = {}  # by table

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Read when first asked for: a missing table is not an error of the configuration."""
        rows = self.rows("train")
        names = in_order({row.label for row in rows if row.label})
        if len(names) == len(rows) > 2:
            raise InputError(
                f"{self.table('train')}: every row has a label of its own, such as {names[0]}: set"
                " data.label_column to the column of the classes"
            )
        return tuple(names)

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or self.where(split) is not None

    def source(self, split: str) -> ClassificationSource:
        divided = self.divides(split, self.where(split))
        if not divided and self.where(split) is None:
            raise InputError(
                f"{self.table('train')} has no column split: hold out images to validate on by"
                " data.split: {val: 0.2}, or give data.val_csv"
            )
        rows = self.rows("train" if divided else split)
        names = in_order({row.label for row in rows if row.label})
        numbers = {name: number for number, name in enumerate(names)}
        files = [(path, numbers[label]) for path, label in self._files(split, rows)]
        source = LabeledFiles(files, names)
        if divided:
            below = [path[len(str(self.root)) + 1 :] for path, _ in files]
            source = source.chosen(self.part(split, below, source.targets))
        return source.chosen(self.sound(split, [path for path, _ in source.files]))

    def where(self, split: str) -> str | None:
        """The table, or the column of it, that has a split; None without one."""
        if self.tables[split] is not None and split != "train":
            return str(self.table(split))
        rows = self._rows_of("train")
        if split == "train":
            return str(self.table("train"))
        found = any(row.split == split for row in rows)
        return f"{split} in column split of {self.table('train')}" if found else None

    def rows(self, split: str) -> list[Row]:
        """The rows of a split; of the training, those that are in no other split."""
        table = split if self.tables[split] is not None else "train"
        rows = self._rows_of(table)
        return [row for row in rows if row.split in (None, split)]

    def table(self, split: str) -> Path:
        """The CSV of a split. Raises InputError when there is no such file."""
        given = self.tables[split] or self.tables["train"]
        for file in (Path(given), self.root / given):
            if file.is_file():
                return file
        key = "csv" if split == "train" or self.tables[split] is None else f"{split}_csv"
        raise InputError(f"no file {given}: set data.{key} to a CSV of names and labels")

    @cached_property
    def below(self) -> ImagesBelow:
        if not self.root.is_dir():
            raise InputError(f"no folder {self.root}: set data.root to the folder of the images")
        return ImagesBelow(self.root)

    def _rows_of(self, split: str) -> list[Row]:
        if split not in self._read:
            table, has = self.table(split), self.below.has
            self._read[split] = read_label_table(table, self.columns, has)
        return self._read[split]

    def _files(self, split: str, rows: list[Row]) -> list[tuple[str, str]]:
        """(path, label) of the rows that have both, in their order; the others become findings."""
        findings = self.findings.setdefault(split, Findings())
        tables = {str(self.table(one)) for one in self.tables}
        left_out = self.below.listing.left_out.items()
        kinds = {kind: [path for path in paths if path not in tables] for kind, paths in left_out}
        findings.left_out = {kind: paths for kind, paths in kinds.items() if paths}
        table, own = self.table(split), split if self.tables[split] else "train"
        labels: dict[str, str] = {}
        missing, twice = [], 0
        for row in rows:
            path = self.below.find(row.file, row.split or own)
            if not row.label:
                findings.left_out.setdefault("rows without a label", []).append(row.file)
            elif path is None:
                missing.append(row)
            elif labels.setdefault(path, row.label) != row.label:
                raise InputError(
                    f"{table}, line {row.line}: {row.file} is {row.label} here and {labels[path]}"
                    " in a line above: several labels for an image are not supported"
                )
            else:
                twice += 1
        twice -= len(labels)
        if missing and self.on_bad_image == "stop":
            raise InputError(
                f"{table}, line {missing[0].line}: no image {missing[0].file} below {self.root};"
                f" {len(missing)} of {len(rows)} rows have none (data.on_bad_image: skip leaves"
                " them out)"
            )
        if missing:
            findings.left_out["rows without an image"] = [row.file for row in missing]
        if twice:
            findings.repaired.append(f"{table}: {twice} rows repeat an image with its label")
        return list(labels.items())
