"""Bad inputs, row by row: one line with the words of the table, nothing written or changed.

The table is bad_inputs.txt. A fault that is found in the field becomes a row there.
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from coco_folder import dataset
from image_to_image_folders import discs
from PIL import Image
from studies import BASE, STUDY

from attention_vision.__main__ import main

TABLE = Path(__file__).with_name("bad_inputs.txt")
SECONDS = 30  # then a row counts as one that hangs
TRAINER = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  limit_train_batches: 1
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  log_every_n_steps: 1
"""
RESNET = "{class_path: ResNet, init_args: {depth: 8, width: 4, stem: cifar}}"
VIT = "{class_path: ViT, init_args: {image_size: 16, patch_size: 8, width: 16, depth: 1, heads: 2}}"
EXPERIMENTS = {
    "c": f"""
task: classification
data: {{class_path: Digits, init_args: {{image_size: 16, batch_size: 8}}}}
model: {{network: {VIT}}}
""",
    "c_width_0": f"""
task: classification
data: {{class_path: Digits, init_args: {{image_size: 16, batch_size: 8}}}}
model: {{network: {VIT.replace("width: 16", "width: 0")}}}
""",
    "d": f"""
task: detection
data: {{class_path: DigitScenes, init_args: {{scenes: 8, val_scenes: 4, batch_size: 2}}}}
model:
  class_path: DETRDetector
  init_args:
    network:
      class_path: DETR
      init_args:
        num_queries: 5
        width: 16
        heads: 2
        encoder_layers: 1
        decoder_layers: 1
        hidden: 16
        backbone: {RESNET}
""",
    "q": f"""
task: detection
data: {{class_path: DigitScenes, init_args: {{scenes: 8, val_scenes: 4, batch_size: 2}}}}
model:
  class_path: DeformableDETRDetector
  init_args:
    network:
      class_path: DeformableDETR
      init_args:
        num_queries: 5
        refine: true
        two_stage: true
        denoising: {{class_path: Denoising, init_args: {{queries: 8}}}}
        width: 16
        heads: 2
        encoder_layers: 1
        decoder_layers: 1
        hidden: 16
        backbone: {RESNET}
""",
    "f": f"""
task: detection
data: {{class_path: DigitScenes, init_args: {{scenes: 8, val_scenes: 4, batch_size: 2}}}}
model:
  class_path: RCNNDetector
  init_args:
    network:
      class_path: AttentionRCNN
      init_args:
        head: {{class_path: PlainBoxHead, init_args: {{hidden: 16}}}}
        pyramid_channels: 16
        anchor_sizes: [8, 16, 32, 64]
        backbone: {RESNET}
""",
    "g": """
task: generation
data: {class_path: DigitImages, init_args: {size: 16, batch_size: 8, count: 8}}
model:
  class_path: SAGAN
  init_args:
    generator:
      class_path: Generator
      init_args: {size: 16, latent: 8, width: 8, attention_at: [8]}
    discriminator:
      class_path: Discriminator
      init_args: {size: 16, width: 8, attention_at: [8]}
""",
    "u": """
task: generation
data:
  class_path: DegradedDigits
  init_args: {size: 32, batch_size: 4, degradation: {class_path: Noise}}
model:
  class_path: ImageToImage
  init_args:
    network: {class_path: AttentionUNet, init_args: {width: 4, depth: 2, gated_levels: [2]}}
    objective: Restoration
""",
    "s": """
task: generation
data: {class_path: DigitMasks, init_args: {size: 32, batch_size: 4}}
model:
  class_path: ImageToImage
  init_args:
    network: {class_path: AttentionUNet, init_args: {width: 4, depth: 2, gated_levels: [2]}}
    objective: Segmentation
""",
}
SWIN = "{image_size: 16, patch_size: 2, width: 8, depths: [1, 1], heads: [1, 2], window: 4}"
FILES = {
    "swin.yaml": f"model: {{network: {{class_path: Swin, init_args: {SWIN}}}}}",
    "resnet.yaml": f"model: {{network: {RESNET}}}",
    "empty.yaml": "",
    "list.yaml": "- 1\n- 2\n",
    "word.yaml": "a sentence\n",
    "number.yaml": "3\n",
    "broken.yaml": "task: classification\ntrainer: {{max_epochs: 1}\n",
    "twice.yaml": "trainer: {max_epochs: 1, max_epochs: 2}\n",
    "deep.yaml": "".join(f"{' ' * depth}a:\n" for depth in range(3000)),
    "deep_flow.yaml": "model: " + "[" * 3000 + "]" * 3000,
    "cycle.yaml": "model: &m\n  network: *m\n",
    "aliases.yaml": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
    "long_number.yaml": f"trainer: {{max_epochs: {'9' * 4301}}}\n",
    "tabs.yaml": "trainer:\n\tmax_epochs: 1\n",
    "tagged.yaml": "model: !!python/object/apply:os.getcwd []\n",
    "two_documents.yaml": "task: classification\n---\ntask: classification\n",
    "number_keys.yaml": "1: 2\n",
    "null_keys.yaml": "model: {~: 3}\n",
    "anchor.yaml": "model: *nowhere\n",
    "broken_module.py": "def f(:\n",
    "mine.py": "from torch import nn\n\n\nclass Something:\n    pass\n\n\nclass Gate(nn.Module):\n"
    "    def __init__(self, channels: int):\n        super().__init__()\n",
    "empty.csv": "",
    "head.csv": "file,label\n",
    "missing_files.csv": "file,label\nnowhere.png,a\nnothing.png,b\n",
    "labels.csv": "file,label\nphotos/train/a/0.png,a\nphotos/train/b/0.png,b\n",
    "text.ckpt": "weights\n",
    "empty.ckpt": "",
    "run_no_checkpoint/config.yaml": EXPERIMENTS["c"] + TRAINER,
    "study.yaml": STUDY,
    "base.yaml": BASE,
    "study_no_base.yaml": STUDY.replace("base: base.yaml", "base: nowhere.yaml"),
    "study_no_seeds.yaml": STUDY.replace("seeds:", "seed:"),
    "study_seed.yaml": STUDY.replace("seeds: [0, 1]", "seeds: [0, -1]"),
    "study_axis.yaml": STUDY[: STUDY.index("axes:")] + "axes: [1]\n",
    "study_budget.yaml": STUDY.replace("steps: 7", "steps: -7"),
    "study_budget_nan.yaml": STUDY.replace("steps: 7", "epochs: .nan"),
    "study_baseline.yaml": STUDY.replace("baseline: none", "baseline: nothing"),
    "study_metric.yaml": STUDY.replace("metric: val/top1", "metric: top1"),
    "study_expect.yaml": STUDY.replace("[se > none]", "[se beats none]"),
    "study_effect.yaml": STUDY.replace("seeds: [0, 1]", "seeds: [0, 1]\n  effect: .inf"),
    "study_looks.yaml": STUDY.replace("seeds: [0, 1]", "seeds: [0, 1]\n  looks: [0, 2]"),
    "study_effect_huge.yaml": STUDY.replace("seeds:", f"effect: {'9' * 400}\n  seeds:"),
    "study_looks_huge.yaml": STUDY.replace("seeds: [0, 1]", "seeds: [0, 1]\n  looks: [9999999999]"),
    "study_margin.yaml": STUDY.replace("[se > none]", "[se > none by x]"),
    "study_margin_huge.yaml": STUDY.replace("[se > none]", "[se > none by 1e200]"),
    "study_itself.yaml": STUDY.replace("[se > none]", "[se > se]"),
    "study_twice.yaml": STUDY.replace("[se > none]", "[se > none, se > none by 0]"),
    "study_better.yaml": STUDY.replace("seeds: [0, 1]", "seeds: [0, 1]\n  higher_is_better: nope"),
    "study_baseline_list.yaml": STUDY.replace("baseline: none", "baseline: [none]"),
    "study_question.yaml": re.sub("question: .*", "question: ''", STUDY),
    "study_task.yaml": STUDY.replace("base: base.yaml", "base: study.yaml"),
    "study_range.yaml": STUDY.replace("{model.network.init_args.attention: torch.nn.Identity}",
                                      "{model.network.init_args.width: 0}"),
    "study_key.yaml": STUDY.replace("{model.network.init_args.attention: torch.nn.Identity}",
                                    "{model.network.init_args.widht: 4}"),
    "results_cut.json": '{"study": {"question":',
    "results_list.json": "[1, 2]",
    "results_words.json": '{"study": "none", "results": 3}',
    "claims_key/experiments/claims/a.yaml": "statement: It helps.\nnonsense: 3\n",
    "claims_kind/experiments/claims/a.yaml": "statement: It helps.\nkind: rumour\nsource: x\n"
    "says: y\nliterature: confirmed\nreason: z\n",
    "claims_broken/experiments/claims/a.yaml": "statement: {{\n",
    "bomb/Annotations/a.xml": '<!DOCTYPE a [<!ENTITY a "xxxxxxxxxx">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghi"))
    + "]><annotation><filename>&i;</filename></annotation>",
    "coco/empty.json": "",
    "coco/cut.json": '{"images": [{"id": 1, "file_na',
    "coco/list.json": "[]",
    "coco/no_objects.json": '{"images": [], "annotations": [], "categories": []}',
    "coco/long_number.json": f'{{"images": [{{"id": {"9" * 4301}}}]}}',
    "coco/deep.json": "[" * 100_000 + "]" * 100_000,
}  # fmt: skip


