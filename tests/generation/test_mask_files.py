"""Masks as people have them: names, palettes, colors, pixels without a class, pages, JPEG."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_to_image_folders import balls, discs
from PIL import Image

from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.generation import (
    DegradedFolder,
    FolderImages,
    MaskFolder,
    Noise,
    Restoration,
    Segmentation,
    VolumeFolder,
)
from attention_vision.generation.image_to_image.mask_codes import MaskCodes
from attention_vision.generation.image_to_image.module import SegmentationMetrics, dice_loss
from attention_vision.generation.image_to_image.predictions import write
from attention_vision.training.labels import Labels

MASK = np.zeros((16, 20), np.uint8)
MASK[4:10, 5:12], MASK[12:, 15:] = 1, 2  # two objects on ground


def image(file: Path, size: tuple[int, int] = (16, 20), **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)


def data(folder: Path, masks: str = "masks", images: str = "images", **arguments) -> MaskFolder:
    given = {"size": 8, "num_workers": 0, "split": SplitShares(val=0.3)} | arguments
    return MaskFolder(str(folder / images), str(folder / masks), **given)


def classes(one: MaskFolder) -> torch.Tensor:
    return one.dataset("val", 0)[0][1]


def pair(folder: Path, mask: Image.Image, file: str = "{}.png", **options) -> None:
    (folder / "masks").mkdir(parents=True)
    for name in "abc":
        image(folder / "images" / f"{name}.png")
        mask.save(folder / "masks" / file.format(name), **options)


LAYOUTS = {  # folder of the masks, names of image and mask -> patterns
    "drive": ("masks", "2{}_training.png", "2{}_manual1.gif"),
    "penn-fudan": ("masks", "Ped0{}.png", "Ped0{}_mask.png"),
    "carvana, one folder": ("images", "car{}.jpg", "car{}_mask.gif"),
    "one folder, one ending": ("images", "{}.png", "{}_seg.png"),
    "cityscapes": ("masks", "town/{}_leftImg8bit.png", "town/{}_labelIds.png"),
    "masks inside": ("images/masks", "{}.png", "{}.png"),
}


@pytest.mark.parametrize(("masks", "image_name", "mask_name"), LAYOUTS.values(), ids=LAYOUTS)
def test_patterns_of_names(masks, image_name, mask_name, tmp_path):
    for number in range(4):
        image(tmp_path / "images" / image_name.format(number))
        file = tmp_path / masks / mask_name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(MASK, 255, 0).astype(np.uint8)).save(file)
    patterns = {
        "image_pattern": image_name.replace("{}", "{name}"),
        "mask_pattern": mask_name.replace("{}", "{name}"),
    }
    found = data(tmp_path, masks, split=None, val_names=["*1_training", "*1"], **patterns)
    pairs = found.pairs("train") + found.pairs("val")
    assert len(found.pairs("val")) == 1
    assert sorted(pairs) == [
        (
            str(tmp_path / "images" / image_name.format(k)),
            str(tmp_path / masks / mask_name.format(k)),
        )
        for k in range(4)
    ]
    assert torch.equal(classes(found), torch.tensor(MASK > 0).long())
    if Path(mask_name).stem == Path(image_name).stem:
        return
    # Without the patterns one line names them.
    with pytest.raises(InputError, match=r"data.mask_pattern '.*{name}") as error:
        data(tmp_path, masks).pairs("train")
    assert "\n" not in str(error.value)
    told = dict(
        zip(("image_pattern", "mask_pattern"), str(error.value).split("'")[1::2], strict=True)
    )
    assert len(data(tmp_path, masks, **told).pairs("train")) == 3


def test_a_palette_has_classes_by_index_and_255_without_one(tmp_path):
    mask = Image.fromarray(np.where(MASK == 2, 255, MASK), "P")
    mask.putpalette([0, 0, 0, 128, 0, 0, *([7] * 753), 224, 224, 192])
    pair(tmp_path, mask)
    found = classes(data(tmp_path, values=[0, 1], ignore=255))
    assert torch.equal(found, torch.tensor(np.where(MASK == 2, 255, MASK)).long())
    with pytest.raises(InputError, match=r"set data.values"):
        classes(data(tmp_path, values=[0, 3], ignore=255))


def test_numbered_objects_are_one_class(tmp_path):
    pair(tmp_path, Image.fromarray(MASK))
    found = data(tmp_path, values=[0, "rest"])
    assert torch.equal(classes(found), torch.tensor(MASK > 0).long())
    assert np.array_equal(found.codes.written(np.array([[0, 1]])), [[0, 255]])
    with pytest.raises(InputError, match=r"set data.values \[0, rest\] if all but 0 is foreground"):
        classes(data(tmp_path))


COLORS = {"sky": (0, 0, 0), "road": (128, 64, 128), "car": (64, 0, 128)}
COLORS_LESS = {"sky": (0, 0, 0), "road": (128, 64, 128)}


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("palette", [False, True])
def test_colors_are_classes(palette, as_file, tmp_path):
    colored = Image.fromarray(np.array([*COLORS.values()], np.uint8)[MASK])
    pair(tmp_path, colored.quantize(3) if palette else colored)
    rows = [f"{name}, {r}, {g}, {b}" for name, (r, g, b) in COLORS.items()]
    (tmp_path / "class_dict.csv").write_text("\n".join(["name, r, g, b", *rows]))
    colors = str(tmp_path / "class_dict.csv") if as_file else COLORS
    found = data(tmp_path, colors=colors)
    assert found.class_names == ("sky", "road", "car")
    assert torch.equal(classes(found), torch.tensor(MASK).long())
    assert np.array_equal(found.codes.written(MASK), np.asarray(colored))
    with pytest.raises(InputError, match=r"\[64, 0, 128\] are no color of data.colors"):
        classes(data(tmp_path, colors=COLORS_LESS))
    ignored = classes(data(tmp_path, colors=COLORS_LESS, ignore=(64, 0, 128)))
    assert torch.equal(ignored, torch.tensor(np.where(MASK == 2, 255, MASK)).long())
    assert torch.equal(ignored, classes(data(tmp_path, colors=COLORS_LESS, ignore="rest")))
    if not palette:
        with pytest.raises(InputError, match=r"a colored mask of 3 colors.*set data.colors"):
            classes(data(tmp_path))


def test_jpeg_masks_count_for_the_nearest_and_smooth_ones_are_told(tmp_path):
    binary = Image.fromarray(np.where(MASK, 255, 0).astype(np.uint8))
    pair(tmp_path / "jpeg", binary, "{}.jpg", quality=60)
    found = data(tmp_path / "jpeg")
    assert len(np.unique(Image.open(tmp_path / "jpeg/masks/a.jpg"))) > 4
    assert torch.equal(classes(found), torch.tensor(MASK > 0).long())
    found.setup("fit")
    assert found.findings["train"].repaired[0].startswith("2 masks are JPEG")
    pair(tmp_path / "smooth", binary.resize((40, 32), Image.Resampling.BICUBIC).resize((20, 16)))
    with pytest.raises(InputError, match="levels are those of a mask that was saved as JPEG"):
        classes(data(tmp_path / "smooth"))


def test_pages_of_a_tiff_stand_for_a_folder(tmp_path):
    pages = [np.full((16, 20), 10 * number, np.uint8) for number in range(12)]
    masks = [np.where(number % 3 == MASK, 255, 0).astype(np.uint8) for number in range(12)]
    for name, stack in (("volume", pages), ("labels", masks)):
        first, *others = map(Image.fromarray, stack)
        first.save(tmp_path / f"{name}.tif", save_all=True, append_images=others)
    found = data(tmp_path, "labels.tif", "volume.tif", split=None, val_names=["0?"])
    assert len(found.pairs("train")) == 2
    for number in range(10):
        image, mask = found.dataset("val", 0)[number]
        assert (image * 255).round().unique().tolist() == [10 * number]
        assert torch.equal(mask, torch.tensor(number % 3 == MASK).long())
    inputs = found.inputs(str(tmp_path / "volume.tif"))
    assert len(inputs) == 12
    assert inputs[11][1] == str(tmp_path / "volume.tif" / "11")
    assert (inputs[11][0] * 255).round().unique().tolist() == [110]


def test_ignored_pixels_change_neither_loss_nor_metric():
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (2, 6, 7))
    logits = torch.randn(2, 3, 6, 7)
    hidden = torch.rand(2, 6, 7) < 0.3
    ignored = torch.where(hidden, 255, targets)
    other = torch.where(hidden[:, None], torch.randn_like(logits), logits)
    objective = Segmentation()
    assert objective.loss(other, ignored) == objective.loss(logits, ignored)
    kept = [logits[k][:, ~hidden[k]][None] for k in range(2)]
    shown = [targets[k][~hidden[k]][None] for k in range(2)]
    naive = torch.stack([dice_loss(*one) for one in zip(kept, shown, strict=True)]).mean()
    assert dice_loss(logits, ignored) == pytest.approx(naive.item(), abs=1e-6)
    entropy = F.cross_entropy(torch.cat([one[0].T for one in kept]), torch.cat(shown, 1)[0])
    assert Segmentation(0, 1).loss(logits, ignored) == pytest.approx(entropy.item(), abs=1e-6)
    measured = []
    for scores in (logits, other):
        metric = SegmentationMetrics(3)
        metric.update(scores, scores, ignored)
        measured.append(metric.compute()["dice"].item())
    assert measured[0] == measured[1]


def test_a_patch_of_ignored_pixels_alone_teaches_nothing():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = Segmentation().loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_shrunk_mask_keeps_what_has_no_class(tmp_path):
    mask = np.where(MASK == 2, 9, MASK)
    pair(tmp_path, Image.fromarray(mask.astype(np.uint8)))
    found = classes(data(tmp_path, values=[0, 1], ignore=9, shrink=2.0))
    assert found.shape == (8, 10)
    assert found[7, 9] == 255
    assert found[3, 4] == 1


def test_volumes_have_numbers_without_a_class_and_patterns(tmp_path):
    images, masks = balls(tmp_path)
    for file in Path(masks).iterdir():
        file.rename(file.with_name(f"{file.stem}_seg.npz"))
    found = VolumeFolder(
        images, masks, class_names=("none", "liver"), ignore=2, mask_pattern="{name}_seg",
        split=SplitShares(val=0.3), patch=(8, 8, 8), num_workers=0, window=(-20.0, 140.0),
    )  # fmt: skip
    assert found.dataset("val", 0)[0][1].unique().tolist() == [0, 1, 255]
    found.setup("fit")
    found.patch = (8, 16, 8)
    with pytest.raises(InputError, match=r"is 9x12x10, smaller than the patches of 8x16x8, like"):
        found.setup("fit")


def test_classes_of_other_data_are_found_by_name(tmp_path):
    pair(tmp_path, Image.fromarray(MASK))
    found = data(tmp_path, class_names=["ground", "cat", "dog"])
    found.use_labels(Labels(("ground", "dog", "cat")))
    assert torch.equal(classes(found), torch.tensor(np.array([0, 2, 1])[MASK]))
    assert np.array_equal(found.codes.written(np.array([[0, 1, 2]])), [[0, 2, 1]])
    with pytest.raises(InputError, match="cat, dog are not among the 2 classes"):
        data(tmp_path, class_names=["ground", "cat", "dog"]).use_labels(Labels(("ground", "x")))


def test_predicted_volumes_have_the_numbers_of_their_data(tmp_path):
    names = ("air", "liver", "spleen")
    found = VolumeFolder("images", "masks", val_names=["a"], class_names=names)
    found.use_labels(Labels(("air", "spleen", "liver")))
    classes = torch.tensor([0, 1, 2])[:, None, None].expand(3, 2, 2)  # as the weights number them
    write(tmp_path / "a", classes, classes.shape, found.codes)
    assert np.load(tmp_path / "a.npy")[:, 0, 0].tolist() == [0, 2, 1]


def test_a_predicted_mask_can_be_read_again(tmp_path):
    codes = MaskCodes(("ground", "thing"), [0, "rest"], None, 255)
    write(tmp_path / "a", torch.tensor([[0, 1]]), torch.Size((1, 2)), codes)
    assert codes.read(tmp_path / "a.png").tolist() == [[0, 1]]


def test_images_lie_as_their_masks_do(tmp_path):
    """EXIF turns an image on its side; its mask was drawn on the image as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "abc":
        image(tmp_path / "images" / f"{name}.jpg", exif=exif)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.where(MASK, 255, 0).astype(np.uint8)).save(
            tmp_path / f"masks/{name}.png"
        )
    found = data(tmp_path)
    stored = found.dataset("val", 0)[0]
    assert stored[0].shape == (3, 16, 20)
    found.setup("fit")
    assert "2 images are turned by EXIF otherwise" in found.findings["train"].warnings[0]
    for name in "abc":
        turned = Image.open(tmp_path / f"masks/{name}.png").transpose(Image.Transpose.ROTATE_270)
        turned.save(tmp_path / f"masks/{name}.png")
    upright = found.dataset("val", 0)[0]
    assert torch.equal(upright[0], stored[0].rot90(-1, (1, 2)))


