"""Damaged files of studies and claims: each value replaced or gone is a report, or one line."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_folders import write_file, write_folder

from attention_vision.errors import InputError
from attention_vision.report import html, tables
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report

WRONG = [
    None, True, -1, 1e308, 10**400, float("nan"), float("inf"), "x", "a\nb", "../..", [], [None],
    {"a": {"b": [1]}}, "\ud800",
]  # fmt: skip
GONE = object()
COMMON = {
    "data": {"classes": {"count": 3, "names": "a"}, "train": {"samples": 3, "labels": "b"}},
    "versions": {"torch": "2"},
    "commit": "c" * 40,
}


def paths(node: Any, here: tuple = ()) -> Iterator[tuple]:
    yield here
    items = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list) else items:
        yield from paths(value, (*here, key))


def spoiled(content: Any) -> Iterator[tuple[tuple, Any]]:
    """The content with each of its values replaced by each wrong one, and without it."""
    for path in paths(content):
        for value in [*WRONG, GONE] if path else WRONG:
            changed = copy.deepcopy(content)
            *above, last = path or (None,)
            node = changed
            for key in above:
                node = node[key]
            if value is GONE:
                del node[last]
            elif path:
                node[last] = value
            else:
                changed = value
            yield (path, value), changed


def report(place: Path) -> None:
    found = Report.of(read_study(place))
    for render in (tables.text, tables.comma_separated, tables.markdown, tables.latex):
        render(found).encode()
    html.render_page(found, {}).encode()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["study.json", "cells/se/seed0/result.json", "results.json"])
def test_any_wrong_value_is_a_report_or_one_line(name, tmp_path):
    folder = write_folder(tmp_path / "channel_attention")
    for file in [*folder.glob("cells/*/*/result.json"), folder / "study.json"]:
        content = json.loads(file.read_text()) | COMMON
        file.write_text(json.dumps(content | {"profile": {"a": 1}}))
    runs = {"none": {0: 0.9, 1: 0.8}, "se": {0: 0.93}, "cbam": {0: 0.9}}
    more = COMMON | {"budget": {"epochs": 3}, "notes": ["n"], "command": ["c"], "hardware": "h"}
    whole = write_file(tmp_path / "results.json", runs, **more)
    file, place = (whole, whole) if name == "results.json" else (folder / name, folder)
    text, outcomes = file.read_text(), Counter()
    for what, changed in spoiled(json.loads(text)):
        file.write_text(json.dumps(changed))
        try:
            report(place)
            outcomes["report"] += 1
        except InputError as error:
            outcomes["line" if len(str(error)) < 600 else str(what)] += 1
        except Exception as error:
            raise AssertionError(what) from error
    assert outcomes.keys() == {"report", "line"}
    assert min(outcomes.values()) > 50
