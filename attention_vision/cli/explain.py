"""`attention-vision explain`: where the network of a run looks, as pictures and as arrays."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_vision.cli.tool_parser import ToolParser
from attention_vision.errors import InputError, one_line

if TYPE_CHECKING:  # imported when a run is explained: `--help` must not wait for torch
    from lightning.pytorch import LightningDataModule, LightningModule

    from attention_vision.visualization.layer_figures import Explanation, Wish
    from attention_vision.visualization.layers import Layer

DESCRIPTION = """\
Where the trained network of a run looks: a picture of each image with maps of its attention layers,
and the maps themselves as NAME.npz."""
NOTES = """\
Classification: the likeliest classes, the class token's attention (or the mean query's), gates of
places and of channels, windows put together, attention rollout, Grad-CAM. Detection: what the query
of each detected object attends to (DETR), where its class looks in its proposal (Attention R-CNN).
Generation: where the generator looked from points of its images, the gates of Attention U-Net.
Maps are drawn from their least value to their largest, which stand above them.

Layers are named as in the network, and may be modules that hold some: blocks.3, stages.2. Where none
are given, the last of each mechanism is shown. Beside them are `rollout` and `grad_cam`.
An .npz holds, by the layer's name, the weights as record_attention gives them, and NAME/map, what is
drawn of them at the layer's own resolution.

  attention-vision explain runs/demo/vit_digits
  attention-vision explain RUN --layers list
  attention-vision explain RUN --images PHOTOS --layers blocks.3 blocks.11 rollout --heads