def test_splits(tmp_path):
    images, masks = discs(tmp_path, 10)
    shares = SplitShares(val=0.2, test=0.1)
    for found in (
        MaskFolder(images, masks, split=shares, size=8, num_workers=0),
        DegradedFolder(images, Noise(), split=shares, size=8, num_workers=0),
    ):
        for stage in ("fit", "test"):
            found.setup(stage)
        parts = [set(found.division[part]) for part in ("train", "val", "test")]
        assert [len(part) for part in parts] == [7, 2, 1]
        assert not parts[0] & parts[1] | parts[0] & parts[2]
        assert len(found.test_images) == 1
        assert found.facts("train")["images"] == 7
    named = MaskFolder(images, masks, val_names=["1"], test_names=["[23]"], size=8, num_workers=0)
    assert [len(named.pairs(part)) for part in ("train", "val", "test")] == [7, 1, 2]
    whole = MaskFolder(images, masks, val_names=["1"], size=8, num_workers=0)
    with pytest.raises(InputError, match="has no test split"):
        whole.setup("test")
    with pytest.raises(InputError, match="what to test on: give one of"):
        MaskFolder(images, masks, val_names=["1"], test_names=["2"], split=SplitShares(test=0.1))
    with pytest.raises(InputError, match=r"what to validate on: set data.val_images"):
        DegradedFolder(images, Noise())
    with pytest.raises(InputError, match="leave one of them out"):
        DegradedFolder(images, Noise(), images, split=shares)


