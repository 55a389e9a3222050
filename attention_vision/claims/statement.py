"""What an article says about attention, what its source says, and where it is put to the test."""

from dataclasses import dataclass, field
from typing import Literal

from attention_vision.errors import InputError

Literature = Literal["confirmed", "partly", "contradicted", "no source", "open"]


@dataclass
class Trial:
    """One place where a statement is tested: orderings of cells in a study, or a cell's number.

    Args:
        study: a study file; its results are found by that name.
        results: a file of experiments/results, where it is not the study's own.
        expect: those of the study's expectations that hold if the statement is true. Their verdicts
            are the report's, corrected for all that the study expects.
        cell: the cell whose number the statement gives, in the study's metric.
        stated: that number.
        tolerance: half-width around it that still agrees.

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
        kind: numeric where the article gives a number.
        stated: the article's number, as it stands there; empty for a qualitative one.
        source: primary source with its table, or what was searched in vain.
        says: what that source says.
        literature: whether it bears the statement out: `confirmed`, `partly`, `contradicted`,
            `no source`, or `open` where there is nothing to look up.
        reason: why, in a sentence or two.
        experiment: the experiment file at full scale.
        trials: where it is tested at a scale that can be run here.

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

    def __post_init__(self):
        for name in ("statement", "source", "says", "reason"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} is empty")
        if (self.kind == "numeric") is not bool(self.stated.strip()):
            raise InputError("a numeric statement gives its number in 'stated', no other does")
