"""Pictures for image-to-image work that are at hand everywhere: scenes of scikit-learn's digits."""

from pathlib import Path

from attention_vision.detection.data import DrawnScenes


def write_images(folder: Path, count: int, size: int = 64, split: str = "train") -> None:
    """Write `count` scenes as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = DrawnScenes(split, count, size, seed=0)
    for index in range(count):
        image, *_ = scenes[index]
        image.save(folder / f"{index}.png")
