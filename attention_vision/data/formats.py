"""Recognition of what a folder or file is, by its names and the first bytes of a few files.

For error messages (`hint`) and for `attention-vision data PATH`. Data classes are named, not
imported.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attention_vision.data.image_files import extensions, holds_image, is_junk, pages
from attention_vision.data.splits import SPLIT_NAMES

IMAGE_FOLDER, IMAGE_CSV, HUGGING_FACE = (
    f"attention_vision.classification.{name}"
    for name in ("ImageFolder", "ImageCSV", "HuggingFaceImages")
)
COCO_FOLDER, VOC_FOLDER, YOLO_FOLDER, INSTANCE_MASKS = (
    f"attention_vision.detection.{name}"
    for name in ("COCOFolder", "VOCFolder", "YOLOFolder", "InstanceMaskFolder")
)
FOLDER_IMAGES, DEGRADED_FOLDER, MASK_FOLDER = (
    f"attention_vision.generation.{name}"
    for name in ("FolderImages", "DegradedFolder", "MaskFolder")
)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
HEAD = 1 << 16  # bytes of a file that are read from either end
LOOKED_AT = 200  # files of a folder whose names are compared
STACKS = 8  # TIFF files of a folder whose pages are counted
HELD_OUT = 0.2  # share to validate on, where a data set has no split of its own
# Names of folders that hold masks, the likelier ones first: DRIVE's `mask` is the field of view.
MASK_FOLDERS = ("manual", r"ground.?truth|\bgt", "label", "seg", "annot", "target", "mask")
# What the name of a mask has after that of its image.
MASK_ENDING = re.compile(
    r"(.+?)([-_. ]?(?:masks?|labels?|gt|segm?\w*|manual\d*|\d(?:st|nd|rd)\w*|ground_?truth))",
    re.IGNORECASE,
)
ALL_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
PARTS = {*ALL_SPLITS, "images", "labels", "annotations", "jpegimages"}  # not whole data sets
COCO_KEYS = {b'"images"', b'"annotations"', b'"categories"'}


@dataclass(frozen=True)
class Format:
    """What a folder or file was recognized as.

    Attributes:
        name: of the format, for messages.
        root: the folder that has it, which may lie below or above the one that was asked for.
        readers: dotted name of each data class that reads it, the likeliest first -> the arguments
            that a config has to give.
        note: what to do first, where no class reads it as it is.
    """

    name: str
    root: Path
    readers: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""

    def reader(self, name: str = "") -> str:
        """The dotted name of the reader of this short name; of the first without. "" if none."""
        found = (one for one in self.readers if not name or one.rpartition(".")[2] == name)
        return next(found, "")


def recognize(path: str | Path) -> Format | None:
    """The format of a folder or file, or of the one folder that it nests; None if unknown."""
    path = Path(path)
    if path.is_file():
        return of_file(path)
    if not path.is_dir():
        return None
    here = recognize_folder(path)
    whole = recognize_folder(path.absolute().parent) if path.name.lower() in PARTS else None
    if whole and whole.name != FLAT and (here is None or here.name in (FLAT, CLASSES, whole.name)):
        return whole
    return here or nested(path)


def hint(path: str | Path, asked: str = "") -> str:
    """The end of an error message: what the path looks like, and the class that reads it.

    Args:
        path: the folder or file that was given.
        asked: name of the data class that met it; nothing is said if it is the right one already.

    Returns:
        For example `; it looks like Pascal VOC: use data.class_path VOCFolder of detection`, or "".
    """
    if not Path(path).exists():
        return f"; {path} does not exist"
    found = recognize(path)
    if found is None:
        return ""
    looks = f"; it looks like {found.name}"
    if found.note:
        return f"{looks}: {found.note}"
    names = [reader.rpartition(".")[2] for reader in found.readers]
    if asked not in names:
        tasks = (reader.split(".")[1] for reader in found.readers)
        readers = [f"{name} of {task}" for name, task in zip(names, tasks, strict=True)]
        elsewhere = "" if same(found.root, path) else f" with {found.root}"
        return f"{looks}: use data.class_path {' or '.join(readers)}{elsewhere}"
    return "" if same(found.root, path) else f"; set the path to {found.root}"


def same(one: str | Path, other: str | Path) -> bool:
    return Path(one).absolute() == Path(other).absolute()


class Folder:
    """Names in a folder: subfolders that may be data, and files by their ending in lower case."""

    def __init__(self, path: Path):
        self.path = path
        self.folders: list[str] = []
        self.files: dict[str, list[str]] = {}
        with os.scandir(path) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                if entry.is_dir():
                    self.folders.append(entry.name)
                else:
                    ending = os.path.splitext(entry.name)[1].lower()
                    self.files.setdefault(ending, []).append(entry.name)
        self.folders.sort()

    def having(self, *endings: str) -> list[Path]:
        names = (name for ending in endings for name in self.files.get(ending, ()))
        return [self.path / name for name in sorted(names)]

    @property
    def images(self) -> list[Path]:
        return self.having(*(ending for ending in self.files if ending in extensions()))

    def below(self, *names: str) -> "list[Folder]":
        """The folders of these names, in small or large letters, that are there; all without."""
        wanted = {name.lower() for name in names}
        return [
            Folder(self.path / name)
            for name in self.folders
            if not wanted or name.lower() in wanted
        ]

    def splits(self) -> "dict[str, Folder]":
        """By split, the folder that is named after it."""
        found: dict[str, Folder] = {}
        for name in self.folders:
            if (split := ALL_SPLITS.get(name.lower())) and split not in found:
                found[split] = Folder(self.path / name)
        return found


def recognize_folder(path: Path) -> Format | None:
    folder = Folder(path)
    for kind in KINDS:
        if found := kind(folder):
            return found
    return None


def of_file(path: Path) -> Format | None:
    """The format of the folder that a file of annotations is in, with that file."""
    ending = path.suffix.lower()
    if ending in ARCHIVES:
        return Format("an archive", path, note=f"unpack {path.name} and give the folder")
    if ending not in (".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".parquet", ".arrow"):
        return None
    found = recognize(path.parent)
    if found and IMAGE_CSV in found.readers and ending in (".csv", ".tsv"):
        return replace(found, readers={IMAGE_CSV: found.readers[IMAGE_CSV] | {"csv": str(path)}})
    return found


def nested(path: Path) -> Format | None:
    """The format of the only folder in a folder, through any number of them."""
    folder = Folder(path)
    if archives := folder.having(*ARCHIVES):
        return Format("an archive", path, note=f"unpack {archives[0].name} first")
    found = [one for name in folder.folders[:20] if (one := recognize(path / name)) is not None]
    return found[0] if len(found) == 1 else None


def hugging_face(folder: Folder) -> Format | None:
    saved = {"dataset_dict.json", "dataset_info.json"} & set(folder.files.get(".json", ()))
    places = [folder, *folder.below()]
    arrow = saved and any(place.files.get(".arrow") for place in places)
    if not arrow and not any(place.files.get(".parquet") for place in places):
        return None
    name = "a Hugging Face data set" + (" (save_to_disk)" if arrow else " (parquet)")
    arguments = with_split({"root": str(folder.path)}, bool(folder_splits(folder)))
    return Format(name, folder.path, {HUGGING_FACE: arguments})


def folder_splits(folder: Folder) -> set[str]:
    """Splits that the names of folders and of parquet files tell, as Hugging Face names them."""
    files = [path.stem for place in [folder, *folder.below()] for path in place.having(".parquet")]
    words = {re.split(r"\W|_", name)[0].lower() for name in [*files, *folder.folders]}
    return {ALL_SPLITS[word] for word in words if word in ALL_SPLITS} - {"train"}


def yolo(folder: Folder) -> Format | None:
    settings = next(filter(is_yolo_yaml, folder.having(".yaml", ".yml")), None)
    if settings is None:
        places = [folder, *folder.splits().values()]
        labels = [label for place in places for label in place.below("labels")]
        labels += [inner for label in labels for inner in label.below()]
        if not any(is_yolo_label(label) for label in labels):
            return None
    splits = folder.splits() or {
        split: inner
        for images in folder.below("images")
        for split, inner in images.splits().items()
    }
    named = settings is not None and re.search(rb"^val\w*\s*:\s*\S", head(settings), re.MULTILINE)
    arguments = with_split({"root": str(folder.path)}, "val" in splits or bool(named))
    return Format("YOLO", folder.path, {YOLO_FOLDER: arguments})


def is_yolo_yaml(path: Path) -> bool:
    keys = set(re.findall(rb"^(\w+)\s*:", head(path), re.MULTILINE))
    return b"names" in keys and bool(keys & {b"train", b"val", b"path", b"nc"})


def is_yolo_label(folder: Folder) -> bool:
    """Whether the first label file with an object in it begins with a class and four numbers."""
    texts = (head(path).split(b"\n")[0].split() for path in folder.having(".txt")[:LOOKED_AT])
    words = next(filter(None, texts), [])
    number = re.compile(rb"-?\d+(\.\d*)?(e-?\d+)?")
    return len(words) >= 5 and all(number.fullmatch(word) for word in words)


def coco(folder: Folder) -> Format | None:
    splits = {split: instances(inner) for split, inner in folder.splits().items()}
    splits = {split: found[0] for split, found in splits.items() if found}
    places = [folder, *folder.below("annotations", "annotation", "labels")]
    here = [found for place in places for found in instances(place)]
    if not splits and not here:
        return None
    if not splits:  # else as Roboflow exports it
        splits = {split_in_name(file.stem): file for file in here}
    return Format("COCO", folder.path, {COCO_FOLDER: coco_arguments(folder, splits)})


def instances(folder: Folder) -> list[Path]:
    """The files of a folder that look like COCO's instances, best first."""
    found = [path for path in folder.having(".json") if is_coco(path)]
    return sorted(found, key=lambda path: ("annotations.coco" not in path.name, path.name))


