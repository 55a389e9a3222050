"""Plain-text tables with aligned columns, for every command that prints one."""

import re
from collections.abc import Collection, Sequence

from tabulate import DataRow, TableFormat, tabulate

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
GAP = 3  # spaces between two columns


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = (), gap: int = GAP) -> str:
    """Aligns the columns of a table, all of its rows alike.

    Args:
        rows: cells of each row, the same number in all of them.
        right: columns that are flush right, such as those of numbers; the others are flush left.
        gap: spaces between two columns.

    Returns:
        One line per row, without a line break at the end.
    """
    if not rows:
        return ""
    row = DataRow("", " " * gap, "")
    layout = TableFormat(None, None, None, None, row, row, padding=0, with_header_hide=None)
    sides = ["right" if column in right else "left" for column in range(len(rows[0]))]
    return tabulate(rows, tablefmt=layout, colalign=sides, disable_numparse=True)


def printable(text: str) -> str:
    """Replace characters that a terminal obeys instead of showing, such as those of colors."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
