"""The progress of a study on a terminal, and as lines where there is none."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attention_vision.study.definition import Study
from attention_vision.study.folder import Run, last_error, read_progress, read_result

if TYPE_CHECKING:
    from attention_vision.study.preflight import Inspection


class Table:
    """Cells in rows, seeds in columns: a number, a share, a state.

    On a terminal the table is drawn over itself, about once a second; elsewhere each start and end
    is a line.

    Args:
        runs: all that were asked for, finished ones included.
        jobs: how many run at a time.
    """

    def __init__(self, study: Study, runs: Iterable[Run], jobs: int):
        self.study, self.runs, self.jobs = study, list(runs), jobs
        self.results = {run: read_result(run) for run in self.runs}
        self.results = {run: result for run, result in self.results.items() if result}
        self.running: set[Run] = set()
        self.held: set[Run] = set()
        self.broken: set[Run] = set()
        self.live = sys.stdout.isatty()
        self._lines, self._drawn = 0, 0.0
        self._say(self.summary())

    def started(self, run: Run) -> None:
        self.held.discard(run)
        self.running.add(run)
        share = read_progress(run)["share"]
        self._say(f"started   {run}" + (f", from {share:.0%} on" if share else ""))

    def elsewhere(self, run: Run) -> None:
        """Another runner is at it."""
        self.running.discard(run)
        if run not in self.held:
            self._say(f"elsewhere {run}: another runner is at it")
        self.held.add(run)

    def finished(self, run: Run) -> None:
        self.running.discard(run)
        self.results[run] = result = read_result(run)
        self._say(f"finished  {run}: {self.number(run)}, {clock(result['seconds'])}")
        self._say(self.summary())

    def failed(self, run: Run) -> None:
        self.running.discard(run)
        self.broken.add(run)
        self._say(f"failed    {run}: {last_error(run)}")

    def draw(self) -> None:
        if not self.live or time.monotonic() - self._drawn < 1:
            return
        self._drawn = time.monotonic()
        lines = [self.summary(), *self.rows()]
        sys.stdout.write((f"\x1b[{self._lines}A" if self._lines else "") + "\x1b[J")
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        self._lines = len(lines)

    def close(self) -> None:
        """The last state, with the last error line of what failed."""
        self._drawn = 0.0
        self.draw()
        if not self.live:
            print(self.summary(), *self.rows(), sep="\n")
        for run in sorted(self.broken, key=str):
            print(f"failed: {run}: {last_error(run)} (see {run.folder / 'log.txt'})")
        sys.stdout.flush()

    def summary(self) -> str:
        words = [f"{self.study.name}: {len(self.results)} of {len(self.runs)} runs finished"]
        for count, what in ((self.running, "running"), (self.broken, "failed")):
            if count:
                words.append(f"{len(count)} {what}")
        left = self.seconds_left()
        if left is not None:
            words.append(f"about {clock(left)} left")
        return ", ".join(words)

    def rows(self) -> list[str]:
        seeds = sorted({run.seed for run in self.runs})
        cells = list(dict.fromkeys(run.cell for run in self.runs))
        places = {(run.cell, run.seed): run for run in self.runs}
        width = max(map(len, [*cells, self.study.metric]))
        head = f"{self.study.metric:<{width}}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds)
        table = [head]
        for cell in cells:
            states = [self.state(places[cell, seed]) for seed in seeds]
            table.append(f"{cell:<{width}}" + "".join(f"{state:>10}" for state in states))
        return table

    def state(self, run: Run) -> str:
        if run in self.results:
            return self.number(run)
        if run in self.broken:
            return "failed"
        if run in self.running or run in self.held:
            return f"{read_progress(run)['share']:.0%}"
        return "."

    def number(self, run: Run) -> str:
        value = self.results[run]["metrics"].get(self.study.metric)
        return "nan" if value is None else f"{value:.4g}"

    def seconds_left(self) -> float | None:
        """From the runs of the same cell that are finished, or of all cells; None before."""
        todo = [run for run in self.runs if run not in self.results and run not in self.broken]
        expected = {}
        for run in todo:
            share, seconds = (read_progress(run)[key] for key in ("share", "seconds"))
            same = [
                result["seconds"] for done, result in self.results.items() if done.cell == run.cell
            ]
            every = [result["seconds"] for result in self.results.values()]
            known = same or every
            if known:
                expected[run] = sum(known) / len(known) * (1 - share)
            elif share > 0.02:
                expected[run] = seconds / share * (1 - share)
        if not expected or not todo:
            return None
        mean = sum(expected.values()) / len(expected)
        total = sum(expected.get(run, mean) for run in todo)
        return max(total / self.jobs, max(expected.values()))

    def _say(self, line: str) -> None:
        if not self.live:
            print(line, flush=True)


def clock(seconds: float) -> str:
    """2.4 s, 41 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def costs(
    study: Study,
    cells: list[str],
    inspections: "dict[str, Inspection]",
    seeds: Iterable[int],
    waiting: list[Run],
    jobs: int,
) -> str:
    """What a study would cost, by cell; a dash where that is not known here."""
    seeds = list(seeds)
    width = max(map(len, [*cells, "cell"]))
    head = f"{'cell':<{width}}{'parameters':>14}{'MACs/image':>14}{'steps':>9}{'images':>12}"
    lines = [f"{head}{'time/step':>12}{'time/run':>12}"]
    for cell in cells:
        one = inspections[cell]
        images = None if one.steps is None else one.steps * one.images
        row = "".join(
            f"{'-' if value is None else f'{value:,}':>{columns}}"
            for value, columns in (
                (one.parameters, 14),
                (one.macs, 14),
                (one.steps, 9),
                (images, 12),
            )
        )
        times = "".join(
            f"{'-' if seconds is None else clock(seconds):>12}"
            for seconds in (one.step_seconds, one.seconds)
        )
        lines.append(f"{cell:<{width}}{row}{times}")
    words = f"{len(cells)} cells x {len(seeds)} seeds, {len(waiting)} runs to do, {jobs} at a time"
    known = [inspections[run.cell].seconds for run in waiting]
    if known and None not in known:
        words += f": about {clock(sum(known) / jobs)} of training steps, validations not counted"
    elif known:
        words += "; steps of epochs are counted where the data is"
    return "\n".join([*lines, words])