def is_coco(path: Path) -> bool:
    text = head(path)
    if not text.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return False
    ends = text + tail(path)
    return sum(key in ends for key in COCO_KEYS) >= 2


def split_in_name(stem: str) -> str:
    """The split that a name tells, such as instances_val2017; training otherwise."""
    words = re.findall(r"[a-z]+", stem.lower())
    return next((ALL_SPLITS[word] for word in words if word in ALL_SPLITS), "train")


def coco_arguments(folder: Folder, files: dict[str, Path]) -> dict[str, Any]:
    arguments = {}
    for split, file in files.items():
        arguments[f"{split}_images"] = str(image_folder(folder, file))
        arguments[f"{split}_annotations"] = str(file)
    return with_split(arguments, "val" in files)


def image_folder(folder: Folder, file: Path) -> Path:
    """The folder of the images of an annotation file: where the first one that it names is.

    Beside the file; else of several, whose images may have the same names, that of its split.
    """
    found = re.search(rb'"file_name"\s*:\s*"([^"]+)"', head(file) + tail(file))
    name = Path(found[1].decode(errors="replace").replace("\\", "/")).name if found else ""
    near = [file.parent, folder.path, *(inner.path for inner in folder.below())]
    far = [inner.path for one in folder.below() for inner in one.below()]
    places = [place for place in [*near, *far] if name and (place / name).is_file()] or near
    if places[0] == file.parent:
        return file.parent
    split = split_in_name(file.stem)
    return next((place for place in places if split_in_name(place.name) == split), places[0])


