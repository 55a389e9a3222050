"""Folders of strangers: whatever stands in them, only code of known classes runs."""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attention_vision.__main__ import main
from attention_vision.config.trust import KNOWN
from attention_vision.data import image_files
from attention_vision.errors import InputError
from attention_vision.generation.gan.real_statistics import Reference
from attention_vision.generation.image_to_image.volumes import read_volume
from attention_vision.runs.load import load_data, load_experiment, load_run

ROOT = Path(__file__).parents[1]
MARK = "/tmp/executed-by-" + str(os.getpid())
COMMAND = f"touch {MARK}"
THEIRS = f"""
from torch import nn
open("{MARK}", "a").close()
class Theirs(nn.Module):
    def __init__(self, *given, **named):
        super().__init__()
    def forward(self, x):
        return x
"""
RESNET = {
    "class_path": "ResNet", "init_args": {"depth": 8, "width": 4, "attention": "SqueezeExcite"},
}  # fmt: skip
DATA = {"class_path": "Digits", "init_args": {"image_size": 16, "batch_size": 8}}
CONFIG = {
    "task": "classification",
    "threads": 1,
    "model": {"network": RESNET},
    "data": DATA,
    "trainer": {
        "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu",
        "devices": 1, "logger": False,
    },
}  # fmt: skip
ATTENTION, NETWORK = "model.network.init_args.attention", "model.network"


def theirs(**given: Any) -> dict[str, Any]:
    return {"class_path": "theirs.Theirs", **given}


def calls(function: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": function, "init_args": arguments}


# Key -> value, and the import path that the line names, empty where the value is not even one.
PAYLOADS: dict[str, tuple[str, Any, str]] = {
    "module": (ATTENTION, theirs(), "theirs.Theirs"),
    "word": (ATTENTION, "theirs.Theirs", "theirs.Theirs"),
    "os.system": (ATTENTION, calls("os.system", command=COMMAND), "os.system"),
    "getoutput": (ATTENTION, calls("subprocess.getoutput", cmd=COMMAND), "subprocess.getoutput"),
    "timeit": ("model.optimizer", calls("timeit.timeit", stmt="1"), "timeit.timeit"),
    "schedule": ("model.schedule", calls("builtins.exec", source="1"), "builtins.exec"),
    "partial": (ATTENTION, calls("functools.partial", func="os.system"), "functools.partial"),
    "torch.hub": (ATTENTION, calls("torch.hub.load", repo_or_dir="a/b"), "torch.hub.load"),
    "torch.load": (ATTENTION, calls("torch.load", f="best.ckpt"), "torch.load"),
    "extension": (
        ATTENTION, calls("torch.utils.cpp_extension.load", name="x", sources=["x.cpp"]),
        "torch.utils.cpp_extension.load",
    ),
    "download": (
        "data", calls("torchvision.datasets.CIFAR10", root=".", download=True),
        "torchvision.datasets.CIFAR10",
    ),
    "network": (NETWORK, theirs(), "theirs.Theirs"),
    "data": ("data", theirs(), "theirs.Theirs"),
    "recipe": ("data.init_args.recipe", theirs(), "theirs.Theirs"),
    "penalty": ("model.penalty", theirs(), "theirs.Theirs"),
    "inner": (ATTENTION, calls("SqueezeExcite", activation=theirs()), "theirs.Theirs"),
    "callback": ("trainer.callbacks", [theirs()], "theirs.Theirs"),
    "lambda": (
        "trainer.callbacks",
        [calls("lightning.pytorch.callbacks.LambdaCallback", setup="os.system")], "os.system",
    ),
    "logger": ("trainer.logger", theirs(), "theirs.Theirs"),
    "loggers": ("trainer.logger", [theirs()], "theirs.Theirs"),
    "strategy": ("trainer.strategy", theirs(), "theirs.Theirs"),
    "profiler": ("trainer.profiler", theirs(), "theirs.Theirs"),
    "plugin": ("trainer.plugins", [theirs()], "theirs.Theirs"),
    "claim": ("claim", theirs(), "theirs.Theirs"),
    "room": (
        "trainer.callbacks", [calls("attention_vision.training.slurm.SlurmRequeue", last="x")],
        "attention_vision.training.slurm.SlurmRequeue",
    ),
    "function": (
        ATTENTION, calls("torch.nn.utils.skip_init", module_cls="theirs.Theirs"), "",
    ),
    "keywords": (NETWORK, RESNET | {"dict_kwargs": {"x": theirs()}}, ""),
    "trust": ("trust", True, ""),
}  # fmt: skip
IN_TRAINER = ("trainer", "claim", "trust")  # not read by load_run


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a config with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return {**config, name: changed(config.get(name) or {}, rest, value) if rest else value}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a photo beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["attention-vision"])
        Path("experiment.yaml").write_text(yaml.safe_dump(CONFIG))
        assert main(["classification", "fit", "-c", "experiment.yaml", "--run", "run"]) == 0
    Path(folder, "photos").mkdir()
    Image.new("RGB", (20, 20), "red").save(Path(folder, "photos", "red.png"))
    return folder


