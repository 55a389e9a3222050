"""The edge of the command: a failure becomes one line, and output that nobody reads is dropped.

Imports nothing heavy: it is there before torch, and tells what fails while torch is imported.
"""

import errno
import io
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from attention_vision.errors import (
    RUN_VARIABLE,
    ConfigError,
    InputError,
    one_line,
    out_of_memory,
)

PACKAGE = Path(__file__).parents[1]
LIBRARIES = (str(Path(os.__file__).parent), "site-packages", "dist-packages")  # of others
SHAPES = re.compile(
    r"shape|size of tensor|[Ss]izes of tensors|dimension|channels|dtype|scalar type|must match"
)
LOADER = re.compile(r"Caught (\w+) in DataLoader worker process")
LOST_LOADER = ("DataLoader worker (pid", "unable to open shared memory object", "bus error")


def report_failure(error: Exception, debug: bool) -> int:
    """Print an exception as one line; return the exit code.

    The traceback of what is not the user's input goes to error.txt in the run folder, or to a
    temporary file where there is no run folder.

    Args:
        error: of any class.
        debug: whether to print the traceback as well.

    Returns:
        2 for a command or config that does not parse, else 1.
    """
    rank = process_rank()
    if rank:
        time.sleep(3)  # rank zero meets most errors too, and then ends the others
    line, expected = describe(error)
    if debug:
        traceback.print_exception(error)
    elif not isinstance(error, InputError):
        where = write_traceback(error, rank)
        line += f"; traceback: {where}" if expected else f"; please report it with {where}"
    print(f"attention-vision: error: {one_line(line)}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, ConfigError) else 1


def describe(error: Exception) -> tuple[str, bool]:
    """A sentence on an exception, and whether its cause is known to lie outside of this package."""
    if isinstance(error, InputError):
        return one_line(error), True
    text, kind = " ".join(str(error).split()), type(error).__name__
    layer = failed_layer(error)
    inside = f"{layer}: " if layer else ""
    memory = out_of_memory(text)
    if isinstance(error, MemoryError):
        memory = memory or out_of_memory("out of memory")
    if memory:
        return f"{inside}{memory}", True
    if any(words in text for words in LOST_LOADER):
        return (
            "a process that loads data has ended, most often for want of memory or of space in"
            " /dev/shm: lower data.num_workers, or set it to 0",
            True,
        )
    if isinstance(error, FileNotFoundError) and not error.filename and not has_folder():
        return "the current folder was removed: change to another one", True
    if isinstance(error, OSError) and error.errno:
        return of_the_system(error), True
    if isinstance(error, RecursionError):
        return "nested too deeply: a file, a value or a network contains itself", True
    if isinstance(error, ImportError):
        return f"{text}: install it, or repair the installation", True
    if found := LOADER.search(str(error)):
        kind, text, location = of_a_loader(str(error), found[1])
    else:
        location = place(error)
    if layer and isinstance(error, RuntimeError | ValueError) and SHAPES.search(text):
        return f"layer {layer} does not fit its input: {text}", True
    at = f" in {location}" if location else ""
    if location and not location.startswith(PACKAGE.name):  # a class of the user's own
        return f"{inside}{kind}{at}: {text}", True
    return f"unexpected {kind}{at}: {inside}{text}", False


def of_the_system(error: OSError) -> str:
    """The file and the reason, as the system words it."""
    advice = {
        "ENOSPC": "free some space, or write elsewhere: --run",
        "EDQUOT": "free some space, or write elsewhere: --run",
        "EROFS": "write elsewhere: --run",
        "EMFILE": "raise the limit, ulimit -n, or lower data.num_workers",
    }
    number = error.errno or 0
    name = next((key for key in advice if getattr(errno, key) == number), "")
    files = " to ".join(str(file) for file in (error.filename, error.filename2) if file)
    reason = (os.strerror(number) if number > 0 else str(error)).lower()
    return ": ".join(filter(None, (files, reason, advice.get(name))))


def has_folder() -> bool:
    """Whether the current folder still exists."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def of_a_loader(message: str, kind: str) -> tuple[str, str, str]:
    """Class, text and place of an exception that a DataLoader worker sent as text."""
    files = re.findall(r'^ *File "(.+?)", line (\d+)', message, re.MULTILINE)
    last = [line for line in message.splitlines() if re.match(r"[\w.]+(: |$)", line)]
    text = last[-1].partition(": ")[2] if last else message
    return kind, text, nearest_place((file, int(line)) for file, line in files)


def place(error: BaseException) -> str:
    """FILE:LINE where an exception left this package or the user's own code; see `nearest_place`"""
    frames = traceback.extract_tb(error.__traceback__)
    return nearest_place((frame.filename, frame.lineno or 0) for frame in frames)


def nearest_place(frames: Iterator[tuple[str, int]]) -> str:
    """The last of the frames that is not of a library; of this package by its path in it."""
    last = ""
    for file, line in frames:
        if Path(file).is_relative_to(PACKAGE):
            last = f"{Path(file).relative_to(PACKAGE.parent)}:{line}"
        elif file[:1] != "<" and not any(words in file for words in LIBRARIES):
            last = f"{file}:{line}"
    return last


def failed_layer(error: BaseException) -> str:
    """Name and class of the innermost module in whose forward an exception was raised."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules: list[Any] = [one for one in owners if isinstance(one, torch.nn.Module)]
    if not modules or modules[0] is modules[-1]:
        return ""
    names = (name for name, module in modules[0].named_modules() if module is modules[-1])
    name, kind = next(names, ""), type(modules[-1]).__name__  # it has no name while it is built
    return f"{name} ({kind})" if name else kind


def write_traceback(error: BaseException, rank: int) -> str:
    """Write the traceback into the run folder, else into a temporary file; say where it is."""
    text = "".join(traceback.format_exception(error))
    run = os.environ.get(RUN_VARIABLE)
    reason = ""
    try:
        if run and Path(run).is_dir():
            file = Path(run, f"error_{rank}.txt" if rank else "error.txt")
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            return str(file)
    except OSError as other:  # a full disk, a folder that is read only
        reason = of_the_system(other)
    try:
        number, name = tempfile.mkstemp(".txt", "attention-vision-error-")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return name
    except OSError as other:
        reason = reason or of_the_system(other)
    return f"--debug (it cannot be written: {reason})"


def process_rank() -> int:
    """Rank of this process in a run of several; 0 before Lightning is imported."""
    if "lightning.pytorch.utilities.rank_zero" not in sys.modules:
        return 0
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return rank_zero_only.rank or 0


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """Context of imports in which whatever follows from Ctrl-C is Ctrl-C.

    A library whose import is interrupted may swallow that, and then fail in a way of its own.

    Raises:
        KeyboardInterrupt: at the end, if not before.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception:
        if not pressed:
            raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


class Unread(io.FileIO):
    """Descriptor of an output that becomes the null device when its reader is gone.

    A line that nobody reads (`| head`, a `tee` that was killed, a closed terminal) does not end a
    training; nor does it in processes that are started later. Nor does a full disk under
    `> log.txt`, of which stderr says a line.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BlockingIOError:
            raise
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if error.errno not in (errno.EPIPE, errno.EIO) and self.fileno() == 1:
                reason = os.strerror(error.errno or 0).lower()
                line = f"attention-vision: stdout: {reason}: the rest of it is dropped"
                print(line, file=sys.stderr, flush=True)
            return super().write(data)  # type: ignore[arg-type]


def steady_streams() -> None:
    """Make printing safe: for readers that go away, closed descriptors, and any encoding.

    Streams that somebody else has put in the place of Python's own are left alone.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed, as by `>&-`: the next file opened would be printed into
            null = os.open(os.devnull, mode)
            if null != number:
                os.dup2(null, number, inheritable=True)
                os.close(null)
            else:
                os.set_inheritable(number, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        with suppress(AttributeError, OSError):
            stream.flush()
        raw = Unread(number, "w", closefd=False)
        steady = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", None) or "utf-8",
            errors="backslashreplace",  # names in other alphabets than the terminal's
            line_buffering=number == 2 or raw.isatty(),
        )
        setattr(sys, name, steady)
        setattr(sys, f"__{name}__", steady)
