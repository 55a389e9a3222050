"""Lock of a run folder: one process at a time trains in it."""

import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from attention_vision.errors import InputError
from attention_vision.training.run_folder import is_requeued

# Errors of a lock that another process has; others come from a file system without locks.
HELD = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Lock RUN/run.lock until `release`, or until the process ends however it ends.

    A lock of the process, not of the file handle: its forked data loaders do not inherit it. The
    file names host, process and time of the holder. Where the file system has no locks, they
    decide: a process of this host that is gone, or an earlier attempt of this job, holds no more.

    Raises:
        InputError: another process trains in the folder, or the folder cannot be written.
    """

    def __init__(self, run: Path):
        self.file = run / "run.lock"
        try:
            while True:
                self._stream = self.file.open("a+")
                self._take()
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._stream.fileno()), self.file.stat()):
                        break  # else its last holder has just removed it
                self._stream.close()
        except OSError as error:
            raise InputError(f"{run} cannot be written: {error.strerror}") from error
        stamp = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        self._stream.truncate(0)
        self._stream.write(json.dumps(stamp))
        self._stream.flush()

    def release(self) -> None:
        """Let others train in the folder; a second call does nothing."""
        if not self._stream.closed:
            self.file.unlink(missing_ok=True)
            self._stream.close()

    def _take(self) -> None:
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = read_holder(self._stream)
            if error.errno not in HELD and not is_alive(holder):
                return
            self._stream.close()
            who = "{host}, process {process}, since {since}".format_map(holder)
            remedy = "" if error.errno in HELD else f", or remove {self.file} if that has ended"
            raise InputError(
                f"a run trains in {self.file.parent} ({who}): give another --run{remedy}"
            ) from None


def read_holder(stream: IO[str]) -> dict[str, str | int]:
    """What the holder of a lock wrote; "unknown" while it has not yet."""
    stream.seek(0)
    unknown: dict[str, str | int] = dict.fromkeys(("host", "process", "since"), "unknown")
    with suppress(ValueError):
        unknown |= json.loads(stream.read())
    return unknown


def is_alive(holder: dict[str, str | int]) -> bool:
    """Whether the holder may still run, as far as can be known here."""
    host, process = holder["host"], holder["process"]
    if host == "unknown" or is_requeued():
        return False
    if host != socket.gethostname() or not isinstance(process, int):
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()