"""  # noqa: E501


def parser() -> ToolParser:
    options = ToolParser("explain", DESCRIPTION, NOTES)
    options.add_argument("run", metavar="RUN", help="a run folder, of any task")
    options.add_argument(
        "--images", metavar="PATH",
        help="a folder of images or one image (default: of the run's validation images)",
    )  # fmt: skip
    options.add_argument(
        "--layers", nargs="+", metavar="NAME", help="which to show, or `list` to print their names"
    )
    options.add_argument(
        "--count", type=count, default=8, metavar="N",
        help="images, spread evenly over all there are (default: 8)",
    )  # fmt: skip
    options.add_argument(
        "--heads", action="store_true", help="show each head as well as their mean"
    )
    options.add_argument(
        "--point", type=share, nargs=2, metavar=("X", "Y"),
        help="show what this place attends to, in shares of width and height (default: the class"
        " token, the mean query, or of attention between pixels the centre)",
    )  # fmt: skip
    options.add_argument("--out", metavar="DIR", help="where to write (default: RUN/explained)")
    return options


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        run(check(parser().parse_args(arguments)))
    except InputError as error:
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def check(options: Namespace) -> Namespace:
    """Raises InputError for what is not there, before torch is imported."""
    if not Path(options.run, "config.yaml").is_file():
        raise InputError(f"{options.run} holds no run: there is no config.yaml in it")
    if options.images and not Path(options.images).exists():
        raise InputError(f"--images {options.images}: there is no such folder or file")
    return options


def run(options: Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from attention_vision.runs import load_run
    from attention_vision.runs.tasks import TASKS
    from attention_vision.training.progress import quiet
    from attention_vision.visualization.layer_figures import Wish
    from attention_vision.visualization.layers import table
    from attention_vision.yaml_json import read_yaml

    quiet()
    folder = Path(options.run)
    config = read_yaml(folder / "config.yaml")
    if config.get("task") not in TASKS or not {"model", "data"} <= config.keys():
        raise InputError(f"{folder} holds no run: its config.yaml has no task, model and data")
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    module = load_run(folder)
    wish = Wish(options.heads, tuple(options.point) if options.point else None)
    named, names = samples(config, module, options)
    explanation = explainer(module, names, wish)
    (first, *_) = named.values()
    layers = explanation.layers(first)
    if not layers:
        raise InputError(f"{folder}: its network has no attention layer")
    if options.layers == ["list"]:
        print(table(layers))
        return
    wanted = choice(explanation, layers, options.layers, folder)
    out = Path(options.out or folder / "explained")
    out.mkdir(parents=True, exist_ok=True)
    print("layers: " + ", ".join(wanted))
    for name in wanted:
        if "no map" in layers[name].kind:
            print(f"{name}: {layers[name].kind}; its weights are in the .npz")
    for name, sample in named.items():
        page = explanation.page(sample, wanted)
        Image.fromarray(page.picture).save(out / f"{name}.png")
        np.savez_compressed(out / f"{name}.npz", **page.arrays)
        print(f"{out / name}.png: {page.line}", flush=True)


def choice(
    explanation: "Explanation", layers: "dict[str, Layer]", wanted: list[str] | None, run: Path
) -> list[str]:
    """The names of the layers that are shown. Raises InputError where there is nothing to show."""
    from attention_vision.visualization.layers import chosen

    if wanted is not None:
        return chosen(wanted, layers)
    usual = explanation.usual(layers)
    if not usual:
        hint = f"; --layers {' '.join(layers)} needs none" if layers else ""
        raise InputError(f"{run}: its network has no attention that can be shown{hint}")
    return usual


def explainer(module: "LightningModule", names: list[str], wish: "Wish") -> "Explanation":
    from attention_vision.classification import Classifier
    from attention_vision.classification.explanation import ClassifierExplanation
    from attention_vision.detection import Detector
    from attention_vision.detection.explanation import DetectorExplanation
    from attention_vision.generation import SAGAN, ImageToImage
    from attention_vision.generation.gan.explanation import GANExplanation
    from attention_vision.generation.image_to_image.explanation import PairExplanation

    match module:
        case Classifier():
            return ClassifierExplanation(module, names, wish)
        case Detector():
            return DetectorExplanation(module, names, wish)
        case SAGAN():
            return GANExplanation(module, names, wish)
        case ImageToImage():
            return PairExplanation(module, names, wish)
    raise InputError(f"{type(module).__name__} is none of the models that explain knows")


def samples(
    config: dict[str, Any], module: "LightningModule", options: Namespace
) -> tuple[dict[str, Any], list[str]]:
    """Name of a picture -> what the task's data gives; the names of the classes, if known.

    Raises:
        InputError: there are no images.
    """
    import torch

    from attention_vision.config.build import build
    from attention_vision.generation import SAGAN
    from attention_vision.generation.gan.figures import shown_classes
    from attention_vision.runs.tasks import TASKS
    from attention_vision.visualization.drawing import spread

    data = build(config, {"data": TASKS[config["task"]]().nodes["data"]})["data"]
    names = class_names(data)
    if isinstance(module, SAGAN):
        if options.images:
            raise InputError("--images: a GAN makes its images from noise, leave it out")
        labels = shown_classes(module.average.num_classes, options.count)
        return {"generated": (torch.arange(len(labels)), labels)}, names
    if options.images:
        data.images = options.images
        data.setup("predict")
        source = data.predict_images
        titles = file_names(source.files, options.images)
    else:
        try:
            data.setup("validate")
        except InputError as error:
            raise InputError(f"{error}; or explain other images: --images FOLDER") from error
        source = data.val_images
        titles = [f"val_{place:05}" for place in range(len(source))]
    places = spread(range(len(source)), options.count)
    return {titles[place]: source[place] for place in places}, names


def class_names(data: "LightningDataModule") -> list[str]:
    """None where they are read from the data's folders, and these are not here."""
    try:
        return [str(name) for name in getattr(data, "class_names", ())]
    except InputError:
        return []


def file_names(files: list[str], folder: str) -> list[str]:
    """SUBFOLDER_STEM of each; with the ending where files differ in that alone."""
    from collections import Counter

    from attention_vision.data.image_files import path_below

    paths = [path_below(file, folder) for file in files]
    stems = [path.with_suffix("") for path in paths]
    often = Counter(stems)
    return [
        "_".join((stem if often[stem] == 1 else path).parts)
        for path, stem in zip(paths, stems, strict=True)
    ]
