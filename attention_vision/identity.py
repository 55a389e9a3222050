"""Identity of results: their data, code and checkpoint, and how two of them differ.

Imports nothing heavy: reports and claims compare what runs recorded.
"""

import hashlib
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attention_vision import __version__

LIBRARIES = ("torch", "torchvision", "lightning")  # those that decide numbers
SHOWN = 3  # differences in a line
COMMIT = re.compile(r"[0-9a-f]{40}")


def digest(parts: Iterable[bytes]) -> str:
    """Hash bytes to 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


@cache
def code() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries, and the commit, see `commit`."""
    versions = {"attention_vision": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            # The metadata lacks the build, such as +cpu.
            loaded = getattr(sys.modules.get(name), "__version__", None)
            versions[name] = str(loaded or version(name))  # torch has a class for its own
    found = commit()
    return versions | ({"commit": found} if found else {})


def commit() -> str | None:
    """Return the commit of the package, "-dirty" behind it where files were changed since.

    None where git does not know these files: an installed package in a folder that another
    repository ignores has no commit.
    """
    folder = str(Path(__file__).parent)

    def git(*words: str) -> str:
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        if not git("ls-files", "--", "__init__.py"):
            return None
        head, *changes = git("status", "--porcelain=v2", "--branch", "--", ".").splitlines()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    found = COMMIT.search(head)  # "# branch.oid COMMIT"
    if not found:
        return None
    is_dirty = any(not line.startswith("#") for line in changes)
    return found[0] + ("-dirty" if is_dirty else "")


def code_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Words on how two versions of the code differ; empty if they do not, or are not known."""
    return "; ".join(
        f"{name} {shortened(there[name])}, not {shortened(here[name])}"
        for name in there
        if name in here and there[name] != here[name]
    )


def shortened(commit: Any) -> str:
    """Shorten a commit to 10 digits; versions stay."""
    return COMMIT.sub(lambda found: found[0][:10], str(commit))


def data_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Words on how two fingerprints of data differ, see `TaskData.fingerprint`.

    Only what both have is compared: the classes, and the splits that both opened. Empty if nothing
    differs.
    """
    found = []
    for part in there:
        before, now = there[part], here.get(part)
        if not isinstance(before, Mapping) or not isinstance(now, Mapping) or before == now:
            continue
        if part == "classes":
            same = before.get("count") == now.get("count")
            found.append(
                "other names or another order of the classes"
                if same
                else f"{now.get('count')} classes, not {before.get('count')}"
            )
        elif before.get("samples") != now.get("samples"):
            found.append(f"{part} has {now.get('samples')} samples, not {before.get('samples')}")
        else:
            words = [WORDS[kind] for kind in WORDS if before.get(kind) != now.get(kind)]
            if words[:2] == [WORDS["files"], WORDS["sizes"]]:
                del words[1]  # sizes are in the order of the names
            if words:
                found.append(f"{part} has {' and '.join(words)}")
    return "; ".join(found[:SHOWN])


WORDS = {"files": "files of other names", "sizes": "files of other sizes", "labels": "other labels"}


def checkpoint_id(file: str | Path) -> str | None:
    """Return 16 digits that change with the content of a checkpoint; None if it is not a zip.

    The archive's own directory has a checksum of each record (CRC-32, which torch writes): the
    records are not read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = [(one.filename, one.CRC, one.file_size) for one in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None
    # The first folder is named after the file that was written, which may have been renamed.
    lines = (f"{name.partition('/')[2]} {crc} {size}\n" for name, crc, size in records)
    return digest(line.encode() for line in lines)
