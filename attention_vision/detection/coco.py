"""Data in COCO format: COCO itself, and any folder of images with an instances file."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SplitShares
from attention_vision.detection.annotated_files import DETR_RECIPE, AnnotatedFiles, FilesOfImages
from attention_vision.detection.coco_annotations import read_instances
from attention_vision.detection.instances import ImageEntry, Instances
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Seed, Workers, checked

Labels = Literal["contiguous", "category_ids", "category_ids_from_1"]

UNUSED = "N/A"  # the name of a label that no category has

# Categories 1 to 90; ten numbers were never used.
COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, N/A, backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, N/A,
wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, dining table, N/A, N/A, toilet,
N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


@checked
class COCOFolder(AnnotatedFiles):
    """Any data set in COCO format: for each split a folder of images and an instances file.

    Labels are "contiguous", 0 to the number of categories - 1 in the order of their ids. For
    weights that were trained so they are the "category_ids" themselves, with num_classes = largest
    id + 1, as in the released DETR, or "category_ids_from_1", the ids less 1, as in torchvision's
    detectors, where 0 is background. `category_ids` leads back from labels in all cases. Every
    category has to be listed in the training file.

    Args:
        train_images, val_images, test_images: folders of the images. Without those of validation or
            test, `split` holds out a share of the training images.
        train_annotations, val_annotations, test_annotations: instances files.
        labels: see above.
        recipe, group_by_shape: see `DetectionData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        train_images: str,
        train_annotations: str,
        val_images: str | None = None,
        val_annotations: str | None = None,
        labels: Labels = "contiguous",
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: Count = 2,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
        test_images: str | None = None,
        test_annotations: str | None = None,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            recipe, batch_size, num_workers, seed, images, group_by_shape, split, on_bad_image
        )
        for name, pair in (
            ("val", (val_images, val_annotations)),
            ("test", (test_images, test_annotations)),
        ):
            if (pair[0] is None) != (pair[1] is None):
                raise InputError(f"data.{name}_images and data.{name}_annotations: give both")
        self.folders = {"train": train_images, "val": val_images, "test": test_images}
        self.annotations = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.label_kind = labels

    def has_own(self, split: str) -> bool:
        return self.annotations[split] is not None

    def instances(self, split: str) -> Instances:
        return read_instances(str(self.annotations[split]), self._key(split, "annotations"))

    def folder(self, split: str) -> Path:
        return Path(str(self.folders[split]))

    def key(self, split: str) -> str:
        return self._key(split, "images")

    @property
    def naming_split(self) -> str:
        train, val = (self.annotations[split] for split in ("train", "val"))
        alone = val is not None and not Path(str(train)).exists() and Path(val).exists()
        return "val" if alone else "train"

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        listed = tuple(self.categories)
        if self.label_kind == "contiguous":
            return listed
        first = 1 if self.label_kind == "category_ids_from_1" else 0
        if listed[0] < first:
            raise InputError(
                f"data.labels {self.label_kind}: there is a category {listed[0]}"
                f" ({self.categories[listed[0]]}), take category_ids"
            )
        return tuple(range(first, listed[-1] + 1))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories.get(number, UNUSED) for number in self.category_ids)

    def annotated(self, folder: str) -> dict[str, ImageEntry]:
        asked = Path(folder).resolve()
        for split in filter(self.has_own, ("val", "test", "train")):
            images = self.folder(split).resolve()
            if images != asked and images not in asked.parents:
                continue
            try:
                instances = self._read(split)
                here = dict(zip(self.category_ids, self.class_names, strict=True))
            except InputError:  # it is not here: only the photographs are
                continue
            if any(here.get(one) != name for one, name in instances.categories.items()):
                rank_zero_warn(
                    f"{instances.path} numbers its categories otherwise than the training data,"
                    " whose numbers category_id of results.json are"
                )
            files = FilesOfImages(instances, self.folder(split))
            return {
                str(Path(path).resolve()): ImageEntry(number, file, width, height)
                for path, number, file, (height, width) in zip(
                    files.paths, instances.image_ids.tolist(), instances.files,
                    instances.sizes.tolist(), strict=True,
                )
            }  # fmt: skip
        return {}

    def without(self, split: str) -> str:
        return (
            f"{type(self).__name__} has no {split} images: set data.{split}_images and"
            f" data.{split}_annotations, or data.split.{split} to a share of the training images"
        )

    def reference(self) -> str:
        return str(self.annotations["train"])

    def _key(self, split: str, what: str) -> str:
        return f"data.{split}_{what}"


@checked
class COCO(COCOFolder):
    """COCO 2017 in its official layout: ROOT/{train2017,val2017,annotations}.

    The labels are the category ids, 91 with 0 and ten more that no object has, so that the weights
    of DETR fit; those of Faster R-CNN fit "category_ids_from_1", which are 90, and "contiguous"
    has 80. All are known without the files.
    """

    def __init__(
        self,
        root: str,
        labels: Labels = "category_ids",
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: Count = 2,
        num_workers: Workers = 4,
        seed: Seed | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
        on_bad_image: OnBadImage = "stop",
    ):
        folder = Path(root)
        super().__init__(
            str(folder / "train2017"), str(folder / "annotations/instances_train2017.json"),
            str(folder / "val2017"), str(folder / "annotations/instances_val2017.json"),
            labels, recipe, batch_size, num_workers, seed, images, group_by_shape,
            on_bad_image=on_bad_image,
        )  # fmt: skip

    @cached_property
    def categories(self) -> dict[int, str]:
        names = [name.strip() for name in COCO_NAMES.replace("\n", " ").split(",")]
        return {number: name for number, name in enumerate(names, 1) if name != UNUSED}

    def reference(self) -> str:
        return "COCO 2017: COCOFolder takes any categories"

    def _key(self, split: str, what: str) -> str:
        return "data.root"
