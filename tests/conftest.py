import sys
from pathlib import Path

import pytest
import torch

for folder in (".", "attention"):  # redraw.py and naive.py are imported by name
    sys.path.insert(0, str(Path(__file__).parent / folder))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
