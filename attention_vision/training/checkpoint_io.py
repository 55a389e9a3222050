"""Checkpoint files: written atomically, checked before they are used, the one before kept."""

import os
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from attention_vision.errors import InputError

KEPT = {"last.ckpt": "previous.ckpt"}  # the former file of a name, until the next one is written


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a file beside it, then rename: a kill leaves the old or the new one.

    The former last.ckpt stays as previous.ckpt, for the day when last.ckpt is damaged; if the disk
    is full, it makes room. Lightning's own writes through the system's folder for temporary files;
    if that is on another file system, the last step is a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the file.

        Raises:
            InputError: the file cannot be written; the former one is untouched.
        """
        path = Path(path)
        part = path.with_suffix(".part")
        previous = path.with_name(KEPT[path.name]) if path.name in KEPT else None
        try:
            part.parent.mkdir(exist_ok=True)
            try:
                write(checkpoint, part)
            except (OSError, RuntimeError):
                if previous is None or not previous.is_file():
                    raise
                previous.unlink()
                write(checkpoint, part)
            if previous is not None and path.is_file() and self._is_whole(path):
                keep(path, previous)
            os.replace(part, path)
            self._written.add(path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                part.unlink()
            raise InputError(unwritten(path, error)) from error

    def _is_whole(self, file: Path) -> bool:
        """Whether a file is to be kept: one of this process, or one that its sums fit."""
        if file not in self._written:
            try:
                check_sums(file)
            except InputError:
                return False
        return True


def write(checkpoint: dict[str, Any], file: Path) -> None:
    """Write to the disk itself: a network's file system tells of a full one no earlier."""
    with file.open("wb") as stream:
        torch.save(checkpoint, stream)
        stream.flush()
        os.fsync(stream.fileno())


def keep(file: Path, previous: Path) -> None:
    """Give a file a second name, so that the first one is never missing."""
    previous.unlink(missing_ok=True)
    try:
        os.link(file, previous)
    except OSError:  # a file system without links
        os.replace(file, previous)


def unwritten(file: Path, error: BaseException) -> str:
    """One line on a checkpoint that could not be written."""
    if not file.parent.parent.is_dir():
        return f"{file.parent.parent} was removed while it was in use: the run has ended"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # torch wraps it
        cause = cause.__cause__ or cause.__context__
    reason = (cause.strerror or str(cause)) if cause else str(error).splitlines()[0]
    stays = f"the {file.name} before it stays" if file.is_file() else f"there is no {file.name} yet"
    return f"{file} cannot be written: {reason}; {stays}"


def check_sums(file: Path) -> None:
    """Compare the content of a checkpoint with its CRC-32 sums, 0.3 s a GB; torch does not.

    A command reads its checkpoint several times, for arguments, labels and weights: a file that is
    whole and has not been written since is not compared again.

    Raises:
        InputError: they differ, or the file is cut.
    """
    try:
        written = file.stat()
    except OSError as error:
        raise InputError(f"{file} is damaged, or not a checkpoint of this command") from error
    compare_sums(file, written.st_ino, written.st_size, written.st_mtime_ns)


@lru_cache(maxsize=16)
def compare_sums(file: Path, *written: int) -> None:
    """Compare the sums of a file as it was written; what raises is not remembered."""
    try:
        with zipfile.ZipFile(file) as records:
            damaged = records.testzip()
    except Exception as error:  # a damaged table of contents fails anywhere
        raise InputError(f"{file} is damaged, or not a checkpoint of this command") from error
    if damaged:
        raise InputError(f"{file} is damaged: the checksum of its {damaged} does not fit")
