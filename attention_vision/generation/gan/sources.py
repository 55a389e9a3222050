"""Sources of the images that a GAN is trained on."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torchvision.transforms import v2

from attention_vision.data.image_files import read_image


class Source(Protocol):
    """Images with labels: `source[i]` is (image (3, size, size) uint8, label).

    A class whose images are the same at every reading says so by `fixed = True`: they may be held
    in memory.
    """

    @property
    def targets(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class InMemory:
    """A source of images in memory, tensors (n, 3, H, W) uint8."""

    fixed = True

    def __init__(self, images: Tensor, targets: Sequence[int]):
        self.images, self.targets = images, list(targets)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Files:
    """A source of image files: the center square of each, resized."""

    fixed = True

    def __init__(self, files: list[tuple[str, int]], size: int):
        self.files, self.size = files, size
        self.targets = [label for _, label in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = v2.functional.pil_to_tensor(read_image(path))
        square = v2.functional.center_crop(image, [min(image.shape[1:])])
        return v2.functional.resize(square, [self.size, self.size], antialias=True), label
