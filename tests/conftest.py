import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # redraw.py and the like serve several folders


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
