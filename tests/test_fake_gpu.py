"""Every task on a GPU that does not exist: tensors on a wrong device fail, waits are counted.

Tensors of a `FakeTensorMode` have a device and a shape, and no numbers. A tensor that is made on
the CPU by mistake meets those of the device and raises, on any machine; code that asks for numbers
of the device, for which a GPU's host would wait, is counted. Nothing is differentiated: autograd
would ask the driver.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from finite_runs import ADAM, DATA, MODULES, backbone
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_vision.classification import CIFARAugmentation, Classifier, Digits
from attention_vision.data.augmentation import OPERATIONS
from attention_vision.data.resident import ResidentLoader
from attention_vision.generation.gan.diff_augment import DiffAugment
from attention_vision.training.finite import StepAverage
from attention_vision.training.progress import ProgressLines

GPU = torch.device("cuda:0")
STEPS = 2
ATEN = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes each question for numbers of the device, and answers it so that the code goes on.

    Numbers are 1, conditions are true; a copy on the CPU is of zeros. What is on the CPU is real.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], Tensor) else torch.empty(0)
        if function is ATEN._pin_memory.default:
            return source
        if function is ATEN._local_scalar_dense.default and isinstance(source, FakeTensor):
            self.note(source)
            return True if source.dtype == torch.bool else 1.0 if source.is_floating_point() else 1
        if function is ATEN._to_copy.default and isinstance(source, FakeTensor):
            target = kwargs.get("device") or source.device
            if target.type == "cpu":
                self.note(source)
                with unset_fake_temporarily():
                    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if self.on_host(args, kwargs):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if function is ATEN.nonzero.default:
            self.note(source)
            return torch.zeros(source.numel(), source.ndim, dtype=torch.int64, device=source.device)
        if function is torch.ops.torchvision.nms.default:
            self.note(source)
            return torch.arange(len(source), device=source.device)
        if function is ATEN.bincount.default:
            self.note(source)
            return torch.zeros(args[2], dtype=torch.int64, device=source.device)
        if function is ATEN.index_put_.default and args[2].numel() == 1:
            return source.masked_fill_(*args[1], args[2])  # as torch does, without waiting
        if function in (ATEN.index.Tensor, ATEN.index_put_.default):
            args = (source, [self.numbers(one) for one in args[1]], *args[2:])
        return function(*args, **kwargs)

    def on_host(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a call is of the CPU alone, whose numbers are real."""
        target = kwargs.get("device") or torch.device("cpu")
        fake = any(isinstance(one, FakeTensor) for one in tree_leaves((args, kwargs)))
        return not fake and target.type == "cpu"

    def numbers(self, index: Tensor | None) -> Tensor | None:
        """An index by conditions as one by numbers: those of the first positions."""
        if index is None or index.dtype != torch.bool:
            return index
        self.note(index)
        assert index.ndim == 1
        return torch.arange(len(index), device=index.device)

    def note(self, source: Tensor) -> None:
        if isinstance(source, FakeTensor):
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


def backward_of(module: LightningModule) -> Callable[..., None]:
    """A `Tensor.backward` that gives each parameter a gradient."""

    def backward(loss: Tensor, *_: Any, **__: Any) -> None:
        assert loss.device == GPU
        for one in module.parameters():
            if one.requires_grad:
                one.grad = torch.zeros_like(one)

    return backward


def waits_of(
    module: Any, batches: list[Any], patch: pytest.MonkeyPatch, folder: Path
) -> tuple[set[int], Waits]:
    """Numbers of waits in steps of a training that are not logged, and all waits."""
    patch.setattr(Tensor, "backward", backward_of(module))
    patch.setattr(Tensor, "__deepcopy__", lambda tensor, memo: tensor.detach().clone())
    waits = Waits()
    stop = StopAt(waits)
    with ExitStack() as modes:
        trainer = Trainer(
            accelerator=FakeGPU(), strategy=OnFakeGPU(modes, waits), devices=1, max_epochs=1,
            limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[stop, ProgressLines()], default_root_dir=folder,
            log_every_n_steps=1000, logger=False,
        )  # fmt: skip
        with pytest.raises(Stop):
            trainer.fit(module, Batches(batches))
    pairs = zip(stop.counts, stop.counts[1:], strict=False)
    return {after - before for before, after in pairs}, waits


