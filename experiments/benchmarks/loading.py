"""How fast training images are loaded, against torchvision's transforms and timm's loader.

    python experiments/benchmarks/loading.py --clock cpu

A step is an epoch of images that the disk's cache holds, from files or memory to normalized float
batches on the CPU. The first row is CIFAR-10's recipe with AutoAugment: the peer is a `DataLoader`
in the same process with torchvision's own transforms, of PIL images, as torchvision's data set has
them, and of uint8 tensors. The others cut batches of 224 pixels out of JPEGs of 500x375, crop and
flip, one worker each, which begins and ends with the epoch; processor time counts it. In the last
one ours reads its cache of decoded images, which was filled before, without a worker. Ours decodes
with simplejpeg where it is installed: the file says so.

The photographs are noise of all scales, with the bytes per pixel of ImageNet's.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import timm.data
import torch
import torch.nn.functional as F
from fit_overhead import RandomImages, images_of
from frame import Row, Side, Step, main
from torch.utils.data import DataLoader, Dataset
from torchvision.io import write_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from attention_vision.classification.data import CIFAR10, ClassificationData, ImageFolder
from attention_vision.classification.transforms import CIFARAugmentation

FOLDER = tempfile.TemporaryDirectory()  # of the photographs and their cache
CLASSES = ("a", "b")


def epoch(loader: Iterable, batches: int) -> None:
    """Load all batches. Raises AssertionError if there are others than expected."""
    sizes = [len(images) for images, _ in loader]
    assert len(sizes) == batches, f"{len(sizes)} batches, not {batches}"


def of_data(data: ClassificationData, batches: int) -> Step:
    with redirect_stdout(StringIO()):
        data.setup("fit")
    loader: Any = data.train_dataloader()
    epochs = itertools.count()

    def step() -> None:
        loader.sampler.set_epoch(next(epochs))
        with redirect_stdout(StringIO()):
            epoch(loader, batches)

    return step


# Small images


class Transformed(Dataset):
    """Images with torchvision's transforms, as torchvision's CIFAR-10 applies them."""

    def __init__(self, count: int, pil: bool):
        images, self.labels = images_of(count)
        self.images = [to_pil_image(image) for image in images] if pil else images
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CIFAR10.mean, CIFAR10.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def small_images(count: int, size: int) -> Step:
    recipe = CIFARAugmentation(autoaugment="cifar10")
    return of_data(RandomImages(recipe, count, size), count // size)


def transformed(count: int, size: int, pil: bool) -> Step:
    loader = DataLoader(Transformed(count, pil), size, shuffle=True, drop_last=True)
    return partial(epoch, loader, count // size)


# Photographs


def photographs(count: int) -> Path:
    """Write JPEGs of noise that is added up over scales, below train and val, in two classes."""
    root = Path(FOLDER.name, f"{count}")
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        split = "train" if number < count - 2 else "val"
        file = root / split / CLASSES[number % 2] / f"{number}.jpg"
        if file.is_file():
            continue
        image = torch.zeros(1, 3, 375, 500)
        for side in (3, 6, 12, 25, 50, 100, 200):
            noise = torch.randn(1, 3, side, side * 4 // 3, generator=generator)
            image += F.interpolate(noise, (375, 500), mode="bicubic") * 40 / side**0.3
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jpeg((image[0] + 128).clamp(0, 255).byte(), str(file), quality=90)
    return root


def our_folder(count: int, size: int, workers: int, cached: bool = False) -> Step:
    root = photographs(count + 2)
    cache = str(root / "cache") if cached else None
    # Otherwise images that are equally large would be held in memory.
    data = ImageFolder(
        str(root), batch_size=size, num_workers=workers, seed=0, resident_gib=0, cache=cache
    )
    return of_data(data, count // size)


def timms(count: int, size: int, workers: int) -> Step:
    dataset = timm.data.ImageDataset(str(photographs(count + 2) / "train"))
    loader = timm.data.create_loader(
        dataset, 224, size, is_training=True, color_jitter=0.0, interpolation="bilinear",
        num_workers=workers, device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    return partial(epoch, loader, count // size)


def rows(device: str, smoke: bool) -> Iterator[Row]:
    count, size = (8, 4) if smoke else (1024, 128)
    yield Row(
        "CIFAR-10 with AutoAugment",
        [
            Side("ours", partial(small_images, count, size)),
            Side("torchvision", partial(transformed, count, size, True), "PIL"),
            Side("torchvision", partial(transformed, count, size, False), "tensors"),
        ],
        images=count, memory=False, note=f"epochs of {count}, batches of {size}",
    )  # fmt: skip
    count, size, workers = (4, 2, 0) if smoke else (128, 32, 1)
    note = f"epochs of {count}, batches of {size}"
    peer = Side("timm", partial(timms, count, size, workers))
    ours = partial(our_folder, count, size, workers)
    yield Row(
        "JPEGs to 224 pixels", [Side("ours", ours), peer],
        images=count, targets={"timm": 1.2}, memory=False, turns=5, note=note,
    )  # fmt: skip
    yield Row(
        "JPEGs from the cache",
        [
            Side("ours", partial(our_folder, count, size, 0, True)), peer,
            Side("decoding again", ours),
        ],
        images=count, targets={"timm": 4}, memory=False, turns=5, note=note,
    )  # fmt: skip


if __name__ == "__main__":
    main(rows)
