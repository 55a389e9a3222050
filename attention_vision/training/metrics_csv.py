"""The logger of a run folder: `metrics.csv` with one row per step, and `pictures/`.

Lightning's CSVLogger deletes the old file when it reopens a folder, and writes a row per call. Here
a killed and resumed run continues the same file, and ends with the file of an uninterrupted run.
"""

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, PngImagePlugin
from torch import Tensor


class MetricsCSV(Logger):
    """One row per step in FOLDER/metrics.csv; columns: `epoch`, `step`, all keys logged so far.

    Values logged for the same step are merged into its row, and the later value wins: writing a
    step again after a resume changes nothing. Every call is on disk when it returns. A new last row
    is appended; a new column, or a cell in an older row, rewrites the file through a temporary one.
    A value is written with all its digits, so that equal curves are equal files; columns that end
    in `_per_second` are wall-clock times and differ from run to run.
    """

    def __init__(self, folder: str):
        super().__init__()
        self.folder = Path(folder)
        self.file = self.folder / "metrics.csv"
        self._rows: dict[int, dict[str, str]] | None = None  # by step; rank zero reads on first use
        self._columns = ["epoch", "step"]

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
        rows = self._read()
        step = max(rows, default=0) if step is None else int(step)
        row = {key: _cell(key, value) for key, value in metrics.items()} | {"step": str(step)}
        new_columns = [key for key in row if key not in self._columns]
        append = step not in rows and step >= max(rows, default=-1) and not new_columns
        rows[step] = rows.get(step, {}) | row
        self._columns += new_columns
        if append and self.file.exists():
            with self.file.open("a", newline="") as file:
                file.write(self._format([rows[step]]))
        else:
            self._rewrite()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop all rows from `step` on: the run is about to repeat these steps."""
        rows = self._read()
        later = [logged for logged in rows if logged >= step]
        for logged in later:
            del rows[logged]
        if later:
            self._rewrite()

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
        step = max(self._read(), default=0) if step is None else step
        folder = self.folder / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            stem = f"{key.replace('/', '_')}_{step:06d}" + (f"_{number}" if len(images) > 1 else "")
            text = PngImagePlugin.PngInfo()
            if caption is not None:
                text.add_itxt("caption", str(caption[number]))
            _picture(image).save(folder / f"{stem}.png", pnginfo=text)

    def _read(self) -> dict[int, dict[str, str]]:
        """The rows by step, from the file of an earlier process on the first call."""
        if self._rows is None:
            self._rows = {}
            if self.file.exists():
                text = self.file.read_text()
                whole = text[: text.rfind("\n") + 1]  # a killed process can leave half a line
                reader = csv.DictReader(io.StringIO(whole))
                for row in reader:
                    self._rows[int(row["step"])] = {key: cell for key, cell in row.items() if cell}
                self._columns = list(reader.fieldnames or self._columns)
                if whole != text:
                    self._rewrite()
        return self._rows

    def _format(self, rows: list[dict[str, str]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = self._read()
        part = self.file.with_suffix(".csv.part")
        part.write_text(self._format([rows[step] for step in sorted(rows)], header=True))
        os.replace(part, self.file)


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
