"""Which results of a study belong together: one configuration, one data set, known code."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.identity import code_difference, data_difference
from attention_vision.report.shapes import LARGEST
from attention_vision.yaml_json import read_yaml

RunKey = tuple[str, int | None]  # cell and seed
# What a study asks for, which needs no run, with what it is where it is not given.
ASKED = {
    "question": None,
    "metric": None,
    "higher_is_better": True,
    "baseline": None,
    "expect": [],
    "effect": None,
    "looks": None,
}


def unlike_the_study(
    contents: Mapping[RunKey, dict[str, Any]], cells: Mapping[str, Any], metric: str
) -> Iterator[tuple[RunKey, str]]:
    """Yield the runs that do not count, with the reason: another configuration, or diverged."""
    for (cell, seed), content in contents.items():
        known = [(cells[cell] or {}).get(key) for key in ("config_sha256", "earlier_sha256")]
        if any(known) and content.get("config_sha256") not in known:
            yield (cell, seed), "was run with another configuration than the study has"
        elif key := not_finite(content["metrics"], metric):
            yield (cell, seed), f"has no finite {key}: it failed"


def unlike_the_others(
    contents: Mapping[RunKey, dict[str, Any]], cells: Mapping[str, Any]
) -> Iterator[tuple[RunKey, str]]:
    """Yield the runs on other data than most with the same data config, with the difference."""
    groups: dict[str, list[RunKey]] = {}
    for cell, seed in contents:
        groups.setdefault(str((cells[cell] or {}).get("data_sha256")), []).append((cell, seed))
    for group in groups.values():
        known = [run for run in group if contents[run].get("data")]
        usual = most_common([contents[run]["data"] for run in known])
        for run in known:
            words = data_difference(usual, contents[run]["data"])
            if words:
                count = sum(contents[one]["data"] == usual for one in known)
                yield run, f"is of other data than {count} other runs: {words}"


def most_common(values: Sequence[Any]) -> Any:
    """The value that occurs most often, the first of several; {} without values."""
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])] if values else {}


def by_other_code(contents: Mapping[RunKey, dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each version of the code but the most frequent one."""
    codes = {
        run: {**(content.get("versions") or {}), "commit": content.get("commit") or "unknown"}
        for run, content in contents.items()
    }
    usual = most_common(list(codes.values()))
    differing: dict[str, list[RunKey]] = {}
    for run, code in codes.items():
        if words := code_difference(code, usual):
            differing.setdefault(words, []).append(run)
    for words, runs in differing.items():
        yield f"code: {listed(runs)} of {len(codes)} runs: {words} as the others"


def listed(runs: Sequence[RunKey], shown: int = 4) -> str:
    """Name the first of several runs."""
    more = f" and {len(runs) - shown} more" if len(runs) > shown else ""
    return ", ".join(f"{cell} seed {seed}" for cell, seed in runs[:shown]) + more


def of_a_profile(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on a profile that changes the training."""
    if profile := plan.get("profile"):
        yield f"run with a profile, not as the study file says: {in_words(profile)}"


def changed_since(plan: Mapping[str, Any], again: bool = True) -> Iterator[str]:
    """Yield a sentence if the study file, where it is here, asks for something else by now.

    Args:
        plan: content of study.json, or of the study block of results.
        again: whether `study run` can take it over, which is said then.
    """
    file = Path(str(plan.get("file") or ""))
    try:
        now = read_yaml(file).get("study") if file.is_file() else None
    except (InputError, OSError):  # it is being edited, or the name of no file
        return
    if not isinstance(now, dict):
        return
    pairs = {key: (now.get(key, unset), plan.get(key, unset)) for key, unset in ASKED.items()}
    if "planned_seeds" in plan:
        pairs["seeds"] = now.get("seeds"), plan["planned_seeds"]
    words = [
        f"{key} is {in_words(here)}, not {in_words(there)}"
        for key, (here, there) in pairs.items()
        if here != there
    ]
    if words:
        same = ", with the --profile that it was run with," if plan.get("profile") else ""
        yield f"{file} has changed since: {'; '.join(words)}" + (
            f"; `attention-vision study run {file}`{same} takes it over" if again else ""
        )


def not_finite(metrics: Mapping[str, float | None], metric: str) -> str:
    """Return the key of a loss, or the metric itself, that is not finite; empty if none is.

    Other metrics may be undefined, such as the accuracy of a class without images.
    """
    for key, value in metrics.items():
        if (key == metric or key.rpartition("/")[2] == "loss") and not is_number(value):
            return key
    return ""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and small enough to be one of a measurement."""
    is_bool = isinstance(value, bool)
    return isinstance(value, int | float) and not is_bool and -LARGEST <= value <= LARGEST


def in_words(value: Any) -> str:
    """Format a value of a study file: its items, or its keys and values, with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return "nothing" if value is None else str(value)
