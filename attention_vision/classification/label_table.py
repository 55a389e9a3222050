"""Tables of file names and labels: CSV in the dialects that people have."""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attention_vision.data.image_files import Listing, list_images
from attention_vision.data.splits import SPLIT_NAMES
from attention_vision.errors import InputError

FILE_COLUMNS = (
    "file", "filename", "file_name", "image", "image_name", "img", "path", "filepath", "file_path",
    "image_path", "image_id", "name", "id",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
DELIMITERS = (",", ";", "\t", "|", " ")
TRIED = 100  # rows that are read to find the columns


@dataclass(frozen=True)
class Columns:
    """Columns that the user names, by their header or their number from 0; None to find them."""

    file: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: its number in the file, from 1.
        file: name of the image as it stands there.
        label: as text; empty without one.
        split: "train", "val" or "test"; None in a table without splits.
    """

    line: int
    file: str
    label: str
    split: str | None


class ImagesBelow:
    """Images below a folder, found by names that need neither their folders nor their ending.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.listing: Listing = list_images(root)
        self._by_name: dict[str, list[str]] = {}  # file name, and stem -> paths below the root
        for below in self.listing.below(root):
            file = below.rpartition("/")[2]
            for key in {file, os.path.splitext(file)[0]}:
                self._by_name.setdefault(key, []).append(below)

    def has(self, name: str) -> bool:
        """Whether one or more images have this name."""
        return bool(self._fits(name)[0])

    def find(self, name: str, split: str | None = None) -> str | None:
        """The path of an image; None without one.

        A name may begin with folders of another machine, or leave out those between the root and
        the image.

        Args:
            name: with or without folders and ending.
            split: "train", "val" or "test", to tell train/1.png from test/1.png.

        Raises:
            InputError: several images have this name.
        """
        fits, above = self._fits(name)
        if len(fits) > 1:  # the one that the name spells out in full
            longest = max(matching(folders(below), above) for below in fits)
            fits = [b for b in fits if matching(folders(b), above) == longest]
            fits = [b for b in fits if len(folders(b)) == len(above)] or fits
        if len(fits) > 1:
            fits = [b for b in fits if split in map(as_split, folders(b))] or fits
        if len(fits) > 1:
            raise InputError(
                f"{name} may be {self.root / fits[0]} or {self.root / fits[1]}: give the names"
                " with their folders and endings, or set data.root to the right folder"
            )
        return f"{self.root}/{fits[0]}" if fits else None

    def _fits(self, name: str) -> tuple[list[str], list[str]]:
        """Images below the root that a name may mean, and the folders in the name."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        candidates = self._by_name.get(parts[-1], []) if parts else []
        if len(parts) == len(candidates) == 1:
            return candidates, []
        return [below for below in candidates if is_tail(folders(below), parts[:-1])], parts[:-1]


def folders(below: str) -> list[str]:
    return below.split("/")[:-1]


def is_tail(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the shorter of two lists of folders ends the longer one."""
    return matching(one, other) == min(len(one), len(other))


def matching(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of folders, from the last one up, in which two lists agree."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def read_label_table(file: Path, columns: Columns, found: Callable[[str], bool]) -> list[Row]:
    """Read the rows of a table, with or without a header, of any usual delimiter and encoding.

    The column of files is the one whose cells are names of images, that of labels is known by its
    name or the only other one. Columns of 0 and 1, one of which is 1 in a row, are labels too: the
    name of the column is the label. Whole numbers lose their fraction, as in 3.0.

    Args:
        file: the table.
        columns: those that the user named.
        found: whether a name is one of an image.

    Raises:
        InputError: there is no such file or column, no image has one of the names, the labels
            cannot be told from other columns, or a split has an unknown name.
    """
    cells = read_cells(file)
    header, body = divide_header(cells, columns, found)
    if not body:
        raise InputError(f"{file} has no rows")
    width = max(len(row) for _, row in body)
    names = header or [str(number) for number in range(width)]
    body = [(line, row + [""] * (len(names) - len(row))) for line, row in body]
    given = {kind: position(names, getattr(columns, kind), kind, file) for kind in
             ("file", "label", "split")}  # fmt: skip
    files = given["file"]
    if files is None:
        files = file_column(names, body, found, file)
    splits = given["split"]
    if splits is None:
        splits = split_column(names, body, {files})
    labels = given["label"]
    rest = [n for n in range(len(names)) if n not in (files, splits)]
    if labels is None:
        labels = label_column(names, rest)
    if labels is not None:
        texts = plain_numbers([row[labels].strip() for _, row in body])
    elif is_one_hot(body, rest):
        texts = [names[next(n for n in rest if float(row[n]))] for _, row in body]
    else:
        raise InputError(
            f"{file}: which column is the label? Set data.label_column to one of"
            f" {', '.join(names[n] for n in rest)}"
            if rest
            else f"{file} has one column: a label for each image is missing"
        )
    return [
        Row(line, row[files].strip(), text, split_of(row, splits, file, line))
        for (line, row), text in zip(body, texts, strict=True)
    ]


def read_cells(file: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the rows that are not empty."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the labels {file}: {error.strerror}") from None
    text = decoded(content)
    delimiter = delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        for row in reader:
            if any("\n" in cell for cell in row):
                raise InputError(
                    f"{file}, line {reader.line_num}: a cell of several lines, behind a quote"
                    ' (") that is not closed?'
                )
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}") from None
    return rows


def decoded(content: bytes) -> str:
    """Text in UTF-8, UTF-16 with its byte order mark, or the code page of Windows."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def delimiter_of(text: str) -> str:
    """The delimiter that divides the first lines into equally many cells, more than one."""
    lines = [line for line in text.splitlines()[:TRIED] if line.strip()][:20]
    for delimiter in DELIMITERS:
        counts = {len(row) for row in csv.reader(lines, delimiter=delimiter) if row}
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return ","


def divide_header(
    cells: list[tuple[int, list[str]]], columns: Columns, found: Callable[[str], bool]
) -> tuple[list[str] | None, list[tuple[int, list[str]]]]:
    """The header, None without one, and the rows below it."""
    if not cells:
        return None, []
    first = [cell.strip() for cell in cells[0][1]]
    known = {*FILE_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS}
    named = {name for name in (columns.file, columns.label, columns.split) if name is not None}
    if named & set(first):
        return first, cells[1:]
    # `image` may be the header of a column, and the name of an image.png, too.
    if any(found(cell) and plain(cell) not in FILE_COLUMNS for cell in first):
        return None, cells
    below = any(found(cell.strip()) for _, row in cells[1:TRIED] for cell in row)
    if below or known & {plain(cell) for cell in first}:
        return first, cells[1:]
    return None, cells


def position(names: Sequence[str], given: str | None, kind: str, file: Path) -> int | None:
    """Number of a column that the user named."""
    if given is None:
        return None
    if given in names:
        return names.index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise InputError(
        f"data.{kind}_column {given}: {file} has no such column; it has {', '.join(names)}"
    )


def file_column(
    names: Sequence[str],
    body: Sequence[tuple[int, list[str]]],
    found: Callable[[str], bool],
    file: Path,
) -> int:
    """The column with the most names of images; the first known name of a column among equals."""
    some = [row for _, row in body[:TRIED]]
    hits = [sum(found(row[n].strip()) for row in some) for n in range(len(names))]
    ranks = [rank(name, FILE_COLUMNS) for name in names]
    best = min(range(len(names)), key=lambda n: (-hits[n], ranks[n]))
    if not hits[best]:
        cell = body[0][1][best].strip()
        raise InputError(
            f"{file}: none of its first {len(some)} rows names an image below data.root, such as"
            f" {cell} in column {names[best]}: set data.root to their folder, or data.file_column"
        )
    return best


def label_column(names: Sequence[str], rest: Sequence[int]) -> int | None:
    """The column of a known name, or the only one that is left."""
    known = [n for n in rest if plain(names[n]) in LABEL_COLUMNS]
    if len(known) == 1:
        return known[0]
    return rest[0] if len(rest) == 1 else None


def split_column(
    names: Sequence[str], body: Sequence[tuple[int, list[str]]], taken: set[int]
) -> int | None:
    """A column of a known name with cells that are names of splits."""
    for number, name in enumerate(names):
        if number not in taken and plain(name) in SPLIT_COLUMNS:
            cells = {row[number] for _, row in body}
            return number if any(as_split(cell) for cell in cells) else None
    return None


def split_of(row: Sequence[str], column: int | None, file: Path, line: int) -> str | None:
    if column is None:
        return None
    split = as_split(row[column])
    if split is None:
        raise InputError(
            f"{file}, line {line}: the split {row[column]!r} is none of"
            f" {', '.join(name for names in SPLIT_NAMES.values() for name in names)}"
        )
    return split


def as_split(cell: str) -> str | None:
    """The split that a text names."""
    word = cell.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def is_one_hot(body: Sequence[tuple[int, list[str]]], columns: Sequence[int]) -> bool:
    if len(columns) < 2:
        return False
    try:
        rows = [[float(row[n]) for n in columns] for _, row in body]
    except ValueError:
        return False
    return all(Counter(row) == {1.0: 1, 0.0: len(columns) - 1} for row in rows)


def plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def rank(name: str, known: Sequence[str]) -> int:
    return known.index(plain(name)) if plain(name) in known else len(known)


def plain_numbers(texts: Sequence[str]) -> list[str]:
    """Whole numbers without their fraction, 3 for 3.0, if all texts are whole numbers."""
    try:
        numbers = [float(text) if text else None for text in texts]
    except ValueError:
        return list(texts)
    whole = all(number is None or number.is_integer() for number in numbers)
    if not whole or not any("." in text for text in texts):
        return list(texts)
    return ["" if number is None else str(int(number)) for number in numbers]


def in_order(labels: set[str]) -> list[str]:
    """Names of classes in their order: numbers by their value, words by the alphabet."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
