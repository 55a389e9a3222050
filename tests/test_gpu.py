"""What only a GPU can show: it computes what the CPU does, and runs go on bit by bit.

    python -m pytest tests/test_gpu.py          # skipped where there is no CUDA device

More of it, and how fast it all is: experiments/gpu.
"""

import copy

import pytest
import test_compile
import torch
import yaml
from test_contracts import CASES, Case, build
from torch import Tensor, nn

from attention_vision.attention import attention_backend
from attention_vision.runs.command import fit as fit_work
from attention_vision.runs.command import prepare

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WAYS = {  # type, autocast, backend, and how far outputs and gradients may be from float64's
    "float64": (torch.float64, False, "fused", 1e-9),
    "float32": (torch.float32, False, "fused", 1e-4),
    "eager": (torch.float32, False, "eager", 1e-4),
    "fp8": (torch.float32, False, "fp8", 2**-4),
    "bf16": (torch.float32, True, "fused", 5e-2),
}


@pytest.fixture(autouse=True)
def no_tf32():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def results(
    module: nn.Module, inputs: list[Tensor], device: str, dtype: torch.dtype, autocast: bool
) -> tuple[Tensor, Tensor]:
    """The output, and all gradients as one vector."""
    module = copy.deepcopy(module).to(device, dtype)
    inputs = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        y = module(*inputs)
    y.double().square().mean().backward()
    gradients = [leaf.grad for leaf in (*inputs, *module.parameters())]
    return y.detach().double().cpu(), torch.cat([g.flatten().double().cpu() for g in gradients])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mechanism_equals_itself_on_the_cpu(case: Case, way: str):
    dtype, autocast, backend, bound = WAYS[way]
    module, inputs = build(case)
    expected = results(module, inputs, "cpu", torch.float64, False)
    with attention_backend(backend):
        found = results(module, inputs, DEVICE, dtype, autocast)
    for ours, exact, times in zip(found, expected, (1, 4), strict=True):
        assert ours.isfinite().all()
        assert (ours - exact).norm() <= times * bound * exact.norm()


def fit(tmp_path, name: str, run: str, *arguments: str, **trainer: object) -> dict[str, Tensor]:
    """Two steps an epoch, and a validation -> the weights afterwards, on the CPU."""
    task = name.split()[0]
    trainer = {"accelerator": "gpu" if DEVICE == "cuda" else "cpu"} | trainer
    config = {"task": task, "trainer": test_compile.TRAINER | trainer}
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(config | yaml.safe_load(test_compile.EXPERIMENTS[name])))
    if name == "generation":
        arguments = ("--model.scorer", "Unscored", *arguments)
    words = ["-c", str(file), "--run", str(tmp_path / run), *arguments]
    work = prepare(task, "fit", words)
    fit_work(work)
    return {key: value.cpu().clone() for key, value in work.objects.module.state_dict().items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", test_compile.EXPERIMENTS)
def test_every_task_trains(tmp_path, monkeypatch, name: str, precision: str):
    monkeypatch.setattr("sys.argv", ["attention-vision"])
    weights = fit(tmp_path, name, "run", precision=precision)
    assert all(value.isfinite().all() for value in weights.values())
    # What is drawn on the device, noise and proposals, differs from the CPU's.
    if precision == "32-true" and name in ("classification", "detection"):
        of_cpu = fit(tmp_path, name, "cpu", accelerator="cpu")
        for key, value in of_cpu.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-3, msg=key)


def test_a_resumed_run_is_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["attention-vision"])
    whole = fit(tmp_path, "classification", "whole", max_epochs=2)
    fit(tmp_path, "classification", "cut", max_epochs=1)
    resumed = fit(tmp_path, "classification", "cut", "--ckpt_path", "last", max_epochs=2)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
