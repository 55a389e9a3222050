"""Boxes from masks of instances, such as those of Penn-Fudan's pedestrians."""

from pathlib import Path

import numpy as np

from attention_vision.data.image_files import list_images, read_levels
from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SplitShares
from attention_vision.detection.annotated_files import DETR_RECIPE, AnnotatedFiles
from attention_vision.detection.instances import ImageEntry, Instances, ObjectEntry, Repairs
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Seed, Workers, checked

VOID = 255  # between objects, in masks of Pascal VOC


@checked
class InstanceMaskFolder(AnnotatedFiles):
    """Images, and masks whose gray levels 1, 2, ... are the objects of one class; 255 is void.

    A box goes from the first to behind the last pixel of its object, whose pixels are its area.

    Args:
        images_folder: the images.
        masks_folder: the masks.
        class_name: of the objects.
        mask_pattern: name of a mask without its ending, where `{name}` is that of its image:
            `{name}_mask` in Penn-Fudan.
        recipe, group_by_shape: see `DetectionData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        images_folder: str,
        masks_folder: str,
        split: SplitShares,
        class_name: str = "object",
        mask_pattern: str = "{name}",
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: Count = 2,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            recipe, batch_size, num_workers, seed, images, group_by_shape, split, on_bad_image
        )
        if mask_pattern.count("{name}") != 1:
            raise InputError(f"data.mask_pattern {mask_pattern!r} needs {{name}} once")
        self.images_folder, self.masks_folder = Path(images_folder), Path(masks_folder)
        self.class_name, self.mask_pattern = class_name, mask_pattern
        self.category_ids, self.class_names = (1,), (class_name,)

    def has_own(self, split: str) -> bool:
        return False

    def folder(self, split: str) -> Path:
        return self.images_folder

    def instances(self, split: str) -> Instances:
        masks = {
            Path(path).relative_to(self.masks_folder).with_suffix("").as_posix(): path
            for path in list_images(self.masks_folder).files
        }
        repairs = Repairs(self.masks_folder)
        images, objects = [], []
        for index, path in enumerate(list_images(self.images_folder).files):
            inside = Path(path).relative_to(self.images_folder)
            stem = self.mask_pattern.replace("{name}", inside.stem)
            name = inside.with_name(stem).as_posix()
            if name not in masks:
                raise InputError(
                    f"{path} has no mask {name}.* in {self.masks_folder}: set data.mask_pattern"
                )
            levels = read_levels(masks[name])
            if levels.ndim != 2:
                raise InputError(f"{masks[name]} is colored: objects are gray levels 1, 2, ...")
            if Path(masks[name]).suffix.lower() in (".jpg", ".jpeg", ".jfif"):
                raise InputError(f"{masks[name]}: JPEG does not keep the numbers of objects")
            file = Path(path).relative_to(self.images_folder).as_posix()
            images.append(ImageEntry(index + 1, file, levels.shape[1], levels.shape[0]))
            objects += [ObjectEntry(index, *found) for found in boxes_of(levels)]
        if not images:
            raise InputError(f"no images in {self.images_folder}: set data.images_folder")
        return Instances.build(self.masks_folder, {1: self.class_name}, images, objects, repairs)


def boxes_of(levels: np.ndarray) -> list[tuple[tuple[float, float, float, float], int, float, int]]:
    """(box xyxy, category 1, area, no crowd) of each gray level but 0 and 255."""
    found = []
    for level in np.unique(levels[(levels > 0) & (levels != VOID)]):
        rows, columns = np.nonzero(levels == level)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        found.append((tuple(float(side) for side in box), 1, float(len(rows)), 0))
    return found