def voc(folder: Folder) -> Format | None:
    places = [folder, *folder.below("annotations", "annotation", "xmls", "labels")]
    places += [inner for place in places[1:] for inner in place.below()]
    splits = folder.splits()
    inside = [inner for part in splits.values() for inner in [part, *part.below("annotations")]]
    if not any(is_voc(place) for place in [*places, *inside]):
        return None
    lists = [main for sets in folder.below("ImageSets") for main in sets.below("Main")]
    names = {path.stem for main in lists for path in main.having(".txt")}
    arguments = with_split({"root": str(folder.path)}, "val" in {*names, *splits})
    return Format("Pascal VOC", folder.path, {VOC_FOLDER: arguments})


def is_voc(folder: Folder) -> bool:
    return any(b"<annotation" in head(path)[:1000] for path in folder.having(".xml")[:3])


def masks(folder: Folder) -> Format | None:
    """Images and masks in two folders, or in one under two kinds of names."""
    splits = folder.splits()
    pairs = {split: pair for split, inner in splits.items() if (pair := image_mask_pair(inner))}
    if not pairs and (pair := image_mask_pair(folder)):
        pairs = {"train": pair}
    if "train" not in pairs:
        pairs = pairs_in_parallel(folder)
    if "train" not in pairs and (pair := stack_pair(folder)):
        pairs = {"train": pair}
    if "train" not in pairs:
        return None
    arguments: dict[str, Any] = {}
    for split, pair in pairs.items():
        if pair.patterns != pairs["train"].patterns:
            continue  # one pattern serves all splits
        arguments |= {f"{split}_images": str(pair.images), f"{split}_masks": str(pair.masks)}
    if pairs["train"].patterns != ("{name}", "{name}"):
        image, mask = pairs["train"].patterns
        arguments |= {"image_pattern": image, "mask_pattern": mask}
    readers = {MASK_FOLDER: with_split(arguments, "val" in pairs)}
    pattern = mask_of_whole_name(*pairs["train"].patterns)
    if pattern and len(pairs) == 1 and pairs["train"].images != pairs["train"].masks:
        objects = {
            "images_folder": str(pairs["train"].images),
            "masks_folder": str(pairs["train"].masks),
            "mask_pattern": pattern,
        }
        readers[INSTANCE_MASKS] = with_split(objects, False)
    return Format("images with masks", folder.path, readers)


