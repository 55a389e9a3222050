"""A plugin of pytest: tensors are made on the device that TEST_DEVICE names.

    TEST_DEVICE=cuda PYTHONPATH=experiments/gpu python -m pytest -p on_device tests/attention

TF32 is off. What a test itself says of the CPU (`torch.autocast("cpu")`, numpy) fails there by
itself: read such a failure before believing it.
"""

import os

import torch


def pytest_configure() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_device(os.environ.get("TEST_DEVICE", "cuda"))
