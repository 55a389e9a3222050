import os

# One thread for this process and those that tests start: small tensors gain nothing from more, and
# threads that wait for each other on busy cores are many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
