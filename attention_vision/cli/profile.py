"""`attention-vision profile`: cost of the networks of experiments, or of all mechanisms."""

import csv
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attention_vision.cli.tool_parser import TRUST, ToolParser
from attention_vision.errors import InputError
from attention_vision.report.text_table import aligned

if TYPE_CHECKING:  # imported when something is measured: `--help` must not wait for torch
    from torch import device

    from attention_vision.profiling.cost import Cost, Workload

DESCRIPTION = """\
Parameters, multiply-adds, time and memory of the networks of experiments, or of every attention
mechanism, on this machine."""
NOTES = """\
Networks are measured alone, on random images: no data is read, no optimizer steps; a GAN's two
networks are two rows. MACs are multiply-adds of convolutions and products of matrices per image,
half the FLOPs that torch counts; norms, activations, softmax and gates are left out. "forward" is a
pass in evaluation, "step" forward and backward in training, medians over repeats in which all rows
take turns. "memory" is the most that a step holds: weights, batch, activations, gradients, scratch.

  attention-vision profile experiments/demo/*.yaml --threads 1
  attention-vision profile experiments/classification/vit_b16_imagenet.yaml --device cuda --batch_size 64
  attention-vision profile --mechanisms --size 64 64 64 --csv mechanisms.csv --plot mechanisms.png
"""  # noqa: E501
SIZES = [(64, 32, 32), (64, 64, 64)]


def parser() -> ToolParser:
    options = ToolParser("attention-vision profile", description=DESCRIPTION, epilog=NOTES)
    options.add_argument("experiments", nargs="*", metavar="EXPERIMENT.yaml")
    options.add_argument("--mechanisms", action="store_true", help="measure every mechanism")
    options.add_argument(
        "--size", type=positive, nargs=3, action="append", metavar=("C", "H", "W"),
        help="size of the map, for --mechanisms; may be given several times "
        f"(default: {' and '.join(' '.join(map(str, size)) for size in SIZES)})",
    )  # fmt: skip
    options.add_argument(
        "--batch_size", type=positive, default=2, metavar="N", help="images (default: 2)"
    )
    options.add_argument(
        "--image_size", type=positive, nargs="+", metavar="N",
        help="one side, or height and width (default: what the experiment trains on)",
    )  # fmt: skip
    options.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    options.add_argument("--threads", type=positive, metavar="N", help="CPU threads")
    options.add_argument(
        "--repeats", type=positive, default=5, metavar="N", help="of each time (default: 5)"
    )
    options.add_argument("--csv", metavar="FILE", help="write the table in full, in plain units")
    options.add_argument("--plot", metavar="FILE.png", help="draw it")
    options.add_argument("--trust", action="store_true", help=TRUST)
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main(arguments: list[str]) -> int:
    """Run the command; return 0."""
    run(check(parser().parse_args(arguments)))
    return 0


def check(options: Namespace) -> Namespace:
    """Raise InputError for options that do not go together, before anything is measured."""
    if options.mechanisms == bool(options.experiments):
        raise InputError("profile: give files of experiments, or --mechanisms")
    for option, needs in (("size", True), ("image_size", False)):
        if getattr(options, option) and options.mechanisms != needs:
            what = "--mechanisms" if needs else "experiments"
            raise InputError(f"profile: --{option} is for {what}")
    if len(options.image_size or []) > 3:
        raise InputError("profile: --image_size takes one side, two, or three of volumes")
    for file in filter(None, (options.csv, options.plot)):
        if not Path(file).parent.is_dir():
            raise InputError(f"{file}: there is no folder {Path(file).parent}")
    if options.plot and Path(options.plot).suffix != ".png":
        raise InputError(f"--plot {options.plot}: give a file NAME.png")
    return options


def run(options: Namespace) -> None:
    import torch

    from attention_vision.profiling.cost import hardware, measure
    from attention_vision.training.progress import quiet

    quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = find_device(options.device)
    torch.manual_seed(0)
    workloads, notes = collect(options, device)
    print(
        f"{hardware(device)}; torch {torch.__version__}; batches of {options.batch_size}, median of"
        f" {options.repeats}\n"
    )
    rows = list(zip(workloads, measure(workloads, options.repeats), strict=True))
    print(table(rows))
    for note in notes:
        print(f"\n{note}", end="")
    print(end="\n" if notes else "")
    if options.csv:
        write_csv(rows, options.csv)
    if options.plot:
        plot(rows, options.plot)


