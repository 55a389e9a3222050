"""Images that are decoded as a transform asks: the pixels, the factor, the messages."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from attention_vision.classification import ImageFolder
from attention_vision.classification.transforms import ImageNetAugmentation, RandomRegion
from attention_vision.data import encoded_image
from attention_vision.data.encoded_image import EncodedImage, jpeg_decoder, reduction
from attention_vision.data.image_files import read_image
from attention_vision.errors import InputError

BILINEAR = v2.InterpolationMode.BILINEAR


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture, of which reduction loses nothing."""
    rows, columns = np.mgrid[:height, :width] / 40
    waves = [np.sin(rows), np.cos(columns), np.sin(rows + columns)]
    return Image.fromarray((127.5 + 120 * np.stack(waves, 2)).round().astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options) -> EncodedImage:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return EncodedImage(f"picture.{format}", stream.getvalue())


def test_bytes_that_are_no_image_are_named_by_their_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"a\.png: repair or remove it \(cannot identify image file\)"
    ):
        EncodedImage(tmp_path / "a.png")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"subsampling": 0, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"exif": turned(6)}),
        ("RGB", "MPO", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
    ],
)
def test_pixels_are_those_of_pillow(mode, format, options, monkeypatch) -> None:
    image = encoded(picture(83, 61).convert(mode), format, **options)
    expected = torch.from_numpy(np.array(read_image("x", content=image.content))).permute(2, 0, 1)
    assert image.tensor().equal(expected)
    assert image.size == expected.shape[1:]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as if it was not installed
    monkeypatch.setattr(encoded_image, "DECODE_JPEG", jpeg_decoder())
    assert image.tensor().equal(expected)
    monkeypatch.setattr(encoded_image, "DECODE_JPEG", None)  # Pillow's alone
    assert image.tensor().equal(expected)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [((0.5, 9), 1), ((1.99, 3), 1), ((2, 2), 2), ((3.9, 40), 2), ((4, 5), 4), ((8, 100), 8)],
)
def test_no_side_gets_shorter_than_asked_for(factors, expected) -> None:
    assert reduction(*factors) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("size", "factor"), [(90, 1), (60, 2), (30, 4), (16, 8)])
def test_a_region_at_reduced_size(orientation, size, factor, monkeypatch) -> None:
    image = encoded(picture(301, 203), quality=95, exif=turned(orientation))
    factors = []

    def spy(*arguments, reduction=1, **options):
        factors.append(reduction)
        return read_image(*arguments, reduction=reduction, **options)

    whole = image.tensor()
    monkeypatch.setattr(encoded_image, "read_image", spy)
    region = {"top": 11, "left": 40, "height": 140, "width": 150}
    found = image.region(**region, size=(size, size), filter=BILINEAR)
    # Reduced by Pillow; whole by torchvision where the image is stored upright.
    assert factors == ([factor] if factor > 1 else [1] * (orientation > 1))
    exact = v2.functional.resized_crop(whole, **region, size=[size, size], antialias=True)
    assert found.shape == (3, size, size)
    difference = (found.int() - exact.int()).abs().float()
    assert difference.mean() < (3 if factor > 1 else 0.001)


def test_other_files_are_never_reduced() -> None:
    image = encoded(picture(160, 120), "PNG")
    found = image.region(0, 0, 120, 160, (15, 20), BILINEAR)
    exact = v2.functional.resize(image.tensor(), [15, 20], antialias=True)
    assert found.equal(exact)


def test_a_crop_draws_the_numbers_of_torchvision() -> None:
    image = encoded(picture(150, 110), quality=95)
    for seed in range(5):
        torch.manual_seed(seed)
        found = RandomRegion(96)(image)
        assert RandomRegion(8)(image).shape == (3, 8, 8)
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop(96, antialias=True)(image.tensor())
        assert found.equal(expected)


@pytest.mark.parametrize("cut", [100, 700, -3])
def test_a_damaged_file_is_one_line(cut) -> None:
    content = encoded(picture(90, 70)).content
    assert content is not None
    with pytest.raises(InputError, match=r"cannot read the image a\.jpg: repair or remove it"):
        EncodedImage("a.jpg", content[:cut]).tensor()
    with pytest.raises(InputError, match=r"cannot read the image nowhere\.jpg"):
        EncodedImage("nowhere.jpg").tensor()


@pytest.mark.parametrize("erasing", [0.0, 1.0])
def test_a_batch_is_its_images(erasing, tmp_path: Path) -> None:
    """Workers pass on uint8 where they can; the loader's batch is the images one by one."""
    for split in ("train", "val"):
        for number, name in enumerate("ab"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            picture(70 + number, 50).save(folder / "1.jpg")
    recipe = ImageNetAugmentation(erasing=erasing)
    data = ImageFolder(str(tmp_path), recipe, image_size=16, batch_size=2, num_workers=0, seed=1)
    data.setup("fit")
    ((images, labels),) = data.train_dataloader()
    keys = list(data.sampler())
    alone = [data.train_images[key] for key in keys]
    assert images.equal(torch.stack([image for image, _ in alone]))
    assert images.dtype == torch.float32
    assert labels.tolist() == [label for _, label in alone]
    assert data.train_images[0, 0][0].equal(data.train_images[0, 0][0])
