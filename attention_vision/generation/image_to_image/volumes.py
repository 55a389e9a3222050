"""Data for the segmentation of volumes."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attention_vision.data.image_files import Listing, walk
from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import by
from attention_vision.generation.image_to_image.mask_codes import IGNORED, MaskCodes
from attention_vision.generation.image_to_image.mask_folders import (
    ImagesAndMasks,
    SegmentationFolders,
)
from attention_vision.ranges import Count, Finite, Seed, Size, Workers, checked

VOLUMES = (".npy", ".npz")
MOST_BYTES = 2**34  # of an .npz unpacked, all of which is held in memory


@checked
class VolumeFolder(SegmentationFolders):
    """Volumes of one channel and their masks, .npy or .npz files of arrays (D, H, W).

    A mask has class numbers 0..num_classes-1. Of an .npy only the patch is read.

    Args:
        ignore: number of voxels that count neither in the loss nor in the metrics.
        window: (low, high), the values that become 0 and 1; values outside are clipped. In CT,
            Hounsfield units.
        patch: depth, height and width of the training patches.
        train_images, train_masks, val_images, val_masks, val_names, class_names,
            patches_per_image, flips, image_pattern, mask_pattern, test_images, test_masks,
            test_names: see `SegmentationFolders`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `ImageToImageData`.
    """

    channels = 1
    looked_at = 4  # whole volumes are read

    @property
    def extensions(self) -> Collection[str]:
        return VOLUMES

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None = None,
        val_masks: str | None = None,
        val_names: Sequence[str] = (),
        class_names: Sequence[str] = ("background", "foreground"),
        window: tuple[Finite, Finite] = (-150.0, 250.0),
        patch: tuple[Size, Size, Size] = (96, 96, 96),
        patches_per_image: Count = 1,
        flips: bool = True,
        batch_size: Count = 2,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        image_pattern: str = "{name}",
        mask_pattern: str = "{name}",
        ignore: int | None = None,
        test_images: str | None = None,
        test_masks: str | None = None,
        test_names: Sequence[str] = (),
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            train_images, train_masks, val_images, val_masks, val_names, class_names, min(patch),
            patches_per_image, flips, image_pattern, mask_pattern, test_images, test_masks,
            test_names, batch_size, num_workers, seed, images, split, on_bad_image,
        )  # fmt: skip
        if not window[0] < window[1]:
            raise InputError(f"data.window {list(window)} is not a range")
        if ignore is not None and 0 <= ignore < len(class_names):
            raise InputError(f"data.ignore {ignore} is the number of {class_names[ignore]}")
        self.codes = MaskCodes(self.own_names, range(len(class_names)), None, ignore)
        self.window, self.patch, self.ignore = window, patch, ignore

    def broken(self, files: Sequence[str]) -> dict[str, str]:
        found = {}
        for file in files:
            try:
                read_volume(Path(file))
            except InputError as error:
                found[file] = str(error)
        return found

    def header_size(self, file: str) -> tuple[int, ...] | None:
        return None if file.lower().endswith(".npz") else read_volume(Path(file)).shape

    def images_and_masks(self, files: list[tuple[str, str]]) -> ImagesAndMasks:
        return MaskedVolumes(files, self.codes.labels, self.window, self.ignore)

    def inputs(self, folder: str) -> Dataset:
        return VolumesToSegment(folder, self.window)


class MaskedVolumes:
    """Volume files with mask files.

    Args:
        files: (volume, mask) of each.
        labels: class of each number in a mask.
        window: see `VolumeFolder`.
        ignore: number of voxels without a class.

    Raises:
        InputError: sizes that differ, or a number that is not a class.
    """

    def __init__(
        self,
        files: list[tuple[str, str]],
        labels: Sequence[int],
        window: tuple[float, float],
        ignore: int | None,
    ):
        self.files, self.window, self.ignore = files, window, ignore
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        volume, mask = (read_volume(Path(file)) for file in self.files[index])
        if volume.shape != mask.shape:
            volume_file, mask_file = self.files[index]
            raise InputError(
                f"{volume_file} is {by(volume.shape)}, its mask {mask_file} {by(mask.shape)}"
            )
        return volume, mask

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        return windowed(image, self.window), self.classes(mask, index)

    def classes(self, mask: np.ndarray, index: int) -> Tensor:
        numbers = torch.from_numpy(mask.astype(np.int64))
        classed = numbers != self.ignore if self.ignore is not None else numbers == numbers
        known = numbers[classed]
        low, high = (known.min(), known.max()) if len(known) else (0, 0)
        if low < 0 or high >= len(self.labels) or mask.dtype.kind not in "iub":
            raise InputError(
                f"{self.files[index][1]}: {mask.dtype} from {low} to {high}; a mask has whole"
                f" numbers 0..{len(self.labels) - 1}, one per class of data.class_names"
            )
        classes = torch.full_like(numbers, IGNORED)
        classes[classed] = self.labels[known]
        return classes


class VolumesToSegment(Dataset):
    """All volumes below a folder in the order of their paths, as (input, path, size)."""

    def __init__(self, folder: str, window: tuple[float, float]):
        if Path(folder).is_file():
            self.files = [folder]
        elif Path(folder).is_dir():
            found = walk(folder, Listing())
            self.files = sorted(path for path, ending in found if ending in VOLUMES)
        else:
            raise InputError(f"no folder {folder}: set data.images to a folder of volumes")
        if not self.files:
            raise InputError(f"no volumes in {folder}: looked for {', '.join(VOLUMES)}")
        self.window = window

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str, torch.Size]:
        volume = windowed(read_volume(Path(self.files[index])), self.window)
        return volume, self.files[index], volume.shape[1:]


def read_volume(file: Path) -> np.ndarray:
    """Open a volume (D, H, W); an .npy is read from the disk when it is used."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            if len(array.files) != 1:
                raise InputError(f"{file} contains {len(array.files)} arrays, not one")
            assert array.zip is not None  # it is open
            (packed,) = array.zip.infolist()
            if packed.file_size > MOST_BYTES:
                raise InputError(
                    f"{file}: {packed.file_size:,} bytes unpacked, more than {MOST_BYTES:,}:"
                    " save it as .npy, which is read in parts"
                )
            array = array[array.files[0]]
    except Exception as error:  # a damaged archive fails anywhere in its decoder
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the volume {file}: repair or remove it ({error})") from None
    if array.ndim != 3:
        raise InputError(f"{file} is {by(array.shape)}: a volume has three axes")
    return array


def windowed(volume: np.ndarray, window: tuple[float, float]) -> Tensor:
    """Scale a window of values to 0..1: (D, H, W) -> (1, D, H, W) float."""
    low, high = window
    scaled = (torch.from_numpy(volume.astype(np.float32)) - low) / (high - low)
    return scaled.clamp_(0, 1)[None]
