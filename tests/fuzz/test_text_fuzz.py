"""Any text in a config or study file: it is read, or refused in one line."""

import copy
import itertools
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_vision.errors import InputError, one_line
from attention_vision.runs.arguments import parse
from attention_vision.study.definition import merge, read_definition, replace
from attention_vision.yaml_json import read_json, read_yaml

EXPERIMENT = """\
task: classification
trainer: {max_epochs: 3, accelerator: cpu}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 8}}
model:
  network: {class_path: ViT, init_args: {image_size: 16, patch_size: 4, depth: 1, heads: 2}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}
"""
WORDS = st.sampled_from(["task", "trainer", "model", "a", "class_path", "<<", "no", "~", "é"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text("ab é~<:#'\"\n", max_size=6),
    WORDS,
)
NODES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
PUNCTUATION = st.text(st.sampled_from("{}[]:,&*!|>-?#%@`'\"\\ \n\t\0é1aé~<=."), max_size=12)


def outcome(read, *arguments) -> object:
    """What a reader returns; what it refuses, it refuses in one line that can be printed."""
    try:
        return read(*arguments)
    except InputError as error:
        line = one_line(error)
    assert line.isprintable()
    assert len(line) > 10
    return None


def file_of(folder: str, text: str, name: str = "x.yaml") -> Path:
    file = Path(folder, name)
    file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    return file


@given(st.text(max_size=40) | PUNCTUATION | st.binary(max_size=30))
def test_any_text_as_yaml_or_json(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.yaml")
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        for read in (read_yaml, read_json):
            content = outcome(read, file)
            assert content is None or isinstance(content, dict)


@given(st.dictionaries(WORDS, NODES, max_size=4))
def test_what_yaml_writes_is_read(content):
    """But for what cannot be a config, and numbers of another base."""
    with tempfile.TemporaryDirectory() as folder:
        text = yaml.safe_dump(content, allow_unicode=True)
        read = outcome(read_yaml, file_of(folder, text))
        assert read is None or repr(read) == repr(yaml.safe_load(text))


@given(PUNCTUATION, st.integers(0, len(EXPERIMENT)), st.integers(0, 6))
def test_a_study_whose_base_is_damaged(noise, place, length):
    with tempfile.TemporaryDirectory() as folder:
        file_of(folder, EXPERIMENT[:place] + noise + EXPERIMENT[place + length :], "base.yaml")
        text = "study: {question: a, metric: val/top1, baseline: base, seeds: [0]}\nbase: base.yaml"
        outcome(read_definition, file_of(folder, text, "study.yaml"))


@settings(max_examples=settings().max_examples // 20)
@given(PUNCTUATION, st.integers(0, len(EXPERIMENT)), st.integers(0, 6))
def test_a_damaged_experiment_parses_or_is_refused(noise, place, length):
    with tempfile.TemporaryDirectory() as folder:
        text = EXPERIMENT[:place] + noise + EXPERIMENT[place + length :]
        outcome(parse, "classification", "fit", ["-c", str(file_of(folder, text))])


PATHS = st.sampled_from(
    ["trainer", "trainer.max_epochs", "model", "model.network", "model.network.init_args.depth",
     "model.optimizer", "data", "data.init_args.batch_size", "threads", "seed_everything", "claim"]
)  # fmt: skip


@settings(max_examples=settings().max_examples // 10)
@given(PATHS, NODES)
def test_any_value_of_a_key_parses_or_is_refused(path, node):
    config = yaml.safe_load(EXPERIMENT)
    replace(config, path, node)
    with tempfile.TemporaryDirectory() as folder:
        text = yaml.safe_dump(config, allow_unicode=True)
        outcome(parse, "classification", "fit", ["-c", str(file_of(folder, text))])


NAMES = st.text("abcxyz019_", min_size=1, max_size=3)
LEAVES = [
    "trainer.max_epochs",
    "model.network.init_args.depth",
    "data.init_args.batch_size",
    "new.key",
]


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, NODES, min_size=1, max_size=3), max_size=3))
def test_a_study_is_the_product_of_its_axes(axes):
    paths = dict(zip(axes, LEAVES, strict=False))
    written = {
        axis: {v: {paths[axis]: n} for v, n in values.items()} for axis, values in axes.items()
    }
    names = ["-".join(way) or "base" for way in itertools.product(*axes.values())]
    study = {"question": "a", "metric": "val/top1", "baseline": names[0], "seeds": [0]}
    with tempfile.TemporaryDirectory() as folder:
        file_of(folder, EXPERIMENT, "base.yaml")
        text = yaml.safe_dump(
            {"study": study, "base": "base.yaml", "axes": written}, sort_keys=False
        )
        found = outcome(read_definition, file_of(folder, text, "study.yaml"))
    if found is None:
        return
    assert list(found.cells) == names
    base = yaml.safe_load(EXPERIMENT)
    for way, name in zip(itertools.product(*axes.values()), names, strict=True):
        expected = copy.deepcopy(base)
        for axis, value in zip(axes, way, strict=True):
            *parents, last = paths[axis].split(".")
            here = expected
            for key in parents:
                here = here.setdefault(key, {})
            here[last] = axes[axis][value]
        assert repr(found.cells[name].config) == repr(expected)


@given(st.dictionaries(WORDS, NODES, max_size=3), st.dictionaries(WORDS, NODES, max_size=3))
def test_a_merge_is_the_second_over_the_first(first, second):
    before = copy.deepcopy((first, second))
    merged = merge(first, second)
    assert repr((first, second)) == repr(before)
    assert list(merged) == [*first, *(key for key in second if key not in first)]
    for key, value in second.items():
        if isinstance(value, dict) and isinstance(first.get(key), dict):
            assert repr(merged[key]) == repr(merge(first[key], value))
        else:
            assert repr(merged[key]) == repr(value)
