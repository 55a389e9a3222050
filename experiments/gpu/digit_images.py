"""Pictures for image-to-image work that are at hand everywhere: scenes of scikit-learn's digits."""

from pathlib import Path

from PIL import Image

from attention_vision.data.digits import scene


def write_images(folder: Path, count: int, size: int = 64, split: str = "train") -> None:
    """Writes `count` scenes as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(scene(split, index, size).image).save(folder / f"{index}.png")
