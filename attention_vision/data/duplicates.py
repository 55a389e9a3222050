"""The same image file in two splits, found by content at little cost."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from attention_vision.data.fingerprint import file_sizes, size_of

HEAD = 1 << 12  # bytes that are compared before whole files
MOST = 20_000  # files of equal sizes that are opened

File = tuple[str, str]  # split, path


def shared_images(
    splits: Mapping[str, Sequence[str]], sizes: Mapping[str, Iterable[int]] | None = None
) -> list[tuple[str, str]]:
    """Pairs of files of different splits with the same bytes, in the order of the splits.

    Files of sizes that occur in one split alone are not opened; of others the first bytes are
    compared, and whole files only where these agree. Of very many files of equal size, such as
    bitmaps, the first ones are compared.

    Args:
        splits: split -> files.
        sizes: split -> bytes of its files, where they are known; negative for a missing file.
    """
    files = [(split, path) for split, paths in splits.items() for path in paths]
    if sizes is None:
        sizes = {split: file_sizes(paths) for split, paths in splits.items()}
    lengths = (int(length) for split in splits for length in sizes[split])
    found = alike(files, (length if length >= 0 else None for length in lengths))
    suspects = [file for group in found for file in group][:MOST]
    suspects = [file for group in alike(suspects, keys(suspects, head)) for file in group]
    pairs = []
    for group in alike(suspects, keys(suspects, content)):
        first = group[0]
        pairs += [(first[1], path) for split, path in group if split != first[0]]
    return pairs


def alike(files: Sequence[File], keys: Iterable[Hashable]) -> list[list[File]]:
    """Groups of files with the same key that come from more than one split; None groups nothing."""
    groups: dict[Hashable, list[File]] = defaultdict(list)
    for file, key in zip(files, keys, strict=True):
        groups[key].append(file)
    groups.pop(None, None)
    return [group for group in groups.values() if len({split for split, _ in group}) > 1]


def keys(files: Iterable[File], key: Callable[[str], Hashable]) -> Iterator[Hashable]:
    return (key(path) for _, path in files)


def head(path: str) -> tuple[int, bytes]:
    with open(path, "rb") as opened:
        return size_of(path), opened.read(HEAD)


def content(path: str) -> bytes:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