@pytest.fixture(autouse=True)
def among_strangers(trained, tmp_path, monkeypatch):
    """The current folder is a copy of it, with a module that leaves a mark when it is imported.

    The mark is at one place, as the parser changes the current folder while it reads a file.
    """
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    Path("theirs.py").write_text(THEIRS)
    Path(MARK).unlink(missing_ok=True)
    yield
    Path(MARK).unlink(missing_ok=True)
    sys.modules.pop("theirs", None)


def commands() -> dict[str, Callable[[], int]]:
    """What looks at a run folder without training it."""
    task, run = ["classification"], ["-c", "run/config.yaml"]
    return {
        "validate": lambda: main([*task, "validate", *run]),
        "predict": lambda: main([*task, "predict", *run, "--data.images", "photos"]),
        "explain": lambda: main(["explain", "run", "--count", "1", "--layers", "list"]),
        "profile": lambda: main(["profile", "run/config.yaml", "--repeats", "1"]),
        "weights": lambda: main(
            [*task, "validate", "-c", "experiment.yaml", "--weights", "run", "--run", "new"]
        ),
    }


def in_python() -> list[Callable[[], Any]]:
    return [lambda: load_run("run"), lambda: load_data("run")]


def config_of_run(**changes: Any) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    for key, value in changes.items():
        config = changed(config, key, value)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_config_runs_nothing(payload, capsys):
    key, value, path = PAYLOADS[payload]
    config_of_run(**{key: value})
    for name, command in commands().items():
        if key.startswith(IN_TRAINER) and name not in ("validate", "predict"):
            continue  # they do not read it
        code, said = command(), capsys.readouterr()
        assert not Path(MARK).exists(), name
        assert "Traceback" not in said.out + said.err
        if name in ("validate", "predict") and path:
            assert code == 2
            (line,) = [one for one in said.err.splitlines() if "error:" in one]
            where = key.replace(".init_args", "")
            assert f"run/config.yaml: {where}" in line
            assert path in line
            assert "--trust" in line
    for call in in_python():
        with suppress(InputError):  # `load_run` does not build data, and so on
            call()
        assert not Path(MARK).exists()


def test_a_run_of_known_classes_is_used_as_before(capsys):
    for name, command in commands().items():
        assert command() == 0, (name, capsys.readouterr().err)
    assert all(call() is not None for call in in_python())
    assert not Path(MARK).exists()


@pytest.mark.parametrize("name", ["validate", "predict"])
def test_trust_is_a_word_of_the_command(name):
    config_of_run(**{ATTENTION: theirs()})
    words = ["-c", "run/config.yaml", "--trust", "--data.images", "photos"]
    assert main(["classification", name, *words]) in (0, 1)  # the checkpoint is of another network
    assert Path(MARK).exists()


def test_trust_in_python():
    config_of_run(**{ATTENTION: theirs()})
    with pytest.raises(InputError, match=r"^run/config.yaml: .*: theirs.Theirs .*trust=True"):
        load_experiment("run/config.yaml")
    sys.path.append(os.getcwd())
    assert load_experiment("run/config.yaml", trust=True).module is not None
    assert Path(MARK).exists()


def test_a_line_of_the_users_own_settings_opens_one_package():
    config_of_run(**{ATTENTION: theirs()})
    Path("settings/attention_vision").mkdir(parents=True)
    settings = Path("settings/attention_vision/trusted")
    settings.write_text("# my own\ntheirs  # attention\n")
    load_experiment("run/config.yaml")
    assert Path(MARK).exists()
    settings.write_text("rm -r\n")
    with pytest.raises(InputError, match=r"trusted, line 1: rm -r is not an import path"):
        load_experiment("run/config.yaml")


def test_fit_trusts_its_config_but_not_a_teachers_run(capsys):
    config_of_run(**{ATTENTION: theirs()})
    teacher = changed(CONFIG, "model.distillation", {"teacher": "run"})
    Path("student.yaml").write_text(yaml.safe_dump(teacher))
    fit = ["classification", "fit", "-c", "student.yaml", "--run"]
    assert main([*fit, "student"]) == 2
    assert "run/config.yaml: network.attention: theirs.Theirs" in capsys.readouterr().err
    assert not Path(MARK).exists()
    own = changed(CONFIG, ATTENTION, theirs())
    Path("own.yaml").write_text(yaml.safe_dump(own))
    assert main(["classification", "fit", "-c", "own.yaml", "--run", "own"]) == 0
    assert Path(MARK).exists()


