"""Statements of articles about attention, with their sources and tests."""

from dataclasses import dataclass, field
from typing import Literal

from attention_vision.errors import InputError

Literature = Literal["confirmed", "partly", "contradicted", "no source", "open"]


@dataclass
class Trial:
    """One test of a statement: expectations of a study, or the number of a cell.

    Args:
        study: a study file; its results are found by this name.
        results: a file of experiments/results, if it is not the study's own.
        expect: expectations of the study that hold if the statement is true. Their verdicts are
            those of the report, corrected for all expectations of the study.
        cell: the cell whose number is stated, in the study's metric.
        stated: the stated number.
        tolerance: half-width around `stated` that still counts as agreement.

    Raises:
        InputError: neither a study nor results; neither expectations nor a number; or both.
    """

    study: str | None = None
    results: str | None = None
    expect: list[str] = field(default_factory=list)
    cell: str | None = None
    stated: float | None = None
    tolerance: float = 0.0

    def __post_init__(self):
        if not (self.study or self.results):
            raise InputError("names neither a study nor results")
        if (self.cell is None) is not (self.stated is None):
            raise InputError("cell and stated belong together")
        if bool(self.expect) is (self.cell is not None):
            raise InputError("needs either expect, or cell and stated")


@dataclass
class Statement:
    """One claim of an article: a file in experiments/claims.

    Args:
        statement: the claim in one sentence.
        kind: numeric if the article gives a number.
        stated: the number as quoted from the article; empty for a qualitative statement.
        source: primary source with its table, or the sources searched without success.
        says: the content of that source.
        literature: whether the source supports the statement: `confirmed`, `partly`,
            `contradicted`, `no source`, or `open` if there is nothing to look up.
        reason: the reason for `literature`, in one or two sentences.
        experiment: the experiment file at full scale.
        trials: tests at a scale that can be run here.
        tested: what the trials test in place of the statement, in one sentence; empty where they
            test the statement itself.

    Raises:
        InputError: an empty text, or a numeric statement without its number.
    """

    statement: str
    kind: Literal["numeric", "qualitative"]
    source: str
    says: str
    literature: Literature
    reason: str
    stated: str = ""
    experiment: str | None = None
    trials: list[Trial] = field(default_factory=list)
    tested: str = ""

    def __post_init__(self):
        for name in ("statement", "source", "says", "reason"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} is empty")
        if (self.kind == "numeric") is not bool(self.stated.strip()):
            raise InputError("a numeric statement gives its number in 'stated', no other does")
