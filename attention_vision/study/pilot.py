"""Power of a study before it runs, from the runs that there are; imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path

from attention_vision.errors import InputError
from attention_vision.report.power import (
    Power,
    Spread,
    binomial_spread,
    compared_cells,
    count,
    measured_spread,
    planned_power,
    sentences,
)
from attention_vision.report.results import MeasuredStudy, read_study
from attention_vision.report.statistics import Expectation, Values, paired_difference
from attention_vision.report.text_table import aligned
from attention_vision.study.definition import Study
from attention_vision.yaml_json import read_json

Pilot = tuple[Mapping[str, Values], str]  # values by cell and seed; where they are, in words


def committed_results(study: Study) -> MeasuredStudy | None:
    """Newest results file of a study in experiments/results, two folders above its file.

    None if there is none, or if it is damaged or of another metric.
    """
    file, found = study.file.resolve(), []
    for path in (file.parent.parent / "results").glob("*.json"):
        try:
            content = read_json(path)
            experiment = (content.get("what") or {}).get("experiment")
            if experiment and file.as_posix().endswith(f"/{experiment}"):
                found.append((str(content.get("date")), path.name, read_study(path)))
        except (InputError, AttributeError):
            continue
    newest = max(found, key=lambda one: one[:2], default=None)
    return newest[2] if newest and newest[2].metric == study.metric else None


def pilots(study: Study, folder: Path, cells: Mapping[str, Values]) -> list[Pilot]:
    """Runs from which the spread of a study may be estimated, the best ones first.

    Args:
        study: the expanded study file.
        folder: folder of the study.
        cells: values of its finished runs, by cell and seed.
    """
    found: list[Pilot] = [(cells, f"in {folder}")]
    if committed := committed_results(study):
        values = {cell: committed.values(cell) for cell in committed.cells if cell in study.cells}
        found.append((values, f"in experiments/results/{committed.name}.json"))
    return found


def study_power(
    study: Study, pilots: list[Pilot], images: int | None
) -> tuple[Power, Pilot] | None:
    """Power of a study at the end of its plan, and the runs that it is estimated from.

    The spread is that of the first pilot with two seeds of two cells; else the binomial floor, with
    the error of the baseline in a pilot or, without one, an assumed error.

    Args:
        study: the expanded study file.
        pilots: see `pilots`.
        images: that the metric is measured on; None if not known.

    Returns:
        None without expectations, or if nothing is known of the spread.
    """
    if not study.expect:
        return None
    expectations = [Expectation.parse(line) for line in study.expect]
    names = compared_cells(expectations, list(study.cells))
    accuracy: float | None = None
    spread: Spread | None = None
    pilot: Pilot = {}, ""
    for values, where in pilots:
        compared = {cell: values[cell] for cell in names if cell in values}
        spread = measured_spread(compared, where)
        if spread is not None:
            pilot = compared, where
            break
        base = list(values.get(study.baseline, {}).values())
        accuracy = sum(base) / len(base) if base and accuracy is None else accuracy
    spread = spread or binomial_spread(study.metric, accuracy, images)
    power = planned_power(spread, study.plan, expectations, len(study.seeds))
    return None if power is None else (power, pilot)


def power_text(study: Study, found: tuple[Power, Pilot] | None) -> str:
    """Format the power of a study: what each expectation will show, and what an effect needs."""
    if found is None:
        return f"power: nothing is known of the spread of {study.metric} before the first two seeds"
    power, (values, _) = found
    lines = [f"power: {line}" for line in sentences(power)]
    rows = [["expected", "visible above", "seeds needed", "pilot"]]
    for line in study.expect:
        one = Expectation.parse(line)
        first, second = values.get(one.first, {}), values.get(one.second, {})
        mean = paired_difference(first, second).mean
        least = f"{one.by:.15g} + {power.visible:.3g}" if one.by else f"{power.visible:.3g}"
        needed = "-" if power.effect is None else count(power.needed)
        rows.append([line, least, needed, "-" if mean is None else f"{mean:+.3g}"])
    return "\n".join([aligned(rows, right=(1, 2, 3)), *lines])