@pytest.mark.parametrize(
    "text",
    [
        f"x: !!python/object/apply:os.system ['{COMMAND}']",
        "x: !!python/name:theirs.Theirs",
        "x: !!python/object/new:theirs.Theirs []",
        "x: !!python/module:theirs",
    ],
    ids=["apply", "name", "new", "module"],
)
@pytest.mark.parametrize("file", ["run/config.yaml", "experiments/claims/a.yaml"])
def test_a_tag_of_yaml_is_refused(file, text, capsys):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    before = Path(file).read_text() if Path(file).is_file() else ""
    Path(file).write_text(f"{before}\n{text}\n")
    Path("experiments/results").mkdir(parents=True, exist_ok=True)
    words = ["claims", "."] if "claims" in file else ["explain", "run"]
    assert main(words) in (1, 2)
    assert "not valid YAML" in capsys.readouterr().err
    assert not Path(MARK).exists()


def test_the_current_folder_is_not_searched_for_optional_packages():
    """An installed library may look for a package that is not installed here."""
    code = "import sys; from attention_vision.__main__ import choose; choose(['--version'])"
    before = list(sys.path)
    exec(code)
    config_of_run()
    load_run("run")
    assert sys.path == before


# Pickles


class Payload:
    def __reduce__(self):
        return os.system, (COMMAND,)


def hostile_zip(file: Path) -> None:
    torch.save({"state_dict": {"network.head.weight": torch.zeros(1)}, "x": Payload()}, file)


def hostile_legacy(file: Path) -> None:
    torch.save({"x": Payload()}, file, _use_new_zipfile_serialization=False)


def hostile_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"mu": Payload()}))


PICKLES = (hostile_zip, hostile_legacy, hostile_pickle)


@pytest.mark.parametrize("write", PICKLES)
def test_a_checkpoint_runs_nothing(write, capsys):
    write(Path("run/checkpoints/best.ckpt"))
    for name, command in commands().items():
        code, said = command(), capsys.readouterr().err
        if name != "profile":
            assert code in (1, 2), name
            assert "best.ckpt" in said
            assert "Traceback" not in said
    with pytest.raises(InputError, match=r"best.ckpt is damaged, or not a checkpoint"):
        load_run("run")
    assert not Path(MARK).exists()


@pytest.mark.parametrize("write", PICKLES)
@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "safetensors"])
def test_weights_run_nothing(write, ending, capsys):
    write(Path(f"theirs.{ending}"))
    words = ["--weights", f"theirs.{ending}", "--run", "new"]
    assert main(["classification", "validate", "-c", "experiment.yaml", *words]) in (1, 2)
    assert f"theirs.{ending}: not readable as a state dict" in capsys.readouterr().err
    assert not Path(MARK).exists()


@pytest.mark.parametrize("write", PICKLES)
def test_statistics_run_nothing(write):
    write(Path("statistics.pt"))
    assert Reference.read(Path("statistics.pt")) is None
    assert not Path(MARK).exists()