def rows() -> Iterator[tuple[str, str]]:
    """(arguments, words of the answer) of every row."""
    above = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            above = line[1:].strip()
        elif line and not line.startswith("#"):
            arguments, words = line.rsplit(" | ", 1)
            yield f"{above} {arguments}".strip(), words


def write_inputs(folder: Path) -> None:
    """Write what the rows name: experiments, data, a finished run, and damaged ones of each."""
    for name, text in EXPERIMENTS.items():
        (folder / f"{name}.yaml").write_text(text + TRAINER)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("folder", "empty", "bomb/JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "folder" / "notes.txt").write_text("notes")
    (folder / "link_to_nowhere.yaml").symlink_to("nowhere.yaml")
    (folder / "nul.yaml").write_bytes(b"trainer: {max_epochs: \0}\n")
    (folder / "latin.yaml").write_bytes("data: {root: Bücher}\n".encode("latin-1"))
    picture = Image.new("RGB", (24, 20), (200, 30, 90))
    picture.save(folder / "binary.png")
    picture.save(folder / "bomb" / "JPEGImages" / "a.jpg")
    for place in ("photos/train/a", "photos/train/b", "one_class/train/a"):
        (folder / place).mkdir(parents=True)
        for number in range(4):
            picture.save(folder / place / f"{number}.png")
    for place in ("rotten/train/a", "rotten/train/b"):
        (folder / place).mkdir(parents=True)
        for number in range(2):
            (folder / place / f"{number}.png").write_bytes(b"\x89PNG not an image")
    discs(folder / "masks")
    instances = dataset(folder / "coco", "train")
    (folder / "coco" / "train.json").write_text(json.dumps(instances))
    for name, box in (("nan", [float("nan")] * 4), ("words", ["a", "b", "c", "d"])):
        wrong = [one | {"bbox": box} for one in instances["annotations"]]
        (folder / "coco" / f"{name}.json").write_text(
            json.dumps(instances | {"annotations": wrong})
        )
    weights = {"somewhere.else": torch.zeros(3)}
    for name in ("weights.pt", "other.pt"):
        torch.save(weights, folder / name)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["classification", "fit", "-c", "c.yaml", "--run", "run"]) == 0
    whole = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "run_cut" / "checkpoints").mkdir(parents=True)
    (folder / "run_cut" / "checkpoints" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    config = (folder / "run" / "config.yaml").read_text()
    (folder / "run_cut" / "config.yaml").write_text(config.replace("run: run", "run: run_cut"))


@dataclass(frozen=True)
class Answer:
    """What the command answered: exit code, the lines on stderr, and files that changed."""

    code: int | None
    lines: list[str]
    changed: list[str]


class HangsError(BaseException):
    """The command did not answer in time."""


def answer(arguments: str) -> Answer:
    """Run the command in this process and this folder."""
    words = [word.replace(r"\n", "\n").replace(r"\e", "\x1b") for word in shlex.split(arguments)]
    before, said = snapshot(), io.StringIO()

    def hangs(*_: object) -> None:
        raise HangsError

    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("ATTENTION_VISION_RUN", None)
        torch.set_num_threads(1)
    after = snapshot()
    changed = sorted(key for key in before.keys() | after if before.get(key) != after.get(key))
    return Answer(code, said.getvalue().splitlines(), changed)


def snapshot() -> dict[str, tuple[int, int]]:
    """Size and time of change of what is below this folder, without compiled modules."""
    found = (path for path in Path().rglob("*") if "__pycache__" not in path.parts)
    stats = {path: path.lstat() for path in found}
    return {
        str(path): (0, 0)
        if path.is_dir() and not path.is_symlink()
        else (stat.st_size, stat.st_mtime_ns)
        for path, stat in stats.items()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the inputs, in which the rows run."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    with contextlib.chdir(folder):
        write_inputs(folder)
        yield folder


ROWS = list(rows())
# A row takes a third of a second: each run tests one in ten, and `EVERY_ROW=1` all of them.
CHOSEN = ROWS if os.environ.get("EVERY_ROW") else ROWS[::10]


def test_the_table_has_no_row_twice():
    assert len({arguments for arguments, _ in ROWS}) == len(ROWS) >= 300


@pytest.mark.parametrize(("arguments", "words"), CHOSEN)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("place")
def test_one_line(arguments: str, words: str):
    given = answer(arguments)
    assert given.code in (1, 2)
    assert len(given.lines) == 1
    assert words in given.lines[0]
    assert given.lines[0].isprintable()
    assert given.changed == []
