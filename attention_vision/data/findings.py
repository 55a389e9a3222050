"""What a data set noticed while it was read: left out, repaired, worth a warning."""

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Notes of one split.

    Attributes:
        left_out: kind of what was left out -> its paths.
        repaired: lines that count what was repaired.
        warnings: lines on what looks wrong.
        broken: image that does not decode -> reason; they are left out too.
    """

    left_out: dict[str, list[str]] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