def test_smells(tmp_path):
    mask = np.zeros((16, 20), np.uint8)
    mask[0, 0] = 1
    pair(tmp_path, Image.fromarray(mask))
    found = data(tmp_path, class_names=["ground", "cat", "dog"])
    found.setup("fit")
    lines = found.findings["train"].warnings
    assert lines[0] == "no pixel of dog in the 2 training masks that were looked at"
    assert lines[1].startswith("99.69% of the pixels in")
    assert found.facts("train")["pixels"] == {"ground": "99.69%", "cat": "0.31%", "dog": "0.00%"}


@pytest.mark.parametrize("kind", ["masks", "restoration"])
def test_small_images_are_named_before_the_first_epoch(kind, tmp_path):
    images, masks = discs(tmp_path)
    for number, size in ((1, (26, 7)), (2, (5, 9))):
        Image.new("RGB", size[::-1]).save(f"{images}/{number}.png")
        Image.new("L", size[::-1]).save(f"{masks}/{number}.png")
    found = (
        MaskFolder(images, masks, val_names=["0"], size=8, num_workers=0)
        if kind == "masks"
        else DegradedFolder(images, Noise(), images, size=8, num_workers=0)
    )
    with pytest.raises(InputError) as error:
        found.setup("fit")
    count = 3 if kind == "masks" else 4
    assert str(error.value) == (
        f"{images}/2.png is 5x9, smaller than the patches of 8x8, like 1 more of {count} images:"
        " lower data.size or remove them"
    )


