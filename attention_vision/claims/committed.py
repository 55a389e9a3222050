"""Check of results files: do they still belong to their experiment, their code and its history?"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.claims.record import experiment_sha256
from attention_vision.errors import InputError
from attention_vision.report.consistency import changed_since, is_number
from attention_vision.report.results import parse_result, read_study
from attention_vision.report.shapes import RESULTS_FILE, check_shape, shown
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

REQUIRED = ("what", "command", "commit", "date", "hardware", "versions")
VERSION = re.compile(r"\d[\w.+-]*")
LINES = re.compile(r'\\[nrtbfu]|\]\[|"\[[^"\]]*\]:')  # in JSON: breaks, "[name]: address"
COMMIT = re.compile(r"([0-9a-f]{40})(-dirty)?")
# Reads a study file: hashes that results of each of its cells may have.
CellHashes = Callable[[Path], Mapping[str, set[str]]]


@dataclass(frozen=True)
class Check:
    """Outcome of a check of results files.

    Args:
        stale: sentences by file, for the files that have problems.
        remarks: sentences on what could not be compared.
    """

    stale: dict[Path, list[str]]
    remarks: list[str]


def check_results(files: Sequence[Path], root: Path, cells_of: CellHashes) -> Check:
    """Check results files against the repository.

    Args:
        files: the results files, of the repository or to be added to it.
        root: the repository.
        cells_of: reads the cells of a study file.
    """
    problems: dict[Path, list[str]] = {}
    contents: dict[Path, dict[str, Any]] = {}
    for file in files:
        try:
            contents[file] = read_results(file)
        except InputError as error:
            problems[file] = [str(error).removeprefix(str(file)).lstrip(":, ")]
    for file, content in contents.items():
        problems[file] = [*incomplete(content), *unlike_the_experiment(content, root, cells_of)]
    remarks = []
    if older := [file.name for file, content in contents.items() if is_older(content)]:
        remarks.append(f"older files, which do not name their configuration: {', '.join(older)}")
    for file, content in contents.items():
        remarks += (f"{file.name}: {words}" for words in asked_otherwise(content, root))
    for file, words in unknown_commits(contents, root, remarks):
        problems[file].append(words)
    return Check({file: found for file, found in problems.items() if found}, remarks)


def read_results(file: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        InputError: it is damaged, or contradicts itself.
    """
    content = read_json(file)
    check_shape(content, RESULTS_FILE, file)
    if "study" in content:
        read_study(file)
    for run in require({"runs": []} | content, "runs", list, file):
        parse_result(run, file)
    return content


def incomplete(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a results file lacks."""
    if missing := [key for key in REQUIRED if not content.get(key)]:
        yield f"without {', '.join(missing)}"
    if not (content.get("runs") or content.get("rows")):
        yield "without runs"
    for run in content.get("runs") or []:
        if not any(is_number(value) for value in run["metrics"].values()):
            yield f"{run['cell']}, seed {run.get('seed')}: without a number"
    if "](" in json.dumps(content):  # the pages would load or link what it names
        yield "a text has a link of Markdown: write the address alone"
    texts = json.dumps({key: content[key] for key in content if key != "rows"}, ensure_ascii=False)
    if LINES.search(texts.replace(r"\\", "")) or not texts.isprintable():
        yield "a text has a line break, a control character or a reference of Markdown"
    yield from unreadable_versions(content.get("versions") or {})


def asked_otherwise(content: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield a sentence if a plan of results is not that of their study file now.

    Files of before version 0.2, which have no planned seeds, are not compared.
    """
    plan = content.get("study") or {}
    file = root / ((content.get("what") or {}).get("experiment") or "")
    if plan.get("seeds") and file.suffix == ".yaml":
        yield from changed_since(
            {**plan, "planned_seeds": plan["seeds"], "file": str(file)}, again=False
        )


def unreadable_versions(versions: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each text that is not a version."""
    for name, version in versions.items():
        if not VERSION.fullmatch(version):
            yield f"versions: {name} {shown(version)} is not a version"


def unlike_the_experiment(
    content: Mapping[str, Any], root: Path, cells_of: CellHashes
) -> Iterator[str]:
    """Yield how results differ from their experiment as it is now."""
    path = (content.get("what") or {}).get("experiment") or ""
    file, parts = root / path, Path(path).parts
    if parts[:1] != ("experiments",) or ".." in parts or not file.exists():
        yield f"its experiment '{path}' is not in the repository"
        return
    if file.suffix != ".yaml" or (content.get("study") or {}).get("profile"):
        return  # a folder of experiments, a program, or a configuration that a profile changed
    runs = content.get("runs") or []
    try:
        experiment = read_yaml(file)
        if "study" in experiment:
            known = cells_of(file)
            for cell in dict.fromkeys(run["cell"] for run in runs if run["cell"] not in known):
                yield f"'{cell}' is not a cell of {path}"
        else:
            known = {run["cell"]: {experiment_sha256(experiment)} for run in runs}
        if "claim" in experiment:
            claim = read_dataclass(Claim, experiment["claim"], f"{path}: claim")
            if any(claim.metric not in run["metrics"] for run in runs):
                yield f"a run has no {claim.metric}, the metric of the claim of {path}"
    except InputError as error:
        yield str(error)
        return
    for cell, hashes in known.items():
        given = [run for run in runs if run["cell"] == cell and "config_sha256" in run]
        if others := [run["seed"] for run in given if run["config_sha256"] not in hashes]:
            seeds = ", ".join(map(str, others))
            yield f"{cell}, seeds {seeds}: measured with another configuration than {path} has now"


def is_older(content: Mapping[str, Any]) -> bool:
    """Whether results of an experiment do not name the configuration that they are of."""
    path = str((content.get("what") or {}).get("experiment"))
    runs = content.get("runs") or []
    return path.endswith(".yaml") and not all("config_sha256" in run for run in runs)


def unknown_commits(
    contents: Mapping[Path, Mapping[str, Any]], root: Path, remarks: list[str]
) -> Iterator[tuple[Path, str]]:
    """Yield the files whose commit the repository does not have, and the reason.

    Without git or without the history nothing is compared, which is added to the remarks.
    """
    try:
        shallow = git(root, "rev-parse", "--is-shallow-repository").strip() == "true"
        inside = git(root, "rev-parse", "--show-prefix").strip()
    except (OSError, subprocess.CalledProcessError):
        remarks.append("commits were not compared: this is not a repository of git")
        return
    if inside:
        remarks.append(f"commits were not compared: {inside} is a folder of another repository")
        return
    if shallow:
        remarks.append("commits were not compared: the clone is shallow (git fetch --unshallow)")
        return
    commits = {}
    for file, content in contents.items():
        commit = str(content.get("commit") or "")
        if match := COMMIT.fullmatch(commit):
            commits[file] = match[1]
        elif commit:
            yield file, f"commit '{commit}' is not a hash of 40 digits"
    asked = "".join(f"{commit}^{{commit}}\n" for commit in commits.values())
    answers = git(root, "cat-file", "--batch-check", text=asked).splitlines()
    for (file, commit), answer in zip(commits.items(), answers, strict=True):
        if answer.endswith("missing"):
            yield file, f"commit {commit[:12]} is not in the history of this repository"


def git(root: Path, *words: str, text: str = "") -> str:
    """Run a command of git in a repository, with a text as its input."""
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