def test_arrays_run_nothing(monkeypatch):
    array = np.empty((1, 1, 1), dtype=object)
    array[0, 0, 0] = Payload()
    np.save("scan.npy", array)
    np.savez("scan.npz", array)
    hostile_pickle(Path("plain.npy"))
    for name in ("scan.npy", "scan.npz", "plain.npy"):
        with pytest.raises(InputError, match=f"cannot read the volume {name}"):
            read_volume(Path(name))
    np.savez_compressed("large.npz", np.zeros((9, 9, 9)))
    monkeypatch.setattr("attention_vision.generation.image_to_image.volumes.MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"large.npz: 5,\d+ bytes unpacked, more than 1,000"):
        read_volume(Path("large.npz"))
    assert not Path(MARK).exists()


# Files are written where one says


def test_links_in_a_run_lead_nowhere(capsys):
    Path("mine.txt").write_text("mine")
    writers = {"validate.json": "validate", "predictions.csv": "predict", "explained": "explain"}
    for name, writer in writers.items():
        link = Path("run", name)
        if link.is_dir():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        Path("elsewhere").mkdir(exist_ok=True)
        link.symlink_to(Path("mine.txt" if link.suffix else "elsewhere").absolute())
        explain = ["explain", "run", "--count", "1", "--layers", "grad_cam"]
        assert (main(explain) if writer == "explain" else commands()[writer]()) == 2
        assert f"run/{name} is a link that leaves run" in capsys.readouterr().err
        link.unlink()
    assert Path("mine.txt").read_text() == "mine"
    assert not list(Path("elsewhere").iterdir())


def test_a_config_names_no_folder_to_write_to(tmp_path_factory, capsys):
    outside = str(tmp_path_factory.mktemp("mine"))
    experiment = changed(CONFIG, "run", outside)
    Path("theirs.yaml").write_text(yaml.safe_dump(experiment))
    words = ["--weights", "run/checkpoints/last.ckpt"]
    assert main(["classification", "validate", "-c", "theirs.yaml", *words]) == 2
    assert f"theirs.yaml: run would write to {outside}" in capsys.readouterr().err
    data = {"class_path": "CIFAR10", "init_args": {"root": outside, "download": True}}
    config_of_run(data=data)
    assert commands()["validate"]() == 2
    assert f"data.download would write to {outside}" in capsys.readouterr().err
    assert not os.listdir(outside)


# Names


def test_names_in_a_report_are_names():
    name = "<script>alert(1)</script>$x^$\x1b[31m|\n=1"
    runs = [
        {"cell": cell, "seed": seed, "metrics": {"val/top1": seed / 10 + 0.1}}
        for cell in (name, "=cmd|' /C calc'!A0")
        for seed in (0, 1)
    ]
    study = {
        "question": name, "task": "classification", "metric": "val/top1", "baseline": name,
        "higher_is_better": True, "expect": [], "name": "../../../escaped",
    }  # fmt: skip
    content = {"study": study, "runs": runs, "what": {"title": name}, "command": [name]}
    Path("results.json").write_text(json.dumps(content | {"notes": [name]}))
    assert main(["study", "report", "results.json"]) == 0
    page, text, table, sheet = (
        Path("runs/reports/results", f"report.{ending}").read_text()
        for ending in ("html", "txt", "md", "csv")
    )
    assert "<script>" not in page
    assert "<script>" not in table
    assert "\x1b" not in text
    assert "\n'=cmd|" in sheet


def test_a_report_is_not_written_through_links():
    runs = [{"cell": "a", "seed": 0, "metrics": {"val/top1": 0.1}}]
    study = {
        "question": "?", "task": "classification", "metric": "val/top1", "baseline": "a",
        "higher_is_better": True, "expect": [],
    }  # fmt: skip
    content = {"study": study, "runs": runs, "what": {}, "command": [], "notes": []}
    Path("results.json").write_text(json.dumps(content))
    Path("mine.txt").write_text("mine")
    Path("out").mkdir()
    for ending in ("txt", "html", "csv"):
        Path("out", f"report.{ending}").symlink_to(Path("mine.txt").absolute())
    assert main(["study", "report", "results.json", "--out", "out"]) == 0
    assert Path("mine.txt").read_text() == "mine"


# Images


def bomb(side: int) -> bytes:
    """A gray PNG of side x side pixels with no more than its header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_378, 60_000])
def test_an_image_bomb_is_one_line(side):
    size = f"{side} x {side} pixels"
    Path("photos/bomb.png").write_bytes(bomb(side))
    with pytest.raises(InputError, match=rf"bomb.png: .* \({size}, more than 178,956,970\)"):
        image_files.read_image("photos/bomb.png")
    assert image_files.header("photos/bomb.png") is None
    assert "more than 178,956,970" in (image_files.reason_broken("photos/bomb.png") or "")
    content = bomb(side)
    with pytest.raises(InputError, match=r"row 3: .*more than"):
        image_files.read_image("row 3", content=content)
    assert "more than" in (image_files.reason_broken(io.BytesIO(content)) or "")
    assert commands()["predict"]() == 0
    assert "bomb.png" in Path("run/skipped.csv").read_text()


def test_a_page_after_the_first_may_be_the_bomb(monkeypatch):
    monkeypatch.setattr(image_files, "MOST_PIXELS", 100)
    pages = [Image.new("L", (5, 5)), Image.new("L", (50, 50))]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    assert image_files.read_image("pages.tif/0").size == (5, 5)
    with pytest.raises(InputError, match=r"pages.tif/1: .*50 x 50 pixels, more than 100"):
        image_files.read_image("pages.tif/1")


def test_a_file_is_opened_as_an_image_whatever_its_name():
    """Pillow hands PostScript to Ghostscript."""
    Path("photo.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile\n"
    )
    with pytest.raises(InputError, match=r"cannot read the image photo.png"):
        image_files.read_image("photo.png")
    assert not {"EPS", "PDF", "WMF"} & set(image_files.kinds())
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("a/../b.png", False), ("a/b.png", False), ("..b/c.png", False), ("../b.png", True),
        ("a/../../b.png", True), ("/etc/b.png", True), ("C:\\b.png", True), ("..\\b.png", True),
    ],
)  # fmt: skip
def test_names_that_leave_a_folder(name, leaves):
    assert image_files.leaves_folder(name) is leaves


# The page


def test_the_page_lists_what_the_code_knows():
    text = (ROOT / "SECURITY.md").read_text()
    lines = text.partition("Classes in or below:")[2].splitlines()
    listed = [line.strip("* `") for line in lines if line.startswith("* `")]
    assert listed == list(KNOWN)
    assert f"{image_files.MOST_PIXELS:,}" in text
