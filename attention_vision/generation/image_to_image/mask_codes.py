"""How mask files write classes: gray levels, palette indices or colors."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from attention_vision.data.image_files import read_image, read_levels
from attention_vision.data.labels import shown
from attention_vision.errors import InputError
from attention_vision.ranges import Range

IGNORED = 255  # in the targets: pixels that count neither in the loss nor in the metrics
REST = "rest"
LOSSY = (".jpg", ".jpeg")
NEAR, STRAY = 32, 0.05  # distance of a level that JPEG moved, and the share that may lie farther

Level = Annotated[int, Range(0, 65_535)] | Literal["rest"]
Color = tuple[int, int, int]


class MaskCodes:
    """Gray levels, palette indices or colors of the classes in mask files.

    Of a JPEG, which does not keep levels, each pixel counts for the nearest code.

    Args:
        class_names: by class.
        values: gray level or palette index of each class; "rest" stands for all others. Without
            values or colors 0 and 255 for two classes, else the numbers of the classes.
        colors: class -> color, in the place of values.
        ignore: level or color of pixels without a class; "rest" for all that are no class.

    Raises:
        InputError: codes that are too many, too few or not distinct.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        values: Sequence[Level] | None,
        colors: Mapping[str, Color] | None,
        ignore: Level | Color | None,
    ):
        count = len(class_names)
        if values is None:
            values = (0, 255) if count == 2 else range(count)
        if colors is None and (len(values) != count or len(set(values)) != count):
            raise InputError(
                f"data.values: one gray level for each of the {count} classes, not {list(values)}"
            )
        if count >= IGNORED:
            raise InputError(f"data.class_names: {count} classes, a mask has at most {IGNORED - 1}")
        self.class_names, self.colored = tuple(class_names), colors is not None
        self.ignore = packed(ignore) if isinstance(ignore, Sequence) and ignore != REST else ignore
        if self.colored != isinstance(ignore, Sequence) and ignore not in (None, REST):
            wanted = "a color, as data.colors are" if self.colored else "a gray level"
            raise InputError(f"data.ignore {ignore}: give {wanted}")
        self.codes = [*values] if colors is None else [packed(colors[name]) for name in class_names]
        if self.ignore in self.codes or len(set(self.codes)) != count:
            raise InputError("data.colors, data.values and data.ignore: each of them once")
        self.labels, self.count = list(range(count)), count

    def use_labels(self, labels: Sequence[int], count: int) -> None:
        """Read the classes as other numbers, those of trained weights.

        Args:
            labels: new number of each class.
            count: of the numbers, which may be more than the classes.
        """
        self.labels, self.count = list(labels), count

    def read(self, file: Path | str) -> np.ndarray:
        """Class numbers (H, W) uint8, `IGNORED` where a pixel has none.

        Raises:
            InputError: the file cannot be read, or has levels or colors that are not a class.
        """
        levels = self._levels(file)
        if Path(file).suffix.lower() in LOSSY:
            levels = self._nearest(levels, file)
        coded = [*zip(self.labels, self.codes, strict=True), (IGNORED, self.ignore)]
        other = next((label for label, code in coded if code == REST), None)
        classes = np.full(levels.shape, IGNORED if other is None else other, np.uint8)
        known = np.zeros(levels.shape, bool)
        for label, code in coded:
            if isinstance(code, int):
                here = levels == code
                classes[here] = label
                known |= here
        if other is None and not known.all():
            raise self._unknown(levels, known, file)
        return classes

    def written(self, classes: np.ndarray) -> np.ndarray:
        """The numbers that a file of classes (H, W) or (D, H, W) has; (H, W, 3) if colored.

        "rest", and classes that the weights know and the data does not name, have levels from 255
        down that nothing else has.
        """
        codes = dict(zip(self.labels, self.codes, strict=True))
        taken = {*self.codes, self.ignore}
        free = (level for level in range(255, -1, -1) if level not in taken)
        numbers = [codes.get(label, REST) for label in range(self.count)]
        table = np.array([next(free) if code == REST else code for code in numbers])
        pixels = table[classes]
        if self.colored:
            return np.stack([pixels >> 16, pixels >> 8 & 255, pixels & 255], -1).astype(np.uint8)
        return pixels.astype(np.uint8 if table.max() < 256 else np.uint16)

    def _levels(self, file: Path | str) -> np.ndarray:
        """Gray levels (H, W), or colors packed into one number."""
        if self.colored:
            channels = np.asarray(read_image(file)).astype(np.int64)
            return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        levels = read_levels(file)
        if levels.ndim == 3:
            colors = np.unique(levels.reshape(-1, 3), axis=0)
            some = ", ".join(str(color.tolist()) for color in colors[:4])
            raise InputError(
                f"{file} is a colored mask of {len(colors)} colors, such as {some}: set data.colors"
                " to the color of each class, {NAME: [R, G, B], ...}"
            )
        return levels

    def _nearest(self, levels: np.ndarray, file: Path | str) -> np.ndarray:
        """Levels of a JPEG, each moved to the nearest code."""
        codes = [code for code in (*self.codes, self.ignore) if isinstance(code, int)]
        if REST in (*self.codes, self.ignore):
            raise InputError(
                f"{file}: a JPEG changes the levels of a mask, of which rest would be most: give"
                " the level of each class, or save masks as PNG"
            )
        distances = np.full(levels.shape, 1 << 30, np.int64)
        nearest = np.zeros(levels.shape, np.int64)
        for code in codes:
            distance = np.zeros(levels.shape, np.int64)
            for shift in self._channels():
                distance += abs((levels.astype(np.int64) >> shift & 255) - (code >> shift & 255))
            closer = distance < distances
            nearest[closer], distances[closer] = code, distance[closer]
        far = distances > NEAR * len(self._channels())
        if far.mean() > STRAY:
            raise self._unknown(levels, ~far, file)
        return nearest

    def _channels(self) -> tuple[int, ...]:
        return (16, 8, 0) if self.colored else (0,)

    def _unknown(self, levels: np.ndarray, known: np.ndarray, file: Path | str) -> InputError:
        """One line on levels that are no class, and on what they look like."""
        strays = np.unique(levels[~known])
        share = (~known).mean()
        if self.colored:
            colors = [[int(c) >> 16, int(c) >> 8 & 255, int(c) & 255] for c in strays]
            return InputError(
                f"{file}: {shown(list(map(str, colors)))} are no color of data.colors"
                f" ({share:.1%} of the pixels): add them, or set data.ignore"
            )
        says = (
            f"{file}: gray levels {shown(list(map(str, strays)))} are no class ({share:.1%} of the"
            f" pixels); data.values are {', '.join(map(str, self.codes))}"
        )
        present, count = np.unique(levels).tolist(), len(self.codes)
        if len(strays) > 8 and count < 8:
            return InputError(
                f"{says}. {len(present)} levels are those of a mask that was saved as JPEG, or"
                " resized smoothly: save it without loss, resize it to the nearest pixel"
            )
        if strays.tolist() == [IGNORED] and count > 2:
            return InputError(f"{says}: set data.ignore 255 if those pixels have no class")
        if len(present) == count:
            return InputError(f"{says}: set data.values {present}".replace("'", ""))
        if count == 2:
            return InputError(
                f"{says}: set data.values [0, rest] if all but 0 is {self.class_names[1]}"
            )
        return InputError(f"{says}: add classes, or set data.ignore")


def packed(color: Sequence[int]) -> int:
    """A color as one number. Raises InputError for what is not one."""
    if len(color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        raise InputError(f"data.colors: {list(color)} is not a color [R, G, B] of 0..255")
    return color[0] << 16 | color[1] << 8 | color[2]


def read_colors(colors: Mapping[str, Color] | str | None) -> Mapping[str, Color] | None:
    """The colors themselves, or those of a CSV of name,r,g,b as CamVid has it.

    Raises:
        InputError: the file is missing, or is another.
    """
    if not isinstance(colors, str):
        return colors
    try:
        with Path(colors).open(newline="", encoding="utf-8-sig") as opened:
            rows = [row for row in csv.reader(opened) if row]
        return {
            row[0].strip(): (int(row[1]), int(row[2]), int(row[3]))
            for row in rows
            if row[1].strip().isdecimal()
        }
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"data.colors {colors}: not a CSV of name,r,g,b ({error})") from None
