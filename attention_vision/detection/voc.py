"""Data in Pascal VOC format: an XML file per image, as annotation tools write them."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

from attention_vision.data.formats import hint
from attention_vision.data.image_files import Listing, extensions, image_size, list_images, walk
from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SPLIT_NAMES, SplitShares, split_folder
from attention_vision.detection.annotated_files import DETR_RECIPE, AnnotatedFiles, read_lines
from attention_vision.detection.instances import (
    ImageEntry,
    Instances,
    ObjectEntry,
    Repairs,
    fitted_box,
)
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Seed, Workers, checked

MAX_BYTES = 10**7  # of an XML file; one with 1,000 objects has some 300,000
YES = {"1", "1.0", "true", "yes"}


@checked
class VOCFolder(AnnotatedFiles):
    """Pascal VOC: ROOT/Annotations/NAME.xml, ROOT/JPEGImages/NAME.jpg, ROOT/ImageSets/Main/*.txt.

    As labelImg, CVAT, Roboflow and Label Studio write it, too: images beside their annotations or
    in any folder below ROOT, and folders train, valid and test in the place of ImageSets. An image
    belongs to the annotation of the same stem, else to the one that names it; where neither
    ImageSets nor folders divide the images, `split` does. Categories are numbered from 1 in the
    order of their names.

    Boxes are taken as they stand, but for files of the VOC challenges themselves, whose pixels
    count from 1: there 1 is subtracted from xmin and ymin, as detectron2 does. Objects marked
    `difficult` are not trained on and do not count in the evaluation, like crowds of COCO and as
    in the challenges.

    Args:
        root: the folder.
        recipe, group_by_shape: see `DetectionData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        root: str,
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: Count = 2,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            recipe, batch_size, num_workers, seed, images, group_by_shape, split, on_bad_image
        )
        self.root = challenge_folder(Path(root))

    def has_own(self, split: str) -> bool:
        return self._listed(split) is not None or split_folder(self.root, split) is not None

    def folder(self, split: str) -> Path:
        return self.root

    def instances(self, split: str) -> Instances:
        files = self._annotations(split)
        if not files:
            raise InputError(
                f"no annotations (*.xml) in {self.root}: set data.root to a folder in Pascal VOC"
                f" format{hint(self.root, 'VOCFolder')}"
            )
        first = split == self.naming_split or self.labels is not None
        return read_voc(files, self.root, () if first else tuple(self.categories.values()))

    @property
    def naming_split(self) -> str:
        alone = self.has_own("val") and not self.has_own("train")
        return "val" if alone and not self.split else "train"

    def _annotations(self, split: str) -> list[Path]:
        listed = self._listed(split)
        if listed is not None:
            below = {path.stem: path for path in annotation_files(self.root)}
            lines = [line.strip() for line in read_lines(listed) if line.strip()]
            names = [line if line in below else line.split()[0] for line in lines]  # NAME 1
            if absent := [name for name in names if name not in below]:
                raise InputError(
                    f"{listed} lists {absent[0]}, and there is no {absent[0]}.xml in {self.root}"
                )
            return [below[name] for name in names]
        folder = split_folder(self.root, split)
        if folder is not None or split != "train":
            return annotation_files(folder or self.root)
        others = [split_folder(self.root, other) for other in ("val", "test")]
        return [
            file
            for file in annotation_files(self.root)
            if not any(other in file.parents for other in others)
        ]

    def _listed(self, split: str) -> Path | None:
        """ImageSets/Main/SPLIT.txt, without the lists per class such as cat_train.txt."""
        names = (self.root / "ImageSets/Main" / f"{name}.txt" for name in SPLIT_NAMES[split])
        return next((file for file in names if file.is_file()), None)


def challenge_folder(root: Path) -> Path:
    """The folder VOC2007 and the like in VOCdevkit, if it is the only one, else the root."""
    inner = [
        path.parent
        for pattern in ("*/Annotations", "VOCdevkit/*/Annotations")
        for path in sorted(root.glob(pattern))
        if path.is_dir() and (path.parent / "ImageSets").is_dir()
    ]
    return inner[0] if len(inner) == 1 and not (root / "Annotations").is_dir() else root


def annotation_files(folder: Path) -> list[Path]:
    """All *.xml below a folder, without junk, in the order of their paths."""
    found = walk(str(folder), Listing())  # follows links, as for images
    return sorted(Path(path) for path, ending in found if ending == ".xml")


def read_voc(files: Sequence[Path], root: Path, known: Sequence[str] = ()) -> Instances:
    """Read annotations in Pascal VOC format.

    Args:
        files: the XML files.
        root: folder below which their images are.
        known: names of the first categories, in the order of their numbers.

    Raises:
        InputError: a file that does not parse, or an image that is not there.
    """
    repairs = Repairs(root)
    by_stem: dict[str, list[str]] = {}
    for path in list_images(root).files:
        by_stem.setdefault(Path(path).stem, []).append(path)
    trees = [(file, parsed(file)) for file in files]
    here = {name_of(one, file) for file, tree in trees for one in tree.iter("object")}
    names = [*known, *sorted(here - set(known))]
    numbers = {name: number for number, name in enumerate(names, 1)}
    images, objects = [], []
    for index, (file, tree) in enumerate(trees):
        path = image_of(file, tree, by_stem)
        image = ImageEntry(index + 1, Path(path).relative_to(root).as_posix(), *size(tree, path))
        images.append(image)
        first = 1.0 if (tree.findtext("source/database") or "").startswith("The VOC") else 0.0
        for one in tree.iter("object"):
            category = numbers[name_of(one, file)]
            objects += voc_object(one, file, index, image, category, first, repairs)
    if objects and all(max(found.box) <= 1 < images[found.image].width for found in objects):
        repairs.warnings.append(
            f"{root}: all {len(objects)} boxes lie in 0..1, as shares of the image: those of Pascal"
            " VOC are in pixels; multiply them by the width and height of their image"
        )
    if not names:
        raise InputError(f"{root}: no objects in its {len(files)} annotations (*.xml)")
    return Instances.build(
        root, {number: name for name, number in numbers.items()}, images, objects, repairs
    )


def voc_object(
    one: ElementTree.Element,
    file: Path,
    index: int,
    image: ImageEntry,
    category: int,
    first: float,
    repairs: Repairs,
) -> Iterable[ObjectEntry]:
    """The object of an element, or none for an empty box."""
    corners = [number(one, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = corners
    example = f"{file.name} ({image.width}x{image.height}): {corners}"
    box = fitted_box((left - first, top - first, right, bottom), image, example, repairs)
    if box is None:
        return
    difficult = int((one.findtext("difficult") or "0").strip().lower() in YES)
    if difficult:
        repairs.add("difficult objects not trained on", example)
    yield ObjectEntry(index, box, category, (box[2] - box[0]) * (box[3] - box[1]), difficult)


def parsed(file: Path) -> ElementTree.Element:
    """The root of an annotation.

    Raises:
        InputError: a damaged or other file; one that declares entities, which can expand to any
            size; or one of more than `MAX_BYTES`.
    """
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise InputError(
                f"{file} has {size / 1e6:,.1f} MB: annotations are read up to"
                f" {MAX_BYTES / 1e6:,.0f} MB"
            )
        content = file.read_bytes()
        if b"<!ENTITY" in content.replace(b"\0", b""):  # of UTF-16
            raise InputError(f"{file} declares entities, which are not read: remove its <!DOCTYPE>")
        root = ElementTree.fromstring(content)
    except InputError:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not a whole XML file: {error}") from None
    if root.tag != "annotation":
        raise InputError(f"{file} is not a Pascal VOC annotation: its root is <{root.tag}>")
    return root


def name_of(one: ElementTree.Element, file: Path) -> str:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{file}: an object has no name")
    return name


def number(one: ElementTree.Element, key: str, file: Path) -> float:
    text = one.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        raise InputError(f"{file}: {key} of an object is {text!r}, not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{file}: {key} of an object is {text!r}, not a finite number")
    return value


def image_of(file: Path, tree: ElementTree.Element, by_stem: dict[str, list[str]]) -> str:
    """The image of an annotation: of its own stem, else the one that it names; the nearest."""
    named = PureWindowsPath((tree.findtext("filename") or "").strip())  # splits both kinds
    found = by_stem.get(file.stem) or by_stem.get(named.stem)
    if not found and named.suffix.lower() not in extensions():
        found = by_stem.get(named.name)  # a name without its ending
    if not found:
        raise InputError(
            f"{file} is of {named.name or 'no image'}, and there is neither that nor"
            f" {file.stem}.* below data.root"
        )
    best = max(found, key=lambda path: nearness(Path(path), file))
    if sum(nearness(Path(path), file) == nearness(Path(best), file) for path in found) > 1:
        raise InputError(
            f"{file} may be of {found[0]} or of {found[1]}: put it beside its image, or name its"
            " folders alike"
        )
    return best


def nearness(image: Path, annotation: Path) -> tuple[int, int]:
    """Shared folders above an image and an annotation, and folders of the same name right above."""
    shared = sum(folder in annotation.parents for folder in image.parents)
    pairs = zip(reversed(image.parent.parts), reversed(annotation.parent.parts), strict=False)
    alike = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return shared, alike


def size(tree: ElementTree.Element, path: str) -> tuple[int, int]:
    """Width and height as annotated; of the file where the annotation has none."""
    sides = [tree.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    try:
        width, height = (round(float(side)) for side in sides)
    except ValueError:
        width = height = 0
    if width > 0 and height > 0:
        return width, height
    found = image_size(path)
    if found is None:
        raise InputError(f"cannot read the image {path}: repair or remove it")
    return found