def test_an_image_too_small_for_ssim_is_named(tmp_path):
    image(tmp_path / "train" / "0.png")
    image(tmp_path / "val" / "0.png", (6, 6))
    found = DegradedFolder(
        str(tmp_path / "train"), Noise(), str(tmp_path / "val"), size=8, num_workers=0
    )
    found.setup("fit")
    metrics = Restoration().metrics(0)
    metrics.update(*[found.val_images[0][0][None]] * 3)
    assert 0.9 < metrics.compute()["ssim"] <= 1
    image(tmp_path / "val" / "1.png", (5, 9))
    with pytest.raises(InputError, match=r"val/1.png is 5x9, smaller than the window of SSIM"):
        found.setup("validate")


@pytest.mark.parametrize("kind", ["masks", "restoration"])
def test_broken_files_are_skipped_where_asked_for(kind, tmp_path):
    images, masks = discs(tmp_path, 6)
    Path(images, "1.png").write_text("none")
    if kind == "masks":
        Path(masks, "4.png").write_bytes(Path(masks, "4.png").read_bytes()[:60])

    def make(**arguments) -> MaskFolder | DegradedFolder:
        given = {"split": SplitShares(val=0.4), "size": 8, "num_workers": 0} | arguments
        if kind == "masks":
            return MaskFolder(images, masks, **given)
        return DegradedFolder(images, Noise(), **given)

    found = make(on_bad_image="skip")
    found.setup("fit")
    broken = {
        Path(file).relative_to(tmp_path).as_posix()
        for part in ("train", "val")
        for file in found.findings[part].broken
    }
    assert broken == ({"images/1.png", "masks/4.png"} if kind == "masks" else {"images/1.png"})
    kept = found.facts("train")["images"] + found.facts("val")["images"]
    assert kept == (4 if kind == "masks" else 5)

    def read_all(stopping: MaskFolder | DegradedFolder) -> None:
        train, val = (stopping.dataset(split, 0) for split in ("train", "val"))
        [train[0, index] for index in range(len(train))]
        [val[index] for index in range(len(val))]

    with pytest.raises(InputError, match=r"cannot read the (image|mask) .*[14].png"):
        read_all(make())


