"""`attention-vision data`: what a folder of data is, what would be read, and a first experiment."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_vision.cli.tool_parser import ToolParser
from attention_vision.errors import InputError

if TYPE_CHECKING:  # imported when a folder is looked at: `--help` must not wait for torch
    from attention_vision.data.formats import Format

DESCRIPTION = """\
Recognize what a folder of data is, read it as a training would, and print what was found: images of
each split, classes, sizes, what is left out and why."""
NOTES = """\
Recognized are folders of classes, a CSV of labels, Hugging Face data sets, COCO, Pascal VOC, YOLO,
images with masks, and a folder of images. Nothing is changed or trained.

-o writes an experiment that reads this data: a small network with settings for a first run on a
laptop, which is meant to be edited.

  attention-vision data PHOTOS
  attention-vision data PHOTOS -o mine.yaml
  attention-vision classification fit -c mine.yaml --run runs/mine
"""


def parser() -> ToolParser:
    options = ToolParser("attention-vision data", description=DESCRIPTION, epilog=NOTES)
    options.add_argument("path", metavar="PATH", help="a folder, or a file of annotations in it")
    options.add_argument("-o", "--out", metavar="FILE", help="write an experiment for this data")
    options.add_argument(
        "--class", dest="reader", default="", metavar="NAME",
        help="data class, where several read this format (default: the first one)",
    )  # fmt: skip
    return options


def main(arguments: list[str]) -> int:
    """Run the command; return 0."""
    run(check(parser().parse_args(arguments)))
    return 0


def check(options: Namespace) -> Namespace:
    """Raise InputError for a missing path or a file in the way, before torch is imported."""
    if not Path(options.path).exists():
        raise InputError(f"{options.path}: there is no such folder or file")
    if options.out and Path(options.out).exists():
        raise InputError(f"-o {options.out} exists: remove it or name another file")
    return options


def run(options: Namespace) -> None:
    from attention_vision.data.formats import recognize
    from attention_vision.runs.data_summary import table
    from attention_vision.training.progress import quiet

    quiet()
    found = recognize(options.path)
    if found is None:
        raise InputError(
            f"{options.path}: no data that is known here; see attention-vision data --help"
        )
    if found.note:
        raise InputError(f"{options.path} is {found.name}: {found.note}")
    reader = chosen(found, options.reader)
    print(f"{found.root}: {found.name}", flush=True)
    config = first_experiment(found, reader)
    task, name = config["task"], config["data"]["class_path"]
    if options.out:  # before it is read: where that fails, there is a file to edit
        write(config, Path(options.out), found)
        print(f"wrote {options.out}; train by\n  attention-vision {task} fit -c {options.out}")
    print(table(read(config)))
    if options.out:
        return
    print(as_yaml({"task": task, "data": {"class_path": name, **arguments_of(found, reader)}}))
    print(f"an experiment with this data: attention-vision data {options.path} -o mine.yaml")


def chosen(found: "Format", name: str) -> str:
    """The reader of that name. Raises InputError if there is none."""
    reader = found.reader(name)
    if not reader:
        known = ", ".join(one.rpartition(".")[2] for one in found.readers)
        raise InputError(f"--class {name}: {found.name} is read by {known}")
    return reader


def first_experiment(found: "Format", reader: str) -> dict[str, Any]:
    from attention_vision.runs.starter import starter

    return starter(found, reader)


def arguments_of(found: "Format", reader: str) -> dict[str, Any]:
    return {"init_args": found.readers[reader]}


def read(config: dict[str, Any]) -> Any:
    """The summary of all splits that the data of a config has."""
    from attention_vision.config.build import build_nodes
    from attention_vision.runs.data_summary import summarize
    from attention_vision.runs.tasks import TASKS

    node = {"data": config["data"]}
    data = build_nodes(node, {"data": TASKS[config["task"]].nodes["data"]})["data"]
    data.setup("fit")
    splits = ["train", "val"]
    if data.has_split("test"):
        data.setup("test")
        splits.append("test")
    return summarize(data, tuple(splits))


def write(config: dict[str, Any], file: Path, found: "Format") -> None:
    from attention_vision.yaml_json import write_atomically

    draws = config["data"]["class_path"] == "FolderImages"  # a GAN has no images to predict
    what = "--data.count 16" if draws else "--data.images PHOTOS"
    lines = [
        f"# A first experiment on {found.root}, {found.name}: small, and meant to be edited.",
        f"#   attention-vision {config['task']} fit -c {file}",
        f"#   attention-vision {config['task']} predict -c RUN/config.yaml {what}",
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "\n".join(lines) + "\n" + as_yaml(config))


def as_yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False)
