"""The same image file in two splits, found by content at little cost."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

HEAD = 1 << 12  # bytes that are compared before whole files
MOST = 20_000  # files of equal sizes that are opened

File = tuple[str, str]  # split, path


def shared_images(splits: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Pairs of files of different splits with the same bytes, in the order of the splits.

    Files of sizes that occur in one split alone are not opened; of others the first bytes are
    compared, and whole files only where these agree. Of very many files of equal size, such as
    bitmaps, the first ones are compared.
    """
    files = [(split, path) for split, paths in splits.items() for path in paths]
    suspects = [file for group in alike(files, size) for file in group][:MOST]
    suspects = [file for group in alike(suspects, head) for file in group]
    pairs = []
    for group in alike(suspects, content):
        first = group[0]
        pairs += [(first[1], path) for split, path in group if split != first[0]]
    return pairs


def alike(files: Iterable[File], key: Callable[[str], Hashable]) -> list[list[File]]:
    """Groups of files with the same key that come from more than one split."""
    groups: dict[Hashable, list[File]] = defaultdict(list)
    for split, path in files:
        groups[key(path)].append((split, path))
    groups.pop(None, None)
    return [group for group in groups.values() if len({split for split, _ in group}) > 1]


def size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def head(path: str) -> tuple[int | None, bytes]:
    with open(path, "rb") as opened:
        return size(path), opened.read(HEAD)


def content(path: str) -> bytes:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
