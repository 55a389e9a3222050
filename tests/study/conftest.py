from pathlib import Path

import pytest
from studies import ONE_SEED, run, write_study


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of a finished study with one seed, run by two workers; read-only."""
    place = tmp_path_factory.mktemp("whole")
    file = write_study(place, ONE_SEED)
    code, printed = run(file, "--folder", place / "whole", "--jobs", 2, output=place / "printed")
    assert code == 0, printed
    assert "run folder" not in printed  # the output of the runs is in their logs
    assert "study: 2 of 2 runs finished" in printed
    return place / "whole"