def mask_of_whole_name(image: str, mask: str) -> str:
    """The pattern of a mask without its ending, where {name} is the whole image's; "" if none."""
    before, after = (part.removesuffix(Path(image).suffix) for part in image.split("{name}"))
    mask_before, mask_after = (
        part.removesuffix(Path(mask).suffix) for part in mask.split("{name}")
    )
    if before != mask_before or not mask_after.startswith(after):
        return ""
    return "{name}" + mask_after.removeprefix(after)


@dataclass(frozen=True)
class Pair:
    """A folder of images, one of their masks, and the patterns of the names in both."""

    images: Path
    masks: Path
    patterns: tuple[str, str]


def image_mask_pair(folder: Folder) -> Pair | None:
    places = [inner for inner in folder.below() if inner.images]
    for masks, images in mask_pairs(places):
        if patterns := name_patterns(images.images, masks.images):
            return Pair(images.path, masks.path, patterns)
    files = folder.images[:LOOKED_AT]
    endings = {path: found[2] for path in files if (found := MASK_ENDING.fullmatch(path.stem))}
    if not endings:
        return None
    of_masks = [path for path in endings if endings[path] == min(endings.values())]
    images = [path for path in files if path not in endings]
    if (patterns := name_patterns(images, of_masks)) is None:
        return None
    of_image, of_mask = patterns
    return Pair(folder.path, folder.path, (suffixed(of_image, images), suffixed(of_mask, of_masks)))


def stack_pair(folder: Folder) -> Pair | None:
    """Two TIFF files of equally many pages, the images and their masks, as of ISBI 2012."""
    counts = {path: len(pages(str(path))) for path in folder.having(".tif", ".tiff")[:STACKS]}
    stacks = [path for path, count in counts.items() if count > 1]
    of_masks = [path for path in stacks if rank(path.stem) < len(MASK_FOLDERS)]
    for masks in of_masks:
        for images in stacks:
            if images not in of_masks and counts[images] == counts[masks]:
                alike = images.stem[:4] == masks.stem[:4]  # train-volume.tif, train-labels.tif
                if alike or len(stacks) == 2:
                    return Pair(images, masks, ("{name}", "{name}"))
    return None


