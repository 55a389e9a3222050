"""Draw docs/images/three_tasks.png, the picture of the README, from the runs of `make demo`.

python docs/picture.py runs/demo

The maps are the arrays of `attention-vision explain`, the images those of the runs' own data.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from attention_vision.__main__ import main as attention_vision
from attention_vision.classification import Digits
from attention_vision.detection import DigitScenes

FILE = Path(__file__).parent / "images" / "three_tasks.png"
EXAMPLES = 3  # of each task, three columns each
COLORS = ("#ffd23f", "#3bceac", "#ee4266", "#8ecae6")
INK = "#333333"

Arrays = dict[str, np.ndarray]


def explained(run: Path, *options: str) -> dict[str, Arrays]:
    """Name of an image -> what `attention-vision explain` writes about it."""
    with tempfile.TemporaryDirectory() as folder:
        if code := attention_vision(["explain", str(run), "--out", folder, *options]):
            sys.exit(code)
        files = sorted(Path(folder).glob("*.npz"))
        return {file.stem: dict(np.load(file)) for file in files}


def gray(image: Tensor) -> np.ndarray:
    """A normalized image (C, H, W) as (H, W) in 0..1."""
    pixels = image.mean(0).numpy()
    return (pixels - pixels.min()) / max(np.ptp(pixels), 1e-6)


def show(axes: Axes, image: np.ndarray, attention: np.ndarray | None = None) -> None:
    """An image (H, W), under a map of any resolution where one is given."""
    extent = (0.0, 1.0, 1.0, 0.0)
    axes.imshow(image, cmap="gray", extent=extent, interpolation="bicubic", vmin=0, vmax=1)
    if attention is not None:
        axes.imshow(attention, cmap="inferno", extent=extent, interpolation="bicubic", alpha=0.6)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    axes.spines[:].set_visible(False)


def classification(rows: list[list[Axes]], runs: Path) -> None:
    """A digit, the ViT's class token on it, and Grad-CAM of the SE-ResNet."""
    data = Digits(image_size=32)
    data.setup("validate")
    vit = explained(runs / "vit_digits", "--layers", "rollout")
    se_resnet = explained(runs / "se_resnet_digits", "--layers", "grad_cam")
    names = list(vit)[1 : 1 + EXAMPLES]
    for name, axes in zip(names, rows, strict=True):
        image, label = data.val_images[int(name.removeprefix("val_"))]
        show(axes[0], gray(image))
        axes[0].set_title(f"a {int(label)}")
        for place, found, key in ((1, vit, "rollout"), (2, se_resnet, "grad_cam")):
            probabilities = found[name]["probabilities"]
            show(axes[place], gray(image), found[name][f"{key}/map"][0, 0])
            title = f"{('ViT', 'SE-ResNet')[place - 1]}: {probabilities.argmax()}"
            axes[place].set_title(f"{title}, {probabilities.max():.0%}")


def detection(rows: list[list[Axes]], runs: Path) -> None:
    """A scene with the boxes of DETR, and what two of its object queries attend to."""
    data = DigitScenes()
    data.setup("validate")
    scenes = explained(runs / "detr_digits", "--count", "12")
    # The scenes whose second-best detection is surest: they have two queries to show.
    best = sorted(scenes, key=lambda name: np.sort(scenes[name]["scores"])[-2], reverse=True)
    for name, axes in zip(best[:EXAMPLES], rows, strict=True):
        arrays = scenes[name]
        image = gray(data.val_images[int(name.removeprefix("val_"))][0])
        (maps,) = (value[0] for key, value in arrays.items() if key.endswith("/map"))
        surest = arrays["scores"].argsort()[::-1]
        shown = [query for query in surest[: len(COLORS)] if arrays["scores"][query] > 0.7]
        show(axes[0], image)
        axes[0].set_title("DETR")
        for query, color in zip(shown, COLORS, strict=False):
            frame(axes[0], arrays["boxes"][query], color)
        for place, query in enumerate(surest[:2]):
            show(axes[1 + place], image, maps[query])
            frame(axes[1 + place], arrays["boxes"][query], COLORS[place])
            label, score = int(arrays["labels"][query]), arrays["scores"][query]
            axes[1 + place].set_title(f"query of the {label}, {score:.0%}")


def frame(axes: Axes, box: np.ndarray, color: str) -> None:
    """A box xyxy in 0..1."""
    x, y, right, bottom = box
    axes.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, color=color, lw=1.4))


def generation(rows: list[list[Axes]], runs: Path) -> None:
    """A generated digit, and where the generator looked from two of its points."""
    (arrays,) = explained(runs / "sagan_digits", "--count", "8").values()
    (key,) = (key for key in arrays if key.endswith(".attention"))
    weights = arrays[key].mean(1)  # (B, queries, keys) of square maps
    side, small = (round(length**0.5) for length in weights.shape[1:])
    for place, axes in zip((2, 3, 5), rows, strict=True):
        image = (arrays["images"][place].mean(0) + 1) / 2
        show(axes[0], image.clip(0, 1))
        axes[0].set_title(f"SAGAN's {int(arrays['labels'][place])}")
        for column, (x, y) in enumerate(((0.5, 0.3), (0.5, 0.7)), start=1):
            query = int(y * side) * side + int(x * side)
            show(axes[column], image.clip(0, 1), weights[place, query].reshape(small, small))
            axes[column].plot(x, y, "o", color=COLORS[1], ms=4, mec="black", mew=0.6)
            axes[column].set_title(f"from its {'top' if y < 0.5 else 'bottom'}")


def main(runs: Path) -> None:
    tasks = {
        "Classification: rollout of a ViT's attention, Grad-CAM of an SE-ResNet": classification,
        "Detection: the boxes of DETR, and what its object queries attend to": detection,
        "Generation: digits of SAGAN, and where the generator looked from a point": generation,
    }
    plt.rcParams.update({"axes.titlesize": 6, "axes.titlepad": 2, "axes.titlecolor": INK})
    figure = plt.figure(figsize=(9, 4.2), facecolor="white")
    width, height = 0.106, 0.2271  # of square axes
    for row, (title, draw) in enumerate(tasks.items()):
        bottom = 0.69 - row * 0.3333
        lefts = [0.008 + example * 0.332 for example in range(EXAMPLES)]
        draw(
            [
                [
                    figure.add_axes((left + k * width, bottom, width * 0.96, height))
                    for k in range(3)
                ]
                for left in lefts
            ],
            runs,
        )
        figure.text(0.008, bottom + 0.27, title, fontsize=8, color=INK)
    FILE.parent.mkdir(exist_ok=True)
    with BytesIO() as drawn:
        figure.savefig(drawn, dpi=130)
        Image.open(drawn).convert("RGB").save(FILE, optimize=True)
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