@contextmanager
def moved(module: Any, batch: Any) -> Iterator[tuple[Any, Waits]]:
    """Context on the fake device: the batch there, beside the module, and the waits."""
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        module.to(GPU)
        yield module.transfer_batch_to_device(batch, GPU, 0), waits


def mixed_classifier(ema: bool) -> Classifier:
    return Classifier(backbone(), ADAM, mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema_decay=0.9)


def augmented_sagan(ema: bool) -> LightningModule:
    module = MODULES["sagan"](ema)
    module.augment = DiffAugment(("colour", "translation", "cutout"))
    return module


STEPPED: dict[str, tuple[Callable[..., Any], int]] = {  # and the waits of a step
    "classifier": (mixed_classifier, 0),
    "detr": (MODULES["detr"], 1),  # the matching, which scipy solves on the host
    "dino": (MODULES["dino"], 2),  # also that of the proposals
    "sagan": (augmented_sagan, 0),
    "unet": (MODULES["unet"], 0),
}


@pytest.mark.parametrize("task", STEPPED)
def test_a_step_waits_for_nothing(task: str, tmp_path: Path, monkeypatch: Any) -> None:
    build, expected = STEPPED[task]
    module = build(ema=True)
    per_step, waits = waits_of(module, batches_of(module, DATA[task]()), monkeypatch, tmp_path)
    assert per_step == {expected}, waits.lines


@pytest.mark.parametrize("task", ["classifier", "detr", "dino", "rcnn", "unet"])
def test_evaluation_on_a_gpu(task: str, monkeypatch: Any) -> None:
    module = MODULES[task]()
    for name in ("log", "log_dict"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    batch = batches_of(module, DATA[task]())[0]
    with moved(module.eval(), batch) as (here, waits):
        module.validation_step(here, 0)
    expected = {"classifier": 1, "unet": 0}  # torchmetrics counts the pairs of its matrix
    if task in expected:
        assert len(waits.lines) == expected[task], waits.lines


@pytest.mark.parametrize(
    "recipe",
    [
        CIFARAugmentation(rotation=10.0, shift=0.1, zoom=0.1, erasing=0.5, cutout=4),
        CIFARAugmentation(autoaugment="cifar10"),
        CIFARAugmentation(randaugment=2),
        CIFARAugmentation(trivialaugment=True),
    ],
    ids=["own", "autoaugment", "randaugment", "trivialaugment"],
)
def test_augmentation_on_a_gpu(recipe: CIFARAugmentation) -> None:
    data = Digits(image_size=16, batch_size=4, recipe=recipe)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, ResidentLoader)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        loader.images, loader.labels = loader.images.to(GPU), loader.labels.to(GPU)
        # Every number is 1: one image for each operation, and one for none.
        images, labels = loader.load(0, torch.arange(1 + len(OPERATIONS)))
        assert images.device == labels.device == GPU
        assert images.shape == (1 + len(OPERATIONS), 3, 16, 16)
    assert waits.lines == []


def planted(fault: Callable[[Tensor], Tensor]) -> Classifier:
    """A classifier with a fault behind its first stage."""
    module = MODULES["classifier"]()
    module.network.stages[0].register_forward_hook(lambda _, __, maps: fault(maps))
    return module


def test_a_tensor_on_the_wrong_device_fails(tmp_path: Path, monkeypatch: Any) -> None:
    module = planted(lambda maps: maps + torch.zeros(3)[:1])
    batches = batches_of(module, DATA["classifier"]())
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        waits_of(module, batches, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        lambda maps: maps * maps.mean().item(),
        lambda maps: maps if maps.mean() > 0 else -maps,
        lambda maps: maps + maps.mean().cpu().to(maps.device),
        lambda maps: maps + maps.flatten()[maps.flatten() > 0].mean(),
    ],
    ids=["item", "if", "cpu", "mask"],
)
def test_a_wait_is_counted(
    fault: Callable[[Tensor], Tensor], tmp_path: Path, monkeypatch: Any
) -> None:
    module = planted(fault)
    batches = batches_of(module, DATA["classifier"]())
    per_step, waits = waits_of(module, batches, monkeypatch, tmp_path)
    assert per_step == {1}, waits.lines
