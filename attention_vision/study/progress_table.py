"""Progress of a study as a live table on a terminal, otherwise as lines; the table of its cost."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from attention_vision.report.text_table import aligned
from attention_vision.study.definition import Study
from attention_vision.study.folder import Run, finished_result, last_error, read_progress
from attention_vision.training.pace import clock

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from attention_vision.study.preflight import Preflight


class ProgressTable:
    """Table with a row per cell and a column per seed: metric, finished percentage or state.

    On a terminal the table is redrawn in place about once a second; otherwise each start and end of
    a run is printed as a line.

    Args:
        study: the expanded study file.
        runs: all requested runs, finished ones included.
        jobs: number of runs at a time.
    """

    def __init__(self, study: Study, runs: Iterable[Run], jobs: int):
        self.study, self.runs, self.jobs = study, list(runs), jobs
        results = {run: finished_result(run) for run in self.runs}
        self.results: dict[Run, dict[str, Any]] = {run: one for run, one in results.items() if one}
        self.running: set[Run] = set()
        self.held: set[Run] = set()
        self.broken: set[Run] = set()
        self.on_terminal = sys.stdout.isatty()
        self._live: Live | None = None
        self._drawn = 0.0
        self._say(self.summary())

    def started(self, run: Run) -> None:
        self.held.discard(run)
        self.running.add(run)
        share = read_progress(run)["share"]
        self._say(f"started   {run}" + (f", from {share:.0%} on" if share else ""))

    def elsewhere(self, run: Run) -> None:
        """Mark a run that another runner holds."""
        self.running.discard(run)
        if run not in self.held:
            self._say(f"elsewhere {run}: another runner holds it")
        self.held.add(run)

    def finished(self, run: Run) -> None:
        self.running.discard(run)
        result = finished_result(run)
        assert result is not None, f"{run} has finished without a result"
        self.results[run] = result
        self._say(f"finished  {run}: {self.number(run)}, {clock(result['seconds'])}")
        self._say(self.summary())

    def failed(self, run: Run) -> None:
        self.running.discard(run)
        self.broken.add(run)
        self._say(f"failed    {run}: {last_error(run)}")

    def draw(self) -> None:
        """Redraw the table on a terminal, at most once a second."""
        if not self.on_terminal or time.monotonic() - self._drawn < 1:
            return
        if self._live is None:
            # Late: imported before Lightning, rich changes how jsonargparse reads the Trainer's
            # arguments (typing caches its Union[float, int] as equal to Union[int, float]).
            from rich.console import Console
            from rich.live import Live

            # No thread and no replaced streams: the workers are forked from this process.
            self._live = Live(
                console=Console(file=sys.stdout), auto_refresh=False, redirect_stdout=False,
                redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        self._live.update(self.renderable(), refresh=True)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Print the last state, with the last line of each error."""
        self._drawn = 0.0
        self.draw()
        if self._live is not None:
            self._live.stop()
        if not self.on_terminal:
            seeds = range(1, len(self.rows()[0]))
            print(self.summary(), aligned(self.rows(), right=seeds, gap=4), sep="\n")
        for run in sorted(self.broken, key=str):
            print(f"failed: {run}: {last_error(run)} (see {run.folder / 'log.txt'})")
        sys.stdout.flush()

    def renderable(self) -> "RenderableType":
        """Build summary and table for a terminal; rich shortens cells that do not fit its width."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head, *rows = self.rows()
        table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0), header_style="none")
        for column, title in enumerate(head):
            table.add_column(Text(title), justify="right" if column else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        return Group(Text(self.summary()), table)

    def summary(self) -> str:
        """One line: runs that are finished, running and failed, and the time left."""
        parts = [f"{self.study.name}: {len(self.results)} of {len(self.runs)} runs finished"]
        for runs, state in ((self.running, "running"), (self.broken, "failed")):
            if runs:
                parts.append(f"{len(runs)} {state}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {clock(left)} left")
        return ", ".join(parts)

    def rows(self) -> list[list[str]]:
        """Build the table: a header with the seeds, and one row per cell."""
        seeds = sorted({run.seed for run in self.runs})
        cells = list(dict.fromkeys(run.cell for run in self.runs))
        runs = {(run.cell, run.seed): run for run in self.runs}
        table = [[self.study.metric, *(f"seed {seed}" for seed in seeds)]]
        table += [[cell, *(self.state(runs[cell, seed]) for seed in seeds)] for cell in cells]
        return table

    def state(self, run: Run) -> str:
        """Metric of a finished run, percentage of a running one, or a word."""
        if run in self.results:
            return self.number(run)
        if run in self.broken:
            return "failed"
        if run in self.running or run in self.held:
            return f"{read_progress(run)['share']:.0%}"
        return "."

    def number(self, run: Run) -> str:
        """Format the study's metric of a finished run."""
        value = self.results[run]["metrics"].get(self.study.metric)
        return "nan" if value is None else f"{value:.4g}"

    def seconds_left(self) -> float | None:
        """Estimate the time left from finished runs of the same cell, or of all; None before."""
        todo = [run for run in self.runs if run not in self.results and run not in self.broken]
        expected: dict[Run, float] = {}
        for run in todo:
            share, seconds = (read_progress(run)[key] for key in ("share", "seconds"))
            same = [
                result["seconds"] for done, result in self.results.items() if done.cell == run.cell
            ]
            known = same or [result["seconds"] for result in self.results.values()]
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
        if not self.on_terminal:
            print(line, flush=True)


COST_COLUMNS = ("cell", "parameters", "MACs/image", "steps", "images", "time/step", "time/run")


def cost_table(
    study: Study,
    cells: list[str],
    preflights: "dict[str, Preflight]",
    seeds: Iterable[int],
    waiting: list[Run],
    jobs: int,
) -> str:
    """Format the expected cost of a study by cell; a dash marks what is not known here.

    Args:
        study: the expanded study file.
        cells: names of the rows.
        preflights: cost by name of the cell.
        seeds: the requested seeds.
        waiting: runs that are not finished.
        jobs: number of runs at a time.
    """
    rows: list[list[str]] = [list(COST_COLUMNS)]
    for cell in cells:
        one = preflights[cell]
        images = None if one.steps is None else one.steps * one.images
        counts = (one.parameters, one.macs, one.steps, images)
        times = (one.step_seconds, one.seconds)
        rows.append(
            [
                cell,
                *("-" if count is None else f"{count:,}" for count in counts),
                *("-" if seconds is None else clock(seconds) for seconds in times),
            ]
        )
    table = aligned(rows, right=range(1, len(COST_COLUMNS)))
    total = (
        f"{len(cells)} cells x {len(list(seeds))} seeds, {len(waiting)} runs to do,"
        f" {jobs} at a time"
    )
    seconds = [preflights[run.cell].seconds for run in waiting]
    known = [one for one in seconds if one is not None]
    if known and len(known) == len(seconds):
        total += f": about {clock(sum(known) / jobs)} of training steps, without validation"
    elif seconds:
        total += "; steps of epochs are counted if the data is here"
    return f"{table}\n{total}"
