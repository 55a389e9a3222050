"""Forest plot of differences as SVG, written as text: equal on every machine, without a library.

Label and verdict stand above each line, so that the plot is narrow and stays readable on a phone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import floor, log10

from attention_vision.report.text_table import printable

WIDTH, MARGIN = 520, 10  # user units, which are pixels where there is room
NUMBER = 92  # for verdict and number to the right of a line
COLORS = {
    "supported": "#1a7f5a",
    "contradicted": "#b3402e",
    "no difference": "#0072b2",
    "undecided": "#8a6d1d",
}
INK, SOFT, SHADE = "#1d1c1a", "#6b675f", "#e9e6de"


@dataclass(frozen=True)
class Line:
    """One difference.

    Args:
        label: the comparison.
        number: the mean as text.
        mean: mean of the difference.
        interval: its confidence interval; None without one.
        verdict: one of `COLORS`; empty for a difference that nothing was expected of.
        values: difference of each seed, drawn as rings.
        effect: the smallest difference that matters, drawn as a band around zero.
    """

    label: str
    number: str
    mean: float
    interval: tuple[float, float] | None
    verdict: str = ""
    values: Sequence[float] = ()
    effect: float | None = None

    @property
    def ends(self) -> list[float]:
        """All numbers that have to fit on the axis."""
        band = (-self.effect, self.effect) if self.effect else ()
        return [self.mean, *(self.interval or ()), *self.values, *band]


@dataclass
class Axis:
    """Lines in one unit on one axis.

    Args:
        title: name of the unit.
        parts: heading -> the lines below it.
    """

    title: str
    parts: dict[str, list[Line]] = field(default_factory=dict)

    def scale(self) -> tuple[float, float]:
        """Lowest and highest number, with zero and some room at both ends."""
        ends = [0.0, *(end for lines in self.parts.values() for line in lines for end in line.ends)]
        low, high = min(ends), max(ends)
        room = 0.04 * (high - low) or 1.0
        return low - room, high + room


def draw(axes: Sequence[Axis], title: str) -> str:
    """Draw all axes below each other, with a legend of the verdicts."""
    used = {line.verdict for axis in axes for lines in axis.parts.values() for line in lines}
    parts, top = legend([verdict for verdict in COLORS if verdict in used])
    for axis in axes:
        drawn, top = draw_axis(axis, top)
        parts += drawn
    height = round(top + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{INK}">\n<title>{escape(printable(title))}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def legend(verdicts: Sequence[str]) -> tuple[list[str], float]:
    """Draw the marks of the verdicts; return them with the y below them."""
    parts, x = [], float(MARGIN)
    for verdict in verdicts:
        parts += [mark(verdict, x + 6, 18), text(x + 16, 22, verdict)]
        x += 32 + 7.2 * len(verdict)
    return parts, 34.0 if verdicts else 6.0


def draw_axis(axis: Axis, top: float) -> tuple[list[str], float]:
    """Draw the lines of an axis from y = top on; return them with the y below them."""
    low, high = axis.scale()
    right = WIDTH - MARGIN - NUMBER

    def place(value: float) -> float:
        return MARGIN + (right - MARGIN) * (value - low) / (high - low)

    parts, y = [text(MARGIN, top + 20, axis.title, weight="bold", size=15)], top + 30
    start = y
    lines: list[str] = []
    for heading, members in axis.parts.items():
        if heading:
            lines.append(text(MARGIN, y + 14, heading, color=SOFT))
            y += 20
        for line in members:
            lines += draw_line(line, y, place)
            y += 38
    ticks = ticks_between(low, high)
    for tick, label in ticks:
        color = SOFT if tick == 0 else SHADE
        parts.append(stroke(place(tick), start, place(tick), y, color, 1))
        parts.append(text(place(tick), y + 14, label, anchor="middle", color=SOFT, size=12))
    return parts + lines, y + 24


def draw_line(line: Line, y: float, place: Callable[[float], float]) -> list[str]:
    """Draw one difference: label and verdict, below them interval, mean, seeds and number."""
    color, middle = COLORS.get(line.verdict, SOFT), y + 25
    label = line.label if len(line.label) <= 58 else f"{line.label[:57]}…"
    whole = printable(f"{line.label}: {line.number} {line.verdict}".strip())
    parts = [f"<g><title>{escape(whole)}</title>"]
    parts.append(text(MARGIN, y + 13, label))
    parts.append(text(WIDTH - MARGIN, y + 13, line.verdict, anchor="end", color=color))
    if line.effect:
        left, right = place(-line.effect), place(line.effect)
        parts.append(
            f'<rect x="{left:.1f}" y="{middle - 8:.1f}" width="{right - left:.1f}" height="16" '
            f'fill="{SHADE}"/>'
        )
    if line.interval:
        parts.append(
            stroke(place(line.interval[0]), middle, place(line.interval[1]), middle, color, 2.5)
        )
    parts += [
        f'<circle cx="{place(value):.1f}" cy="{middle:.1f}" r="3" fill="none" stroke="{color}" '
        'stroke-width="0.8"/>'
        for value in line.values
    ]
    parts.append(mark(line.verdict, place(line.mean), middle))
    parts.append(text(WIDTH - MARGIN, middle + 5, line.number, anchor="end"))
    return [*parts, "</g>"]


def mark(verdict: str, x: float, y: float) -> str:
    """Draw the mark of a verdict, which its shape tells as well as its color."""
    color = COLORS.get(verdict, SOFT)
    if verdict == "contradicted":
        path = f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
        return f'<path d="{path}" fill="{color}"/>'
    if verdict == "no difference":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{color}"/>'
    fill = "#ffffff" if verdict == "undecided" else color
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{color}" '
        'stroke-width="2"/>'
    )


def stroke(x: float, y: float, to_x: float, to_y: float, color: str, width: float) -> str:
    """Draw a straight line."""
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"/>'


def text(
    x: float, y: float, words: str, anchor: str = "start", color: str = INK, weight: str = "",
    size: int = 13,
) -> str:  # fmt: skip
    """Write a text."""
    style = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"'  # legible on lines
    style += f' font-weight="{weight}"' if weight else ""
    style += f' text-anchor="{anchor}"' if anchor != "start" else ""
    style += f' fill="{color}"' if color != INK else ""
    style += f' font-size="{size}"' if size != 13 else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(printable(words))}</text>'


def ticks_between(low: float, high: float) -> list[tuple[float, str]]:
    """Three to six round numbers of an axis, with their texts."""
    step = 10 ** floor(log10((high - low) / 2.5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) < 6)
    first = -floor(-low / step)
    places = max(0, -floor(log10(step)))
    ticks = []
    while first * step <= high:
        value = first * step
        ticks.append((value, short(value, places)))
        first += 1
    return ticks


def short(value: float, places: int) -> str:
    """Format the number of a tick: "-0.05", "2 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g} {unit}".replace("-", "−")
    return f"{value:.{places}f}".replace("-", "−") if value else "0"