def mask_pairs(places: list[Folder]) -> Iterator[tuple[Folder, Folder]]:
    """Pairs of folders of which the first is the likelier one to hold masks, likeliest first."""
    ranked = sorted(places, key=mask_rank)
    for masks in ranked:
        for images in reversed(ranked):
            if mask_rank(masks) < mask_rank(images):
                yield masks, images


def suffixed(pattern: str, files: list[Path]) -> str:
    """A pattern with the ending of the files: in one folder it tells the images from the masks."""
    return pattern if "." in pattern else pattern + files[0].suffix


def pairs_in_parallel(folder: Folder) -> dict[str, Pair]:
    """By split, pairs of IMAGES/SPLIT and MASKS/SPLIT."""
    pairs: dict[str, Pair] = {}
    for masks, images in mask_pairs(folder.below()):
        theirs = masks.splits()
        for split, inner in images.splits().items():
            if split in theirs and split not in pairs:
                patterns = name_patterns(inner.images, theirs[split].images)
                if patterns:
                    pairs[split] = Pair(inner.path, theirs[split].path, patterns)
    return pairs


def mask_rank(folder: Folder) -> int:
    """Position in `MASK_FOLDERS` of the first word in a folder's name; their number without."""
    return rank(folder.path.name)


def rank(name: str) -> int:
    """Position in `MASK_FOLDERS` of the first word in a name; their number without one."""
    found = (place for place, word in enumerate(MASK_FOLDERS) if re.search(word, name.lower()))
    return next(found, len(MASK_FOLDERS))


def name_patterns(images: list[Path], of_masks: list[Path]) -> tuple[str, str] | None:
    """Patterns of the names of images and their masks, with the shared part as {name}.

    ("{name}", "{name}") if they are equal up to the ending. None if fewer than nine of ten images
    have a mask.
    """
    images, of_masks = images[:LOOKED_AT], of_masks[: LOOKED_AT * 4]
    if not images or not of_masks:
        return None
    stems = {path.stem for path in of_masks}
    if sum(path.stem in stems for path in images) >= 0.9 * len(images):
        return "{name}", "{name}"
    before, after = common_ends([path.stem for path in images])
    mask_before, mask_after = common_ends(sorted(stems))
    names = {stem.removeprefix(mask_before).removesuffix(mask_after) for stem in stems}
    found = 0
    for path in images:
        found += path.stem.removeprefix(before).removesuffix(after) in names
    if found < 0.9 * len(images):
        return whole_name_patterns(images, of_masks)
    return (
        f"{before}{{name}}{after}{images[0].suffix}",
        f"{mask_before}{{name}}{mask_after}{of_masks[0].suffix}",
    )


def whole_name_patterns(images: list[Path], of_masks: list[Path]) -> tuple[str, str] | None:
    """Patterns where a mask has the whole name of its image and something before or after it."""
    first = min(images, key=lambda path: len(path.stem))
    for mask in of_masks:
        before, found, after = mask.stem.partition(first.stem)
        if not found:
            continue
        stems = {path.stem for path in of_masks}
        if sum(before + path.stem + after in stems for path in images) >= 0.9 * len(images):
            return f"{{name}}{first.suffix}", f"{before}{{name}}{after}{mask.suffix}"
    return None


def common_ends(names: list[str]) -> tuple[str, str]:
    """What all names begin and end with, digits left out: they number the images."""
    before = common_begin(names).rstrip("0123456789")
    after = common_begin([name[len(before) :][::-1] for name in names])[::-1]
    return before, after.lstrip("0123456789")


def common_begin(names: list[str]) -> str:
    low, high = min(names), max(names)
    return next((low[:n] for n, letter in enumerate(low) if high[n : n + 1] != letter), low)


