"""Training steps of every task on a GPU that does not exist: wrong devices and waits show.

Tensors of a `FakeTensorMode` have a device and a shape, and no numbers. A tensor that is made on the
CPU by mistake meets those of the device and raises, on any machine; code that asks for numbers of
the device, for which a GPU's host would wait, is counted. Nothing is differentiated: autograd would
ask the driver.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from finite_runs import DATA, MODULES
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from attention_vision.training.finite import StepAverage
from attention_vision.training.progress import ProgressLines

GPU = torch.device("cuda:0")
STEPS = 3
ATEN = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes each question for numbers of the device, and answers it so that the code goes on.

    Numbers are 1, conditions are true; a copy on the CPU is of real zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], Tensor) else torch.empty(0)
        if function is ATEN._local_scalar_dense.default:
            self.note(source)
            return True if source.dtype == torch.bool else 1.0 if source.is_floating_point() else 1
        if function is ATEN._to_copy.default and kwargs.get("device", GPU).type == "cpu":
            self.note(source)
            if source.device == GPU:
                with unset_fake_temporarily():
                    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if function is ATEN.nonzero.default:
            self.note(source)
            return torch.zeros(source.numel(), source.ndim, dtype=torch.int64, device=source.device)
        if function is torch.ops.torchvision.nms.default:
            self.note(source)
            return torch.arange(len(source), device=source.device)
        if function in (ATEN.index.Tensor, ATEN.index_put_.default):
            args = (source, [self.numbers(one) for one in args[1]], *args[2:])
        return function(*args, **kwargs)

    def numbers(self, index: Tensor | None) -> Tensor | None:
        """An index by conditions as one by numbers: those of the first positions."""
        if index is None or index.dtype != torch.bool:
            return index
        self.note(index)
        assert index.ndim == 1
        return torch.arange(len(index), device=index.device)

    def note(self, source: Tensor) -> None:
        if source.device == GPU:
            frames = [one for one in traceback.extract_stack() if one.filename != __file__]
            ours = [one for one in frames if "attention_vision" in one.filename] or frames
            self.lines.append(f"{ours[-1].filename}:{ours[-1].lineno} {ours[-1].line}")


class Batches:
    """A loader of batches that are at hand: no tensor is made when they are read."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class FakeGPU(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class OnFakeGPU(SingleDeviceStrategy):
    """On the CPU until the module is moved: fake modules cannot be moved again."""

    def __init__(self, modes: ExitStack, waits: Waits):
        super().__init__(torch.device("cpu"))
        self.modes, self.waits = modes, waits

    def model_to_device(self) -> None:
        self.modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self.modes.enter_context(self.waits)
        self._root_device = GPU
        super().model_to_device()
        assert self.lightning_module is not None
        for one in self.lightning_module.trainer.callbacks:
            if isinstance(one, StepAverage):
                one._average_model.module.to(GPU)

    def teardown(self) -> None:
        pass


class Stop(Exception):
    pass


class StopAt(Callback):
    """Ends a run before a step, notes the waits of the steps before it."""

    def __init__(self, waits: Waits):
        self.waits, self.counts = waits, []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert not any(getattr(one, "_reads_each", False) for one in trainer.callbacks)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.counts.append(len(self.waits.lines))
        if index == STEPS:
            raise Stop


def batches_of(module: Any, data: Any) -> list[Any]:
    """The first batches of a data module, real and on the CPU."""
    data.batches_per_step = getattr(module, "batches_per_step", 1)  # of a GAN
    data.prepare_data()
    data.setup("fit")
    return list(islice(data.train_dataloader(), STEPS + 1))


def backward(module: LightningModule, loss: Tensor, *_: Any, **__: Any) -> None:
    assert loss.device == GPU
    for one in module.parameters():
        if one.requires_grad:
            one.grad = torch.zeros_like(one)


def waits_of(
    module: Any, batches: list[Any], patch: pytest.MonkeyPatch, folder: Path
) -> tuple[list[int], Waits]:
    """Waits before each step of a training on the fake device, and all of them."""
    patch.setattr(Tensor, "backward", partial(backward, module))
    patch.setattr(Tensor, "__deepcopy__", lambda tensor, memo: tensor.detach().clone())
    waits = Waits()
    stop = StopAt(waits)
    with ExitStack() as modes:
        trainer = Trainer(
            accelerator=FakeGPU(), strategy=OnFakeGPU(modes, waits), devices=1, max_epochs=1,
            logger=False, limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[stop, ProgressLines()], default_root_dir=folder,
            log_every_n_steps=1000,
        )  # fmt: skip
        with pytest.raises(Stop):
            trainer.fit(module, Batches(batches))
    return stop.counts, waits


@pytest.mark.parametrize("task", MODULES)
def test_a_step_waits_for_nothing(task: str, tmp_path: Path, monkeypatch: Any) -> None:
    module = MODULES[task](ema=True)
    counts, waits = waits_of(module, batches_of(module, DATA[task]()), monkeypatch, tmp_path)
    print("\n".join(f"{waits.lines.count(line)} {line}" for line in dict.fromkeys(waits.lines)))
    per_step = {after - before for before, after in zip(counts, counts[1:], strict=False)}
    assert per_step == {0}
