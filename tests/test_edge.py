"""The edge of the command: any failure is one line, and printing never ends a run."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from attention_vision.__main__ import main
from attention_vision.backbones.backbone import Backbone
from attention_vision.cli.edge import describe, interruptible_imports
from attention_vision.config import size_limits
from attention_vision.config.build import Node, build_nodes
from attention_vision.detection.voc import parsed
from attention_vision.errors import ConfigError, InputError, one_line
from attention_vision.yaml_json import MAX_BYTES, read_json, read_yaml, to_json

ROOT = Path(__file__).parents[1]
EXPERIMENT = """
trainer: {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, accelerator: cpu, devices: 1}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 32, num_workers: 0}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 1, heads: 2}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Path("experiment.yaml").write_text(EXPERIMENT)


def fit(*arguments: str) -> int:
    return main(["classification", "fit", "-c", "experiment.yaml", "--run", "run", *arguments])


def said(capsys: pytest.CaptureFixture) -> str:
    """The one line of error that was printed, without its start."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("attention-vision: error: ")]
    return line.removeprefix("attention-vision: error: ")


# One handler


class Fails(Callback):
    """Fails at the first batch, as a fault anywhere in a run would."""

    def on_train_batch_start(self, *_: object) -> None:
        {}["absent"]


class Misfit(nn.Module):
    """An attention whose output cannot be computed."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.project = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x) if self.training and x.shape[0] > 2 else x


FAILS = f"--trainer.callbacks={__name__}.Fails"


def test_a_fault_is_one_line_and_its_traceback_is_in_the_run_folder(capsys):
    assert fit(FAILS) == 1
    line = said(capsys)
    assert line.startswith(f"KeyError in {__file__}:")  # code of the user's own
    assert line.endswith("'absent'; traceback: run/error.txt")
    assert "Traceback (most recent call last)" in Path("run/error.txt").read_text()


def test_debug_prints_the_traceback(capsys):
    assert fit(FAILS, "--debug") == 1
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith("attention-vision: error: KeyError in ")
    assert not Path("run/error.txt").exists()


def test_the_layer_that_does_not_fit_is_named(capsys):
    assert fit(f"--model.network.attention={__name__}.Misfit") == 1
    line = said(capsys)
    assert line.startswith("layer network.blocks.0.attention.project (Linear) does not fit its inp")
    assert "mat1 and mat2 shapes cannot be multiplied" in line


def broken(*_: object) -> None:
    to_json({"a": float("nan")})


def test_a_fault_of_this_package_without_a_run_folder(capsys, monkeypatch):
    monkeypatch.setattr("attention_vision.cli.claims.read_ledger", broken)
    assert main(["claims"]) == 1
    line = said(capsys)
    assert line.startswith("unexpected ValueError in attention_vision/yaml_json.py:")
    where = Path(line.rpartition("please report it with ")[2])
    assert "Out of range float values" in where.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(Path("gone").absolute()))
    assert main(["claims"]) == 1
    line = said(capsys)
    assert "please report it with --debug (it cannot be written: " in line
    assert line.endswith(": no such file or directory)")


def ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_before_training(capsys, monkeypatch):
    monkeypatch.setattr("attention_vision.__main__.choose", ctrl_c)
    assert main(["classification", "fit"]) == 130
    assert capsys.readouterr().err == "attention-vision: stopped\n"


def test_ctrl_c_that_an_import_swallows():
    def swallowed() -> None:
        with interruptible_imports():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RecursionError from None

    with pytest.raises(KeyboardInterrupt):
        swallowed()
    with pytest.raises(RecursionError), interruptible_imports():
        raise RecursionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "last.ckpt"), "last.ckpt: no space left on device: free"),
        (PermissionError(errno.EACCES, "", "a.txt"), "a.txt: permission denied"),
        (MemoryError(), "out of memory: lower data.batch_size"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
            "out of memory (20.0 GiB more were asked for): lower data.batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40000000000"
                         " bytes."),
            "out of memory (40.0 GB more were asked for)",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "data.num_workers"),
        (RecursionError(), "nested too deeply"),
        (ModuleNotFoundError("No module named 'timm'"), "No module named 'timm': install it"),
    ],
)  # fmt: skip
def test_known_failures(error, line):
    text, known = describe(error)
    assert known
    assert line in text


class Broken:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise IndexError("row 3 is missing")


def test_an_exception_of_a_data_loader_is_that_of_its_line():
    with pytest.raises(IndexError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))  # type: ignore[arg-type]
    text, _ = describe(caught.value)
    assert text.startswith(f"IndexError in {__file__}:")
    assert text.endswith(": row 3 is missing")


def test_names_of_foreign_files_do_not_reach_the_terminal():
    line = one_line(InputError("cannot read \x1b[31mred\x1b]0;title\x07\nnext \u202e.png \udce9"))
    assert line == r"cannot read \x1b[31mred\x1b]0;title\x07 next \u202e.png \udce9"
    assert one_line(InputError("犬 кошки é")) == "犬 кошки é"