def class_folders(folder: Folder) -> Format | None:
    splits, has_val = folder.splits(), False
    if "train" in splits:
        has_val = "val" in splits and bool(folders_of_images(splits["val"]))
        folders = folders_of_images(splits["train"])
    else:
        folders = [] if splits else folders_of_images(folder)
    if len(folders) < 2:
        return None
    root = {"root": str(folder.path)}
    return Format(
        CLASSES, folder.path, {IMAGE_FOLDER: with_split(root, has_val), FOLDER_IMAGES: root}
    )


def folders_of_images(folder: Folder) -> list[str]:
    """Names of up to three subfolders with an image in them: more need not be known."""
    found = (name for name in folder.folders if holds_image(folder.path / name))
    return [name for name, _ in zip(found, range(3), strict=False)]


def csv_of_labels(folder: Folder) -> Format | None:
    named = {path: places_named(path, folder) for path in folder.having(".csv", ".tsv")}
    files = [path for path, places in named.items() if places]
    if not files:
        return None
    file = min(files, key=lambda path: (split_in_name(path.stem) != "train", path.name))
    arguments: dict[str, Any] = {"csv": str(file)}
    split = split_in_name(file.stem)
    for place in named[file]:  # not the whole: images in train and test may have the same names
        if ALL_SPLITS.get(place.name.lower()) == split:
            arguments["root"] = str(place)
    arguments = with_split(arguments, has_val=names_validation(file))
    return Format("a CSV of labels", folder.path, {IMAGE_CSV: arguments})


def names_validation(path: Path) -> bool:
    """Whether a CSV has cells that say which images are for validation."""
    words = set(re.findall(rb"[a-z]+", head(path).lower().replace(b"_", b" ")))
    column = words & {b"split", b"subset", b"fold", b"set", b"partition"}
    return bool(column) and any(name.encode() in words for name in SPLIT_NAMES["val"])


def places_named(path: Path, folder: Folder) -> list[Path]:
    """Folders with the image that the second line of a CSV names, if other cells may label it."""
    lines = head(path).decode("utf-8-sig", errors="replace").splitlines()[:2]
    if len(lines) < 2:
        return []
    separator = max(",;\t|", key=lines[1].count)
    cells = next(csv.reader([lines[1]], delimiter=separator))
    if len(cells) < 2:
        return []
    places = [folder.path, *(folder.path / name for name in folder.folders)]
    for cell in filter(None, (cell.strip() for cell in cells)):
        endings = [""] if Path(cell).suffix.lower() in extensions() else [".jpg", ".png", ".jpeg"]
        if found := [
            place for place in places if any((place / (cell + one)).is_file() for one in endings)
        ]:
            return found
    return []


def flat_folder(folder: Folder) -> Format | None:
    if not folder.images:
        return None
    restored = with_split({"train_images": str(folder.path)}, False)
    return Format(
        FLAT, folder.path, {FOLDER_IMAGES: {"root": str(folder.path)}, DEGRADED_FOLDER: restored}
    )


CLASSES, FLAT = "folders of classes", "a folder of images"
# In this order: each takes for granted that it is none of those before it.
KINDS: tuple[Callable[[Folder], Format | None], ...] = (
    hugging_face, yolo, coco, voc, masks, class_folders, csv_of_labels, flat_folder,
)  # fmt: skip


def with_split(arguments: dict[str, Any], has_val: bool) -> dict[str, Any]:
    """The arguments, with a share held out to validate on where there is no such split."""
    return arguments if has_val else arguments | {"split": {"val": HELD_OUT}}


def head(path: Path) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        with path.open("rb") as opened:
            return opened.read(HEAD)
    except OSError:
        return b""


def tail(path: Path) -> bytes:
    """The last bytes of a file."""
    try:
        with path.open("rb") as opened:
            opened.seek(max(0, path.stat().st_size - HEAD))
            return opened.read()
    except OSError:
        return b""
