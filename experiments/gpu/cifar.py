"""Pack CIFAR-10 into two files of about 50 MB, and unpack them as torchvision expects them.

    python experiments/gpu/cifar.py pack DATA FOLDER      # DATA/cifar-10-batches-py -> FOLDER
    python experiments/gpu/cifar.py unpack FOLDER DATA    # and back, bit by bit

The python version of CIFAR-10 takes 186 MB, and 170 MB with gzip: each image is stored as
three planes, whose rows a general compressor does not see. Here the images of a file are sheets in
lossless WebP, and the bytes around them are deflated. Unpacked files are equal to the originals,
which torchvision verifies by their MD5.
"""

import argparse
import io
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "cifar-10-batches-py"
PACKS = {
    "cifar10_a.zip": ("data_batch_1", "data_batch_2", "data_batch_3"),
    "cifar10_b.zip": ("data_batch_4", "data_batch_5", "test_batch", "batches.meta"),
}
PIXELS = 3 * 32 * 32
SHEET = 1000  # images of a sheet: WebP is limited to 16,383 pixels a side
EFFORT = {"lossless": True, "method": 4, "quality": 100}


def encode(images: np.ndarray) -> bytes:
    """Encode images (n, 3072) uint8, three planes each, as a sheet."""
    columns = math.isqrt(len(images) - 1) + 1
    rows = -(-len(images) // columns)
    padded = np.zeros((rows * columns, PIXELS), np.uint8)
    padded[: len(images)] = images
    tiles = padded.reshape(rows, columns, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    written = io.BytesIO()
    Image.fromarray(tiles.reshape(32 * rows, 32 * columns, 3)).save(written, "WEBP", **EFFORT)
    return written.getvalue()


def decode(sheet: bytes, count: int) -> np.ndarray:
    """Invert `encode` for `count` images."""
    tiles = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    rows, columns = tiles.shape[0] // 32, tiles.shape[1] // 32
    planes = tiles.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3)
    return planes.reshape(-1, PIXELS)[:count]


def images_in(content: bytes) -> tuple[int, int]:
    """Find the images in a pickled batch: position and length of its longest array of bytes.

    The pickle writes them as the opcode T with four bytes of length; 0 where there are none.
    """
    start, best = 0, (0, 0)
    while (start := content.find(b"T", start)) >= 0:
        length = int.from_bytes(content[start + 1 : start + 5], "little")
        fits = length % PIXELS == 0 and start + 5 + length <= len(content)
        if fits and length > best[1]:
            best = start + 5, length
            start += length
        start += 1
    return best


def pack(source: Path, target: Path) -> None:
    """Write the two files.

    Raises:
        SystemExit: a file of the data set is missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, members in PACKS.items():
        with zipfile.ZipFile(target / name, "w") as file:
            for member in members:
                if not (source / FOLDER / member).is_file():
                    raise SystemExit(
                        f"{source / FOLDER} has no file {member}: give torchvision's root"
                    )
                content = (source / FOLDER / member).read_bytes()
                start, length = images_in(content)
                images = np.frombuffer(content[start : start + length], np.uint8)
                images = images.reshape(-1, PIXELS)
                around = content[:start] + content[start + length :]
                file.writestr(f"{member}/around", around, zipfile.ZIP_DEFLATED, 9)
                file.writestr(f"{member}/numbers", f"{start} {len(images)}")
                parts = [images[at : at + SHEET] for at in range(0, len(images), SHEET)]
                with ThreadPoolExecutor() as pool:  # Pillow lets other threads run
                    for number, sheet in enumerate(pool.map(encode, parts)):
                        file.writestr(f"{member}/{number:03}.webp", sheet)
        print(f"{target / name}: {(target / name).stat().st_size / 1e6:.1f} MB", flush=True)


def unpack(source: Path, target: Path) -> None:
    """Write the files of the data set; those that are there stay.

    Raises:
        SystemExit: a packed file is missing.
    """
    (target / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, members in PACKS.items():
        if not (source / name).is_file():
            raise SystemExit(f"{source} has no file {name}: make it with cifar.py pack")
        with zipfile.ZipFile(source / name) as file, ThreadPoolExecutor() as pool:
            for member in members:
                if (target / FOLDER / member).is_file():
                    continue
                around = file.read(f"{member}/around")
                start, count = map(int, file.read(f"{member}/numbers").split())
                sheets = [file.read(f"{member}/{n:03}.webp") for n in range(-(-count // SHEET))]
                counts = [min(SHEET, count - at) for at in range(0, count, SHEET)]
                images = b"".join(x.tobytes() for x in pool.map(decode, sheets, counts))
                beside = target / FOLDER / f"{member}.part"
                beside.write_bytes(around[:start] + images + around[start:])
                beside.replace(target / FOLDER / member)


def main() -> None:
    parser = argparse.ArgumentParser(description="CIFAR-10 as two small files.")
    parser.add_argument("verb", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    {"pack": pack, "unpack": unpack}[options.verb](options.source, options.target)


if __name__ == "__main__":
    main()