def test_all_tasks_of_generation_see_deep_and_turned_images_alike(tmp_path):
    deep = (np.arange(16 * 20).reshape(16, 20) * 200).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in "abc":
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (20, 16)).save(tmp_path / f"masks/{name}.png")
        image(tmp_path / "images" / f"{name}.png")
    Image.fromarray(deep).save(tmp_path / "images/a.png")
    image(tmp_path / "images/b.png", exif=exif)
    folder = str(tmp_path / "images")
    masks = data(tmp_path, size=16, split=None, val_names=["c"], test_names=["a", "b"])
    restoration = DegradedFolder(folder, Noise(0.0), folder, size=16, num_workers=0)
    readers = [
        masks.dataset("test", 0),
        masks.inputs(folder),
        restoration.dataset("val", 0),
        restoration.inputs(folder),
    ]
    expected = np.round(deep / 65535 * 255), np.asarray(Image.open(f"{folder}/b.png"))[::-1, ::-1]
    for index, pixels in enumerate(expected):
        seen = [(reader[index][0] * 255).round() for reader in readers]
        for one in seen:
            assert torch.equal(
                one,
                torch.tensor(pixels.copy())
                .view(16, 20, -1)
                .movedim(-1, 0)
                .expand(3, -1, -1)
                .float(),
            )
    square = FolderImages(folder, size=16).dataset("train", 0)
    for index in range(2):
        whole = restoration.inputs(folder)[index][0]
        centre = whole[:, :, 2:18] * 2 - 1
        assert torch.allclose(square[index][0], centre, atol=0.01)


@pytest.mark.parametrize("kind", ["masks", "restoration", "volumes"])
def test_a_prediction_goes_on_without_what_cannot_be_read(kind, tmp_path):
    images, masks = balls(tmp_path) if kind == "volumes" else discs(tmp_path)
    split = SplitShares(val=0.3)
    found = {
        "masks": lambda: MaskFolder(images, masks, split=split, images=images),
        "restoration": lambda: DegradedFolder(images, Noise(), split=split, images=images),
        "volumes": lambda: VolumeFolder(images, masks, split=split, images=images),
    }[kind]()
    broken = sorted(Path(images).iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:90])
    found.setup("predict")
    assert list(found.findings["predict"].broken) == [str(broken)]
    names = [
        Path(found.predict_images[index][1]).stem for index in range(len(found.predict_images))
    ]
    assert names == (["0", "2"] if kind == "volumes" else ["0", "2", "3"])
