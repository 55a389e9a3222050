import os
import sys

# One thread for this process and those that tests start: small tensors gain nothing from more, and
# threads that wait for each other on busy cores are many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def modules_of_their_own():
    """Forget the folders in which tests of a file found modules: others have their own mine.py."""
    before = list(sys.path)
    yield
    added = tuple(f"{one}{os.sep}" for one in sys.path if one and one not in before)
    sys.path[:] = before
    if added:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(added):
                del sys.modules[name]
