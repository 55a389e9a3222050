"""One reader of images and one lister of files, for the data of all tasks."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_vision.data.image_files import (
    broken_images,
    class_folders,
    image_files,
    list_images,
    read_image,
    read_levels,
)
from attention_vision.errors import InputError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("high", "kind", "ending"),
    [
        (255, np.uint8, "png"),
        (255, np.uint16, "png"),  # of 8 bits, stored in 16
        (4095, np.uint16, "png"),
        (65535, np.uint16, "png"),
        (65535, np.uint16, "tif"),
        (65535, np.int32, "tif"),
        (2_000_000, np.int32, "tif"),
        (1, np.float32, "tif"),
        (255, np.float32, "tif"),
    ],
)
def test_gray_images_of_any_depth_are_scaled_to_eight_bits(folder, high, kind, ending):
    path = folder / f"ramp.{ending}"
    Image.fromarray((RAMP * high).astype(kind)).save(path)
    read = pixels(path)
    assert (read[..., 0].min(), read[..., 0].max()) == (0, 255)
    assert np.abs(read - RAMP[..., None] * 255).max() <= 1.001  # one level, by rounding


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, np.nan], [0.0, np.inf]])
def test_gray_values_that_are_no_brightness_are_refused(folder, values):
    path = folder / "scan.tif"
    Image.fromarray(np.array([values], np.float32)).save(path)
    with pytest.raises(
        InputError, match=r"scan.tif: gray values from .*mode F.*convert it"
    ) as error:
        read_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_all_modes_become_rgb(folder, mode):
    picture = Image.new("RGB", (8, 6), (255, 0, 0)).convert(mode)
    path = folder / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(pixels(path) - expected).max() < 8  # JPEG rounds


def test_palettes_with_transparency_are_read_without_a_warning(folder, recwarn):
    Image.new("P", (4, 4)).save(folder / "a.png", transparency=b"\x00\xff")
    assert pixels(folder / "a.png").shape == (4, 4, 3)
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_turned_alike(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = (np.arange(24).reshape(4, 6) * 10).astype(np.uint8)
    Image.fromarray(stored).save(folder / "a.png", exif=exif)
    turned = pixels(folder / "a.png")[..., 0]
    assert turned.shape == ((4, 6) if orientation <= 4 else (6, 4))
    assert (turned == read_levels(folder / "a.png")).all()
    assert np.array_equal(turned, stored) == (orientation == 1)
    assert (np.asarray(read_image(folder / "a.png", turn=False))[..., 0] == stored).all()


def test_masks_keep_their_numbers(folder):
    levels = np.array([[0, 1, 7]], np.uint8)
    palette = Image.fromarray(levels)
    palette.putpalette(bytes(range(255, -1, -1)) * 3)
    palette.save(folder / "palette.png")
    Image.fromarray(levels).save(folder / "gray.png")
    Image.fromarray(levels).convert("RGB").save(folder / "gray_as_rgb.png")
    Image.fromarray(levels.astype(np.uint16) * 300).save(folder / "deep.png")
    Image.fromarray(levels).save(folder / "first.gif")
    for name in ("palette.png", "gray.png", "gray_as_rgb.png", "first.gif"):
        assert read_levels(folder / name).tolist() == [[0, 1, 7]], name
    assert read_levels(folder / "deep.png").tolist() == [[0, 300, 2100]]
    Image.new("RGB", (2, 1), (1, 2, 3)).save(folder / "colored.png")
    assert read_levels(folder / "colored.png").tolist() == [[[1, 2, 3], [1, 2, 3]]]


def test_junk_is_left_out_and_counted_and_links_are_followed(folder):
    root, store = folder / "root", folder / "store"
    for name in ("a/1.png", "a/2.JFIF", "b/1.gif", ".hidden/1.png", "__MACOSX/1.png", "a/._1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "Thumbs.db").write_bytes(b"")
    (root / "notes.txt").write_bytes(b"")
    (root / "empty").mkdir()
    store.mkdir()
    (store / "3.png").write_bytes(b"")
    (root / "b" / "linked").symlink_to(store)
    (root / "a" / "above").symlink_to(root)  # a circle
    found = list_images(root)
    below = [Path(file).relative_to(root).as_posix() for file in found.files]
    assert below == ["a/1.png", "a/2.JFIF", "b/1.gif", "b/linked/3.png"]
    kinds = {kind: len(paths) for kind, paths in found.left_out.items()}
    assert kinds == {
        "hidden or of the system": 4,
        "*.txt": 1,
        "linked folders that were read already": 1,
    }
    assert class_folders(root) == (["a", "b"], ["empty"])
    assert image_files(str(root)) == found.files


def test_a_missing_plugin_is_named(folder, monkeypatch):
    monkeypatch.setattr("attention_vision.data.image_files.extensions", lambda: frozenset({".png"}))
    (folder / "phone.heic").write_bytes(b"not readable here")
    with pytest.raises(InputError, match=r"phone.heic: pip install pillow-heif"):
        read_image(folder / "phone.heic")
    with pytest.raises(InputError, match=r"it has 1 \*.heic \(pip install pillow-heif\)"):
        image_files(str(folder))


def test_broken_images_are_found_to_their_last_pixel(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    files = []
    for ending in ("png", "jpg", "tif", "webp"):
        whole, cut = folder / f"whole.{ending}", folder / f"cut.{ending}"
        Image.fromarray(noise).save(whole)
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        files += [str(whole), str(cut)]
    assert sorted(broken_images(files)) == sorted(file for file in files if "cut" in file)


def test_many_files_are_listed_with_little_memory(folder):
    for number in range(2000):
        (folder / f"{number:05}.png").touch()
    tracemalloc.start()
    files = list_images(folder).files
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files) == 2000
    assert most / 2000 < 600  # bytes per file: its path, and little more
