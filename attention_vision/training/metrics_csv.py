"""The logger of a run folder: `metrics.csv` with one row per step, and `pictures/`.

Lightning's CSVLogger deletes the old file when it reopens a folder, and writes a row per call. Here
a killed and resumed run continues the same file, and ends with the file of an uninterrupted run.
"""

import csv
import io
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, PngImagePlugin
from torch import Tensor

from attention_vision.errors import InputError


class MetricsCSV(Logger):
    """One row per step in FOLDER/metrics.csv; columns: `epoch`, `step`, all keys logged so far.

    Values logged for the same step are merged into its row, and the later value wins: writing a
    step again after a resume changes nothing. Every call is on disk when it returns. A new last row
    is appended and cells are added to the last row in its place, at the same cost in a file of any
    length; a new column, or a cell in an older row, rewrites the file through a temporary one. Only
    the last row is kept in memory. A value is written with all its digits, so that equal curves are
    equal files; columns that end in `_per_second` are wall-clock times and differ from run to run.
    """

    def __init__(self, folder: str):
        super().__init__()
        self.folder = Path(folder)
        self.file = self.folder / "metrics.csv"
        self._columns = ["epoch", "step"]
        self._last: dict[str, str] | None = None  # the last row; rank zero reads it on first use
        self._warned: set[str] = set()
        self._start = 0  # where the last row begins in the file, in bytes

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Do nothing: the run folder's config.yaml contains them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values into the row of their step.

        Raises:
            InputError: the file cannot be written; its former rows stay.
        """
        try:
            self._log(metrics, step)
        except OSError as error:
            with suppress(OSError):
                self.file.with_suffix(".csv.part").unlink()
            reason = f"cannot be written: {error.strerror or error}; its rows so far stay"
            if isinstance(error, FileNotFoundError) and not self.folder.is_dir():
                reason = "was removed with its folder while the run was training"
            raise InputError(f"{self.file} {reason}") from error

    def _log(self, metrics: dict[str, float], step: int | None) -> None:
        last = self._last_step()
        step = max(last, 0) if step is None else int(step)
        row = {key: _cell(key, value) for key, value in metrics.items()} | {"step": str(step)}
        new_columns = [key for key in row if key not in self._columns]
        self._columns += new_columns
        if self._last and self.folder.is_dir() and not self.file.exists():
            warn(f"{self.file} was removed: rows before step {step} are lost")
        if new_columns or step < last or not self.file.exists():
            self._rewrite(step, row)
        elif step > last:
            self._write_last(row, self.file.stat().st_size)
        else:
            self._write_last((self._last or {}) | row, self._start)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop all rows from `step` on: the run is about to repeat these steps."""
        if self._last_step() >= step:
            self._rewrite(keep_below=step)

    @rank_zero_only
    def log_image(
        self,
        key: str,
        images: list[Any],
        step: int | None = None,
        caption: list[str] | None = None,
    ) -> None:
        """Write FOLDER/pictures/KEY_STEP[_n].png, with the caption as a PNG text field.

        An image is a PIL image, a path, a matplotlib figure, an array (H, W[, 3]) or a tensor
        (1 or 3, H, W); floats are in 0..1. The default step is that of the last row.
        """
        try:
            self._write_images(key, images, step, caption)
        except OSError as error:
            reason = f"{error.strerror or error}"
            if reason not in self._warned:  # one picture less is no reason to end a training
                self._warned.add(reason)
                warn(f"{self.folder}/pictures: {reason}; pictures are missing")

    def _write_images(
        self, key: str, images: list[Any], step: int | None, caption: list[str] | None
    ) -> None:
        step = max(self._last_step(), 0) if step is None else step
        folder = self.folder / "pictures"
        folder.mkdir(parents=not self._last, exist_ok=True)
        for number, image in enumerate(images):
            stem = f"{key.replace('/', '_')}_{step:06d}" + (f"_{number}" if len(images) > 1 else "")
            text = PngImagePlugin.PngInfo()
            if caption is not None:
                text.add_itxt("caption", str(caption[number]))
            _picture(image).save(folder / f"{stem}.png", pnginfo=text)

    def _last_step(self) -> int:
        """The step of the last row, or -1; the first call reads the file of an earlier process."""
        if self._last is None:
            self._last = {}
            if self.file.exists():
                with self.file.open("rb+") as file:
                    end = file.read().rfind(b"\n") + 1  # a killed process can leave half a line
                    file.truncate(end)
                self._rewrite()
        return int(self._last.get("step", -1))

    def _write_last(self, row: dict[str, str], start: int) -> None:
        """Write the last row at its place in the file, by one call that a kill does not divide."""
        line = self._format([row]).encode()
        with self.file.open("rb+", buffering=0) as file:
            file.seek(start)
            file.write(line)
            file.truncate()
        self._last, self._start = row, start

    def _format(self, rows: Iterable[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(
        self, step: int = -1, added: dict[str, str] | None = None, keep_below: float = inf
    ) -> None:
        """Write the file anew, row by row: with one row more or changed, or without later rows."""
        if not self._last:
            self.folder.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".csv.part")
        self._last, self._start = {}, 0
        with part.open("wb") as new:

            def write(row: dict[str, str]) -> None:
                self._last, self._start = row, new.tell()
                new.write(self._format([row]).encode())

            rows = self._rows()
            first = next(rows, None)  # reads the columns of the file
            new.write(self._format([{key: key for key in self._columns}]).encode())
            for row in chain([first] if first else [], rows):
                here = int(row["step"])
                if here >= keep_below:
                    break
                if added is not None and step <= here:
                    row = row | added if step == here else row
                    if step < here:
                        write(added)
                    added = None
                write(row)
            if added is not None:
                write(added)
        os.replace(part, self.file)

    def _rows(self) -> Iterator[dict[str, str]]:
        """The rows of the file in the order of their steps, without empty cells."""
        if not self.file.exists():
            return
        with self.file.open(newline="") as file:
            reader = csv.DictReader(file)
            named = list(reader.fieldnames or ())
            self._columns = named + [key for key in self._columns if key not in named]
            for row in reader:
                yield {key: cell for key, cell in row.items() if cell}


def warn(line: str) -> None:
    print(f"WARNING: {line}", file=sys.stderr, flush=True)


def _cell(key: str, value: Any) -> str:
    """Epoch and step are integers that Lightning may give as floats; the rest keeps all digits."""
    value = value.item() if isinstance(value, Tensor | np.generic) else value
    return str(int(value)) if key in ("epoch", "step") else repr(value)


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        return Image.open(image)
    if hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png")
        return Image.open(buffer)
    if isinstance(image, Tensor):
        image = image.detach().cpu().float() if image.is_floating_point() else image.cpu()
        image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if np.issubdtype(image.dtype, np.floating):
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(image)
