"""Attention of the user's own, from a file in the current folder, in every task and tool."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn

from attention_vision.__main__ import main
from attention_vision.runs import load_run
from attention_vision.runs.arguments import parse

MINE = '''
import torch
from torch import nn

from attention_vision.attention import capture


class Mine(nn.Module):
    """A gate for each position, from the mean over channels."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        gate = torch.sigmoid((self.scale * x).mean(1, keepdim=True))
        capture(gate)
        return 2 * gate * x
'''
NEEDS_MORE = MINE.replace("self, channels", "self, channels, k")
NEEDS_NOTHING = MINE.replace("self, channels", "self").replace("channels,", "1,")
TRAINER = {
    "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu",
    "devices": 1, "log_every_n_steps": 1,
}  # fmt: skip
MY_ATTENTION = {"class_path": "mine.Mine"}
RESNET = {"class_path": "ResNet", "init_args": {"depth": 8, "width": 4, "attention": MY_ATTENTION}}
GAN = {"size": 16, "width": 4, "attention_at": [8], "attention": MY_ATTENTION}
TASKS = {
    "classification": {
        "data": {"class_path": "Digits", "init_args": {"image_size": 16, "batch_size": 16}},
        "model": {"network": RESNET},
    },
    "detection": {
        "data": {
            "class_path": "DigitScenes",
            "init_args": {"scenes": 2, "val_scenes": 2, "batch_size": 2},
        },
        "model": {
            "class_path": "DETRDetector",
            "init_args": {
                "network": {
                    "class_path": "DETR",
                    "init_args": {
                        "num_queries": 3, "width": 8, "heads": 2, "encoder_layers": 1,
                        "decoder_layers": 1, "hidden": 8, "backbone": RESNET,
                    },
                }
            },
        },
    },
    "generation": {
        "data": {"class_path": "DigitImages", "init_args": {"size": 16, "batch_size": 4}},
        "model": {
            "class_path": "SAGAN",
            "init_args": {
                "generator": {"class_path": "Generator", "init_args": {"latent": 8, **GAN}},
                "discriminator": {"class_path": "Discriminator", "init_args": GAN},
                "scorer": {"class_path": "Unscored"},
            },
        },
    },
}  # fmt: skip
STUDY = {
    "study": {
        "question": "Does my attention help?",
        "metric": "val/top1",
        "baseline": "none",
        "expect": ["mine > none"],
        "seeds": [0, 1],
    },
    "base": "classification.yaml",
    "axes": {
        "attention": {
            "none": {"model.network.init_args.attention": {"class_path": "torch.nn.Identity"}},
            "mine": {"model.network.init_args.attention": MY_ATTENTION},
        }
    },
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    for task, config in TASKS.items():
        config = {"task": task, "threads": 1, "trainer": TRAINER, **config}
        Path(f"{task}.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("task", TASKS)
def test_trains_loads_and_is_explained(task):
    assert main([task, "fit", "-c", f"{task}.yaml", "--run", "run"]) == 0
    module = load_run("run", "last", trust=True)
    layers = [name for name, one in module.named_modules() if type(one).__name__ == "Mine"]
    assert layers
    if task == "generation":
        layers = [name for name in layers if name.startswith("average.")]
    name = layers[-1].partition(".")[2]
    assert (
        main(["explain", "run", "--count", "1", "--layers", name, "--out", "out", "--trust"]) == 0
    )
    (file,) = Path("out").glob("*.npz")
    gates = np.load(file)[name]
    assert gates.ndim == 4
    assert gates.shape[1] == 1
    assert ((gates > 0) & (gates < 1)).all()


def test_a_study_of_two_cells(capsys):
    Path("mine_or_none.yaml").write_text(yaml.safe_dump(STUDY))
    # In a process of its own: a study forks, which wants a parent without threads.
    words = ["study", "run", "mine_or_none.yaml", "--jobs", "2"]
    subprocess.run([sys.executable, "-m", "attention_vision", *words], check=True)
    assert main(["study", "report", "runs/studies/mine_or_none"]) == 0
    assert "mine > none" in capsys.readouterr().out
    for seed in (0, 1):
        cell = Path("runs/studies/mine_or_none/cells/mine", f"seed{seed}")
        assert "val/top1" in json.loads((cell / "result.json").read_text())["metrics"]


def test_the_console_script_finds_the_current_folder():
    script = "import sys; from attention_vision.__main__ import main; sys.exit(main())"
    words = ["classification", "fit", "-c", "classification.yaml", "--print_config"]
    command = [sys.executable, "-P", "-c", script, *words]  # -P: as a script, without this folder
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-500:]
    assert "mine.Mine" in answer.stdout


@pytest.mark.parametrize(
    ("files", "class_path", "line"),
    [
        ({}, "mine.Mne", "mine.py has no class Mne; did you mean Mine?"),
        ({}, "nothere.Mine", "there is no nothere.py in {here}, nor an installed package nothere"),
        ({}, "mine.inside.Mine", "cannot import mine.inside.Mine: there is no module mine.inside"),
        ({}, "Quux", "there is no class Quux; known: "),
        ({"one": "import two"}, "one.Mine", "cannot import one.Mine: one needs two"),
        (
            {"one": "class Mine(:"},
            "one.Mine",
            "SyntaxError: invalid syntax ({here}/one.py, line 1)",
        ),
        ({"one": NEEDS_MORE}, "one.Mine", "attention.k is missing: one.Mine needs it"),
        ({"one": NEEDS_NOTHING}, "one.Mine", "a feature attention takes (channels)"),
        ({"one": "def f(channels):\n  pass"}, "one.f", "attention: the function one.f has to be"),
        ({}, "mine", "mine.py is a file: name a class in it, mine.CLASS"),
        ({"one": "1 / 0"}, "one.Mine", "ZeroDivisionError: division by zero ({here}/one.py, line"),
        (
            {"one": "class Mine:\n  pass"},
            "one.Mine",
            "attention: one.Mine is not a Module",
        ),
    ],
)
def test_a_class_that_cannot_be_imported(files, class_path, line, capsys):
    for name, text in files.items():
        sys.modules.pop(name, None)
        Path(f"{name}.py").write_text(text)
    flags = ["--model.network.attention", class_path, "--run", "run"]
    assert main(["classification", "fit", "-c", "classification.yaml", *flags]) in (1, 2)
    (error,) = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    assert line.format(here=Path.cwd()) in error
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"class_path": "CIFAR10", "init_args": {"recipe": {"class_path": "torch.nn.ReLU"}}},
            "data.recipe: torch.nn.ReLU is not an Augmentation; known: CIFARAugmentation",
        ),
        ({"class_path": "mine.Mine"}, "data: mine.Mine is not a ClassificationData; known: "),
        ({"class_path": "their.Data"}, "data: cannot import their.Data: there is no their.py in"),
    ],
)
def test_the_innermost_reason_of_wrong_data(data, line, capsys):
    config = yaml.safe_load(Path("classification.yaml").read_text()) | {"data": data}
    Path("wrong.yaml").write_text(yaml.safe_dump(config))
    assert main(["classification", "fit", "-c", "wrong.yaml"]) == 2
    assert line in capsys.readouterr().err


def test_names_of_this_package_are_found_beside_others_of_that_name():
    theirs = pytest.importorskip("timm.models.swin_transformer")  # as a user's file imports it
    assert issubclass(theirs.WindowAttention, nn.Module)
    flags = ["--data=Digits", "--model.network=ViT", "--model.network.attention=WindowAttention"]
    network = parse("classification", "fit", flags).config.model.network
    assert network.init_args.attention.class_path == "attention_vision.attention.WindowAttention"