def find_device(name: str) -> "device":
    """The device of a name. Raises InputError if there is no such device."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not on this machine ({reason})") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: neither cpu nor cuda")
    return device


def collect(options: Namespace, device: "device") -> "tuple[list[Workload], list[str]]":
    """The networks to measure, and notes to print below their table."""
    if options.mechanisms:
        from attention_vision.profiling.mechanisms import mechanism_workloads

        sizes = options.size or SIZES
        return list(mechanism_workloads(sizes, options.batch_size, device)), []

    from attention_vision.runs.load import load_experiment

    stems = [Path(file).stem for file in options.experiments]
    workloads, notes = [], []
    for file, stem in zip(options.experiments, stems, strict=True):
        name = stem if stems.count(stem) == 1 else file
        experiment = load_experiment(file, options.trust)
        tools, module = experiment.task.tools(), experiment.module.to(device)
        size = options.image_size or tools.image_size(experiment.data)
        size = tuple(size) * 2 if len(size) == 1 else tuple(size)
        workloads += tools.workloads(name, module, size, options.batch_size)
        if not experiment.classes_known:
            notes.append(
                f"{name}: its data is not here; the network has its default number of classes"
            )
    return workloads, notes


COLUMNS = (
    "",
    "input",
    "parameters",
    "MMACs",
    "forward ms",
    "images/s",
    "step ms",
    "images/s",
    "MiB",
)


def table(rows: "Sequence[tuple[Workload, Cost]]") -> str:
    lines = [COLUMNS, *(cells(workload, cost) for workload, cost in rows)]
    return aligned(lines, right=range(2, len(COLUMNS)))


def cells(workload: "Workload", cost: "Cost") -> tuple[str, ...]:
    step, trained = cost.step_seconds, cost.trained_images_per_second
    return (
        workload.name,
        input_size(workload),
        f"{cost.parameters:,}",
        f"{cost.macs / 1e6:,.1f}",
        f"{1e3 * cost.forward_seconds:,.2f}",
        f"{cost.images_per_second:,.1f}",
        "-" if step is None else f"{1e3 * step:,.2f}",
        "-" if trained is None else f"{trained:,.1f}",
        f"{cost.peak_memory / 2**20:,.1f}",
    )


def input_size(workload: "Workload") -> str:
    """Size of an input in words, such as 3x32x32."""
    return "x".join(map(str, workload.batch[0].shape[1:]))


def write_csv(rows: "Sequence[tuple[Workload, Cost]]", file: str) -> None:
    from dataclasses import asdict

    lines = [
        {"name": workload.name, "input": input_size(workload)}
        | asdict(cost)
        | {
            "images_per_second": cost.images_per_second,
            "trained_images_per_second": cost.trained_images_per_second,
        }
        for workload, cost in rows
    ]
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def plot(rows: "Sequence[tuple[Workload, Cost]]", file: str) -> None:
    """Draw bars of multiply-adds, times and memory, a row per workload."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [f"{workload.name}  {input_size(workload)}" for workload, _ in rows]
    positions = list(range(len(rows)))
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    costs = [cost for _, cost in rows]
    panels[0].barh(positions, [cost.macs for cost in costs])
    panels[0].set_title("multiply-adds per image")
    for label, shift, times in (
        ("forward", -0.2, [cost.forward_seconds for cost in costs]),
        ("step", 0.2, [cost.step_seconds or 0 for cost in costs]),
    ):
        milliseconds = [1e3 * seconds for seconds in times]
        panels[1].barh([position + shift for position in positions], milliseconds, 0.4, label=label)
    panels[1].set_title(f"ms per batch of {costs[0].images}")
    panels[1].legend()
    panels[2].barh(positions, [cost.peak_memory / 2**20 for cost in costs])
    panels[2].set_title("MiB in a step")
    for panel in panels:
        panel.grid(axis="x", alpha=0.3)
        panel.margins(y=0.01)
    for panel in panels[:2]:
        panel.set_xscale("log")
    panels[0].set_yticks(positions, names, parse_math=False)
    panels[0].invert_yaxis()
    figure.savefig(file, dpi=150)
