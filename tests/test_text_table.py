"""Plain-text tables: columns line up, cells stay as they are."""

import pytest

from attention_vision.report.text_table import aligned


def test_columns_line_up():
    rows = [["", "parameters", "kind"], ["SE-ResNet ± 2", "1,000", "gate"], ["a", "–", ""]]
    assert aligned(rows, right=[1]) == "\n".join(
        [
            "                parameters   kind",
            "SE-ResNet ± 2        1,000   gate",
            "a                        –",
        ]
    )


@pytest.mark.parametrize("cell", ["1e3", "007", "+0.10", "nan", "1,000", "0x10", "True", "[a, b]"])
def test_cells_are_not_read_as_numbers(cell):
    assert aligned([[cell, "x"]]) == f"{cell}   x"


def test_no_rows():
    assert aligned([]) == ""