# What Lightning refuses, and what would hang


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--trainer.val_check_interval 1000", "trainer: `val_check_interval` (1000) must be less"),
        ("--trainer.limit_train_batches a", "limit_train_batches: expected int, float or null"),
        ("--trainer.strategy ddp_spawn --trainer.devices 2", "trainer.strategy is ddp_spawn: its"),
        ("--trainer.num_nodes 2", "trainer.num_nodes is 2, and nothing starts the other nodes"),
        ("--trainer.devices 6400", "trainer.devices is 6400: that many processes"),
        ("--trainer.min_epochs 5", "trainer.min_epochs is 5, more than trainer.max_epochs, 1"),
        ("--trainer.precision transformer-engine", "trainer: "),
    ],
)
def test_settings_that_cannot_work(flags, line, capsys):
    start = time.monotonic()
    assert fit(*flags.split()) in (1, 2)
    assert line in said(capsys)
    assert time.monotonic() - start < 20
    assert not Path("run/error.txt").exists()


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("[no, yes]", 'which YAML makes of no, off or false: quote the word, "no"'),
        ("[1, 2]", 'a number in YAML: quote it where text is meant, "1"'),
        ("[null]", 'which YAML makes of null or of nothing: quote the word, "null"'),
        ("[010, 011]", '010 is the number 8: quote it where text is meant, "010"'),
    ],
)
def test_words_of_yaml(names, line, capsys):
    assert main(["generation", "fit", "--data", "MaskFolder", "--data.class_names", names]) == 2
    assert line in said(capsys)


def test_networks_of_too_many_layers_or_weights_are_not_built(monkeypatch):
    monkeypatch.setattr(size_limits, "MAX_TENSORS", 30)
    config = yaml.safe_load(EXPERIMENT)["model"]["network"]
    build_nodes({"network": config}, {"network": Node(Backbone)})
    config["init_args"]["depth"] = 8
    with pytest.raises(InputError, match="networks of more than 30 tensors"):
        build_nodes({"network": config}, {"network": Node(Backbone)})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # pages of 100 bytes
    with pytest.raises(InputError, match=r"of shape .*this machine has 0 GB"):
        build_nodes({"network": config}, {"network": Node(Backbone)})


# Files


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[" * 5000, "more than 64 levels of lists and mappings"),
        (b"a: &a [*a]", "line 1, column 8: not valid YAML: *a contains itself"),
        (b"a: &a {b: {<<: *a}}", "*a contains itself"),
        (LAUGHS.encode(), "more than 100,000 values, those of aliases included"),
        (b"a: " + b"9" * 5000, "99999999999999999999... of 5,000 characters is not of type int"),
        (b"a: 0x" + b"f" * 5000, "is not of type int"),
        (b"a: !!int x", "x is not of type int"),
        (b"a: 010", 'a.yaml, line 1, column 4: not valid YAML: 010 is the number 8: quote it'),
        (b"a: 1:30", "1:30 is the number 90: quote it"),
        (b"a: 1\n\0", "line 2: not valid YAML: the character 0x00"),
        (b"a: caf\xe9", "not UTF-8 text (byte 0xe9 at 6): save it as UTF-8"),
        (b"a:\n\t- 1", "line 2, column 1: not valid YAML: found character '\\t'"),
        (b"a: 1\na: 2", "duplicate key 'a'"),
        (b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"a: 1" + b" " * MAX_BYTES["YAML"], "has 1.0 MB: YAML is read up to 1 MB"),
    ],
)  # fmt: skip
def test_yaml_that_is_not_read(content, line):
    Path("a.yaml").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read_yaml(Path("a.yaml"))
    assert time.monotonic() - start < 5
    assert line in str(caught.value)
    assert str(caught.value).startswith("a.yaml")


def test_yaml_that_is_read():
    Path("a.yaml").write_text("\ufeffa: 2024-01-01\nb: &b {c: 1e-3}\nd: {<<: *b}\ne: [*b, *b, 0]\n")
    b = {"c": 0.001}
    assert read_yaml(Path("a.yaml")) == {"a": "2024-01-01", "b": b, "d": b, "e": [b, b, 0]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number too long"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": ', "line 1: not valid JSON: truncated or damaged"),
        (b'{"a": "\xe9"}', "not UTF-8 text"),
        (b"\0\0", "not valid JSON"),
    ],
)
def test_json_that_is_not_read(content, line):
    Path("a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(Path("a.json"))
    assert line in str(caught.value)
    assert str(caught.value).startswith("a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_of_xml_are_not_expanded(encoding):
    entities = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    text = f'<?xml version="1.0" encoding="{encoding}"?>{entities}<annotation>&b;</annotation>'
    Path("a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"a\.xml declares entities"):
        parsed(Path("a.xml"))
    Path("a.xml").write_bytes(text.replace(entities, "").replace("&b;", "").encode(encoding))
    assert parsed(Path("a.xml")).tag == "annotation"


# Printing

PRINTS = """
import sys
from attention_vision.cli.edge import steady_streams
steady_streams()
for n in range(20000):
    print(n)
print("кошки \\udce9", flush=True)
print("ended", file=sys.stderr)
"""


def test_a_reader_that_goes_away_ends_nothing():
    command = [sys.executable, "-c", PRINTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b"ended\n"
    assert process.returncode == 0


def test_names_that_the_terminal_cannot_print():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", PRINTS]
    ended = subprocess.run(command, capture_output=True, env=ascii_only)
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == rb"\u043a\u043e\u0448\u043a\u0438 \udce9"


@pytest.mark.parametrize(
    ("redirection", "line"),
    [
        (">&- 2>&- <&-", ""),
        (">/dev/full", "attention-vision: stdout: no space left on device: the rest of it is"),
        ("| true", ""),
    ],
)
def test_output_that_cannot_be_written(redirection, line):
    command = f'"{sys.executable}" -m attention_vision claims "{ROOT}" --check {redirection}'
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == bool(line)
