"""`attention-vision explain`: the attention of a trained run, as pictures and as arrays."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_vision.cli.tool_parser import TRUST, ToolParser
from attention_vision.errors import InputError
from attention_vision.report.text_table import aligned

if TYPE_CHECKING:  # imported when a run is explained: `--help` must not wait for torch
    from lightning.pytorch import LightningDataModule

    from attention_vision.visualization.explainer import Explainer
    from attention_vision.visualization.layers import Layer

DESCRIPTION = """\
Visualize the attention of a trained run: a picture of each image with maps of its attention layers,
and the maps themselves as NAME.npz."""
NOTES = """\
Classification: the likeliest classes, the class token's attention (or the mean query's), gates of
positions and channels, windows put together, attention rollout, Grad-CAM. Detection: what the query
of each detected object attends to (DETR), the points that it reads (Deformable DETR), what its
class attends to in its proposal (Attention R-CNN), Grad-CAM of its class and objectness of the
proposals (any R-CNN). Generation: what the generator attended to from points of its images, the
gates of Attention U-Net.
Maps are drawn from their least value to their largest, which are in their titles.

Layers are named as in the network; a module stands for all layers in it: blocks.3, stages.2. If no
layers are named, the last of each mechanism is shown. Besides them there are `rollout`, `grad_cam`
and `rpn`. An .npz holds, by the layer's name, the weights as `record_attention` yields them, and
NAME/map, what is drawn of them, at the layer's own resolution.

  attention-vision explain runs/demo/vit_digits
  attention-vision explain RUN --layers list
  attention-vision explain RUN --images PHOTOS --layers blocks.3 blocks.11 rollout --heads
"""


def parser() -> ToolParser:
    options = ToolParser("attention-vision explain", description=DESCRIPTION, epilog=NOTES)
    options.add_argument("run", metavar="RUN", help="a run folder, of any task")
    options.add_argument(
        "--images", metavar="PATH",
        help="a folder of images or one image (default: of the run's validation images)",
    )  # fmt: skip
    options.add_argument(
        "--layers", nargs="+", metavar="NAME", help="layers to show, or `list` to print their names"
    )
    options.add_argument(
        "--count", type=count, default=8, metavar="N",
        help="number of images, evenly spaced among all (default: 8)",
    )  # fmt: skip
    options.add_argument(
        "--heads", action="store_true", help="show each head as well as their mean"
    )
    options.add_argument(
        "--point", type=fraction, nargs=2, metavar=("X", "Y"),
        help="show what this position attends to, as fractions of width and height (default: the"
        " class token, the mean query, or for attention between pixels the center)",
    )  # fmt: skip
    options.add_argument("--out", metavar="DIR", help="folder to write to (default: RUN/explained)")
    options.add_argument("--trust", action="store_true", help=TRUST)
    return options


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def main(arguments: list[str]) -> int:
    """Run the command; return 0."""
    run(check(parser().parse_args(arguments)))
    return 0


def check(options: Namespace) -> Namespace:
    """Raise InputError for a missing run or folder, before torch is imported."""
    if Path(options.run).is_file():
        raise InputError(f"{options.run} is a file: give the folder of the run")
    if not Path(options.run, "config.yaml").is_file():
        raise InputError(f"{options.run} does not contain a run: there is no config.yaml in it")
    if options.images and not Path(options.images).exists():
        raise InputError(f"--images {options.images}: there is no such folder or file")
    return options


def run(options: Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from attention_vision.config.trust import refuse_links
    from attention_vision.runs.load import load_data, load_run, read_run
    from attention_vision.runs.measured import add_origin, identity_of, other_data_line
    from attention_vision.training.progress import quiet
    from attention_vision.training.run_folder import best_or_last
    from attention_vision.visualization.explainer import DrawOptions

    quiet()
    folder = Path(options.run)
    config, task = read_run(folder)
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    trust = options.trust
    module, data = load_run(folder, trust=trust), load_data(folder, trust)
    draw_options = DrawOptions(options.heads, tuple(options.point) if options.point else None)
    explainer = task.tools().explainer(module, class_names(data), draw_options)
    samples = find_samples(explainer, data, options)
    (first, *_) = samples.values()
    layers = explainer.layers(first)
    if not layers:
        raise InputError(f"{folder}: its network has no attention layer")
    if options.layers == ["list"]:
        print(layer_table(layers))
        return
    names = shown_layers(explainer, layers, options.layers, folder)
    if not options.out:
        refuse_links(folder)
    out = Path(options.out or folder / "explained")
    out.mkdir(parents=True, exist_ok=True)
    print("layers: " + ", ".join(names))
    source = best_or_last(folder)
    print(f"checkpoint: {source}")
    if not options.images and (line := other_data_line(folder, data)):
        print(line)
    for name in names:
        if layers[name].kind == "none":
            print(f"{name}: {layers[name].title}; its weights are in the .npz")
    for title, sample in samples.items():
        explained = explainer.explain(sample, names)
        (out / title).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(explained.picture).save(out / f"{title}.png")
        arrays: dict[str, Any] = explained.arrays
        np.savez_compressed(out / f"{title}.npz", **arrays)
        print(f"{out / title}.png: {explained.line}", flush=True)
    add_origin(out / "explain.json", list(samples), identity_of(source, None))


def find_samples(
    explainer: "Explainer", data: "LightningDataModule", options: Namespace
) -> dict[str, Any]:
    """Title -> sample. Raises InputError if there are no images."""
    try:
        return explainer.samples(data, options.images, options.count)
    except InputError as error:
        if options.images:
            raise
        raise InputError(f"{error}; or explain other images: --images FOLDER") from error


def shown_layers(
    explainer: "Explainer", layers: "dict[str, Layer]", wanted: list[str] | None, run: Path
) -> list[str]:
    """Names of the layers to show. Raises InputError if there is nothing to show."""
    from attention_vision.visualization.layers import select_layers

    if wanted is not None:
        return select_layers(wanted, layers)
    names = explainer.default_layers(layers)
    if not names:
        hint = f"; --layers {' '.join(layers)} needs none" if layers else ""
        raise InputError(f"{run}: its network has no attention that can be shown{hint}")
    return names


def layer_table(layers: "dict[str, Layer]") -> str:
    """Text with a line per layer: its name, the shape of its weights, what is drawn."""
    rows = [
        (layer.name, "x".join(map(str, layer.weights.shape[1:])), layer.title)
        for layer in layers.values()
    ]
    return aligned(rows, right=[1])


def class_names(data: "LightningDataModule") -> list[str]:
    """Names of the classes; none if they are read from the data's folders and these are missing."""
    try:
        return [str(name) for name in getattr(data, "class_names", ())]
    except InputError:
        return []
