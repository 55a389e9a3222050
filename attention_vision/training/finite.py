"""Check of training steps, evaluations and checkpoints for numbers that are not finite.

A loss, gradient, weight or output that is NaN or infinite ends the run in one line, before it
enters a mean, a checkpoint or a file.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import default_collate
from torchmetrics import Metric

from attention_vision.errors import InputError
from attention_vision.training.distributed import broadcast, gather, rank, world_size
from attention_vision.training.logging import log_now, run_folder
from attention_vision.training.progress import say
from attention_vision.training.steps import mix, run_seed, seed_streams, step_number

OnNonFinite = Literal["stop", "skip"]
FOLDER, FILE = "nonfinite", "step.ckpt"
MOST_IN_A_ROW = 20  # optimizer steps left out, after which a run has diverged
MOST_PENDING = 256  # values kept on the device between two reads, if fewer steps are logged
SHOWN = 3  # names of images in a message
ADVICE = "lower the learning rate or clip gradients"
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Step:
    """Position of a training batch.

    Args:
        number: step in metrics.csv, from 0.
        epoch, batch_idx: of the batch, from 0.
        seeds: what `SeedEveryStep` mixes to the batch's seed: of the run, rank, batches before.
    """

    number: int
    epoch: int
    batch_idx: int
    seeds: tuple[int, int, int]

    @property
    def seed(self) -> int:
        return mix(*self.seeds)


@dataclass(frozen=True)
class Value:
    """A number of a step that has to be finite, still on its device.

    Args:
        step: where it was computed.
        number: () a loss, or the norm of the gradients.
        losses: terms of the loss by name; none for gradients.
    """

    step: Step
    number: Tensor
    losses: Mapping[str, Tensor]


class FiniteSteps(Callback):
    """Stops a run at a loss or gradients that are NaN or infinite, or leaves such steps out.

    On one CPU the numbers are read in every step, before the weights change. On a GPU, and in
    several processes, which agree on the first fault, they stay on the device until the next
    logged step, the epoch's end, a validation or a checkpoint: no step waits for the device. By
    then the weights may be lost, and the step is described with those of the last checkpoint.

    Under "skip" each step waits for the device: an optimizer step whose loss or gradients are not
    finite is left out. Weights, optimizer state, buffers and moving averages remain as they were;
    steps and schedules count on. `train/skipped` counts such steps; 20 in a row end the run.

    The fault names the term of the loss, the step, its images and the first layer whose output is
    not finite. RUN/nonfinite/ keeps the batch and the weights, see `run_again`. A checkpoint with
    weights that are not finite is not written; the one before it remains.

    In evaluation, weights and outputs are checked before a metric is logged. There,
    `validation_step` and `test_step` return whether the output of each image is finite, (B,).

    Expects a module with `losses(batch)`, the terms of its loss by name, which changes nothing, and
    `step_losses`, those of the last backward pass. A `GradScaler` looks for infinite gradients
    itself, and they are left to it.

    Args:
        on_nonfinite: "stop" or "skip".

    Raises:
        InputError: from the hooks; one line.
    """

    def __init__(self, on_nonfinite: OnNonFinite = "stop"):
        self.skips = on_nonfinite == "skip"
        self.skipped = self.in_a_row = 0
        self._pending: list[Value] = []
        self._step: Step | None = None
        self._batch: Any = None
        self._buffers: dict[str, Tensor] = {}
        self._left_out = self._reads_each = self._scales = False
        self._outputs: list[Tensor] = []  # of an evaluation: whether each image's is finite

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    # Training

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        alone = trainer.world_size == 1 and module.device.type == "cpu"
        self._reads_each = self.skips or alone
        self._scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._pending, self._left_out = [], False

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seeds = run_seed(), trainer.global_rank, trainer.fit_loop.total_batch_idx
        self._step = Step(step_number(trainer), trainer.current_epoch, batch_idx, seeds)
        self._batch = batch
        if self.skips and batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = {name: one.clone() for name, one in moving_buffers(module)}

    def on_before_backward(self, trainer: Trainer, module: Any, loss: Tensor) -> None:
        assert self._step is not None  # of the batch that has begun
        losses = {name: one.detach() for name, one in module.step_losses.items()}
        self._pending.append(Value(self._step, loss.detach(), losses))

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [one.grad for one in parameters(optimizer) if one.grad is not None]
        if gradients and not self._scales and self._step is not None:
            # A seventh of the time of the largest value; it overflows at 1e19, which has diverged.
            norm = get_total_norm(gradients)
            self._pending.append(Value(self._step, norm, {}))
        if not self._reads_each:
            return
        fault = self._read(trainer, module, optimizer)
        if fault and not self.skips:
            raise InputError(fault)
        if fault:
            for one in parameters(optimizer):  # which an optimizer passes over
                one.grad = None
            self._left_out = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None
        if self._left_out:
            self._leave_out(trainer, module)
        elif self.skips and not trainer.fit_loop._should_accumulate():
            self.in_a_row = 0
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] set from afar
        if (step_number(trainer) + 1) % every == 0 or len(self._pending) >= MOST_PENDING:
            self._require(trainer, module)

    def _leave_out(self, trainer: Trainer, module: LightningModule) -> None:
        """Count a step that is left out, and return the buffers to what they were before it."""
        self._left_out = False
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        for name, buffer in moving_buffers(module):
            buffer.copy_(self._buffers[name])
        log_now(trainer, {"train/skipped": self.skipped})
        if self.in_a_row >= MOST_IN_A_ROW:
            raise InputError(
                f"step {step_number(trainer)}: {self.in_a_row} steps in a row have a loss or"
                f" gradients that are not finite, see {run_folder(trainer) / FOLDER}: {ADVICE}"
            )

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._require(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._require(trainer, module)
        if self.skipped:
            say(f"left out: {self.skipped} steps with a loss or gradients that are not finite")

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._require(trainer, module)
        require_finite_weights(module, "no checkpoint is written")

    def _require(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._reads_each and (fault := self._read(trainer, module)):
            raise InputError(fault)

    def _read(
        self, trainer: Trainer, module: Any, optimizer: Optimizer | None = None
    ) -> str | None:
        """The first fault since the last read, described; all processes read at the same time."""
        if not self._pending and trainer.world_size == 1:
            return None
        pending, self._pending = self._pending, []
        first = None
        if pending:
            finite = torch.stack([value.number.float() for value in pending]).isfinite().tolist()
            first = finite.index(False) if not all(finite) else None
        fault = None if first is None else pending[first]
        owner = first_process(fault)
        if owner is None:
            return None
        if self.skips and self.skipped:  # described once
            return f"step {step_number(trainer)}"
        line = self._describe(trainer, module, pending, fault, owner, optimizer)
        if self.skips:
            say(f"skipped: {line}")
        return line

    def _describe(
        self,
        trainer: Trainer,
        module: Any,
        pending: list[Value],
        fault: Value | None,
        owner: int,
        optimizer: Optimizer | None,
    ) -> str:
        """One line on the fault; writes RUN/nonfinite/. All processes call it."""
        step = broadcast_from(fault and fault.step, owner)
        indices = batch_indices(trainer, step)
        now, batch = self._step, self._batch
        if batch is None or now is None or step.batch_idx != now.batch_idx:
            batch = load_batch(trainer, module, indices)  # of an earlier step
        last = run_folder(trainer) / "checkpoints" / "last.ckpt"
        # Read behind the step? The buffers alone do not tell: the forward pass has moved them.
        is_late = first_bad(module.named_parameters()) is not None
        state = saved_weights(last) if is_late and last.is_file() else module.state_dict()
        with weights(module, state) if is_late and last.is_file() else nullcontext():
            record = {
                "state_dict": to_cpu(state),
                "buffers": unsaved_buffers(module),
                "batch": to_cpu(batch),
                "precision": str(trainer.precision),
                "step": step.number,
                "epoch": step.epoch,
                "batch_idx": step.batch_idx,
                "seed": step.seed,
            }
            # All processes compute the step again, since a loss may be averaged over them.
            losses, layer = compute_losses(module, batch, step.seed, record["precision"])
        line = ""
        if fault is not None and rank() == owner:
            what = bad_term(fault.losses or losses)
            if not fault.losses:  # of gradients
                name = bad_gradient(module, optimizer) if optimizer else None
                what = f"the gradient of {name or 'the loss'}"
            images = shown(image_names(trainer, "train", indices))
            where = f"; first layer with such an output: {layer}" if layer else ""
            if is_late:
                where += f" (by the weights of {last.name})" if last.is_file() else ""
            if any(not one.isfinite().all() for one in tensors(batch)):
                where = "; the images or targets themselves are not finite"
            kept = f"{last} is the last good checkpoint" if last.is_file() else "no checkpoint yet"
            folder = run_folder(trainer) / FOLDER
            line = (
                f"step {step.number} of epoch {step.epoch}: {what} is not finite, images"
                f" {images}{where}; {kept}; {folder} reproduces the step: {ADVICE}"
            )
            write_fault(folder, record, line, is_late)
        return broadcast_from(line, owner)

    # Evaluation

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._require(trainer, module)
        self._begin(module)

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begin(module)

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begin(module)

    def _begin(self, module: LightningModule) -> None:
        self._outputs = []
        require_finite_weights(module, "nothing is measured")

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if isinstance(outputs, Tensor):
            self._outputs.append(outputs)

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if isinstance(outputs, Tensor):
            self._outputs.append(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._require_outputs(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._require_outputs(trainer, "test")

    def _require_outputs(self, trainer: Trainer, split: str) -> None:
        """Raises InputError that names the images whose outputs are not finite."""
        outputs, self._outputs = self._outputs, []
        bad = torch.cat(outputs).logical_not().nonzero()[:, 0].tolist() if outputs else []
        # Processes take the images in turn, see `evaluation_loader`.
        mine = [trainer.global_rank + index * trainer.world_size for index in bad]
        indices = sorted(index for part in broadcast(gather(mine)) for index in part)
        if indices:
            images = shown(image_names(trainer, split, indices))
            raise InputError(
                f"the network's output is not finite for {len(indices)} {split} images, {images}:"
                f" it has diverged; start from an earlier checkpoint, or {ADVICE}"
            )


class StepAverage(WeightAveraging):
    """Moving average of the weights, without the steps that `FiniteSteps` leaves out.

    average <- decay average + (1 - decay) weights, of all tensors of a kind in one kernel. The
    number of its updates is on the CPU: torch reads it in each of them, and would wait for a GPU.
    """

    def __init__(self, decay: float):
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def state_key(self) -> str:
        return EMAWeightAveraging.__qualname__  # of older checkpoints

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if any(one.grad is not None for one in pl_module.parameters()):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def finite_steps(trainer: Trainer) -> list[Callback]:
    """For `configure_callbacks`: the check, unless the trainer has one already."""
    callbacks = getattr(trainer, "callbacks", ())  # Lightning sets it without declaring it
    return [] if any(isinstance(one, FiniteSteps) for one in callbacks) else [FiniteSteps()]


def run_again(module: LightningModule, record: dict[str, Any]) -> dict[str, Any]:
    """Compute the losses of a step that RUN/nonfinite/ keeps once more.

    Args:
        module: of `load_run(run, "RUN/nonfinite/step.ckpt")`, on any device.
        record: what `torch.load` reads of this file, with `weights_only=True`.

    Returns:
        the terms of the loss by name, and `layer`, the first one whose output is not finite.
    """
    for name, buffer in record["buffers"].items():
        above, _, own = name.rpartition(".")
        setattr(module.get_submodule(above), own, buffer.to(module.device))
    for term in getattr(module, "terms", {}).values():  # a classifier's teacher
        term.prepare(module.network, None)
    batch = module.transfer_batch_to_device(record["batch"], module.device, 0)
    losses, layer = compute_losses(module.train(), batch, record["seed"], record["precision"])
    return {name: float(one) for name, one in losses.items()} | {"layer": layer}


def compute_losses(
    module: Any, batch: Any, seed: int, precision: str
) -> tuple[dict[str, Tensor], str | None]:
    """Losses of a batch, and the first layer whose output is not finite; nothing is changed."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and any(not one.isfinite().all() for one in tensors(output)):
            found.append(name)

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, layer in module.named_modules()
        if name and not isinstance(layer, Metric)
    ]
    buffers = {name: one.clone() for name, one in moving_buffers(module)}
    kind = AUTOCAST.get(precision)
    autocast = torch.autocast(module.device.type, dtype=kind) if kind else nullcontext()
    eager = torch.compiler.set_stance("force_eager")  # compiled code has no hooks
    try:
        with seeded(seed, module.device), autocast, eager, torch.enable_grad():
            losses = {name: one.detach() for name, one in module.losses(batch).items()}
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, buffer in moving_buffers(module):
                buffer.copy_(buffers[name])
    return losses, found[0] if found else None


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context with the random numbers of a training step; those outside go on as they were."""
    state, stream = np.random.get_state(), random.getstate()  # noqa: NPY002 (the global stream)
    with torch.random.fork_rng():
        seed_streams(seed, device)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(stream)


def require_finite(output: Tensor, images: Sequence[str]) -> None:
    """Raise InputError naming the first of the images (B,) whose output (B, ...) is not finite."""
    finite = finite_images(output)
    if not finite.all():
        first = images[int(finite.logical_not().nonzero()[0])]
        raise InputError(
            f"the network's output for {first} is not finite: it has diverged, predict with an"
            " earlier checkpoint"
        )


def finite_images(output: Tensor) -> Tensor:
    """Whether the output of each image is finite. Shape: (B, ...) -> (B,) bool"""
    return output.detach().flatten(1).isfinite().all(1)


def require_finite_weights(module: nn.Module, consequence: str) -> None:
    """Raise InputError that names the first parameter or buffer that is not finite."""
    if name := first_bad([*module.named_parameters(), *moving_buffers(module)]):
        raise InputError(
            f"{name} of the model is not finite, {consequence}: it has diverged; start from an"
            f" earlier checkpoint, or {ADVICE}"
        )


def first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that is not finite; one wait for the device."""
    floats = [(name, one.detach()) for name, one in named if one.is_floating_point()]
    floats = [(name, one) for name, one in floats if one.numel()]
    if not floats or get_total_norm([one for _, one in floats], math.inf).isfinite():
        return None
    return next(name for name, one in floats if not one.isfinite().all())


def bad_term(losses: Mapping[str, Tensor]) -> str:
    """Name of the first term of a loss that is not finite; `total` is the sum of the others."""
    names = [name for name, one in losses.items() if not one.isfinite().all()]
    return next((name for name in names if name != "total"), "the loss")


def bad_gradient(module: nn.Module, optimizer: Optimizer) -> str | None:
    """Name of the parameter nearest to the loss whose gradient is not finite."""
    of_optimizer = {id(one) for one in parameters(optimizer)}
    names = [
        name
        for name, one in module.named_parameters()
        if id(one) in of_optimizer and one.grad is not None and not one.grad.isfinite().all()
    ]
    return names[-1] if names else None


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Weights that a checkpoint trains on: those of the network where it saves their average."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return content.get("current_model_state", content["state_dict"])


@contextmanager
def weights(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Context with other weights in a module."""
    own = {name: one.detach().clone() for name, one in module.state_dict().items()}
    module.load_state_dict(state)
    try:
        yield
    finally:
        module.load_state_dict(own)


def moving_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point buffers, which training changes: statistics of norms, spectral norms."""
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict lacks, such as weights of classes."""
    saved = module.state_dict().keys()
    return {name: one.cpu() for name, one in module.named_buffers() if name not in saved}


def parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)


def to_cpu(value: Any) -> Any:
    """The value with its tensors on the CPU, and plain containers."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_cpu(one) for one in value]
    return value


def first_process(fault: Value | None) -> int | None:
    """Rank of the process with the first fault, None without one; all processes call it."""
    if world_size() == 1:
        return None if fault is None else 0
    # A loss before the gradients, which all processes share.
    mine = None if fault is None else (fault.step.number, not fault.losses, rank())
    keys: list[Any] = [None] * world_size()
    dist.all_gather_object(keys, mine)
    return min((key for key in keys if key is not None), default=(None,))[-1]


def broadcast_from(value: Any, source: int) -> Any:
    """Return one process's value; all call it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=source)
    return values[0]


def batch_indices(trainer: Trainer, step: Step) -> list[Any]:
    """Keys of the data set that a training batch of this process was loaded from."""
    loader: Any = trainer.train_dataloader
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if sampler is None or not size:
        return []
    if hasattr(sampler, "order"):  # of the sampler's epoch, which has not ended
        keys = [(step.epoch, index) for index in sampler.order()]
    else:
        keys = list(sampler)
    return keys[step.batch_idx * size : (step.batch_idx + 1) * size]


def load_batch(trainer: Trainer, module: Any, keys: Sequence[Any]) -> Any:
    """Load a training batch once more: a sample depends on its key alone."""
    loader: Any = trainer.train_dataloader
    if hasattr(loader, "load"):  # of images in memory
        return loader.load(keys[0][0], torch.tensor([sample for _, sample in keys]))
    collate = getattr(loader, "collate_fn", None) or default_collate
    batch = collate([loader.dataset[key] for key in keys])
    return module.transfer_batch_to_device(batch, module.device, 0)


def image_names(trainer: Trainer, split: str, keys: Sequence[Any]) -> list[str]:
    """Files of a split's images, or their numbers where they are not files."""
    data: Any = getattr(trainer, "datamodule", None)
    indices = [key[1] if isinstance(key, tuple) else key for key in keys]
    images = getattr(data, f"{split}_images", None)
    per_image = getattr(images, "repeats", None) or getattr(images, "per_image", 1)
    files = data.paths_of(split) if hasattr(data, "paths_of") else []
    indices = [index // per_image for index in indices]
    return [files[one] if one < len(files) else f"number {one}" for one in indices]


def shown(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def write_fault(folder: Path, record: dict[str, Any], line: str, is_late: bool) -> None:
    """Write RUN/nonfinite/step.ckpt, tensors only, and README.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(record, folder / FILE)
    weights = "the weights before the step"
    if is_late:
        weights = "the weights of last.ckpt (those of the step are lost; --on_nonfinite skip reads"
        weights += " every step before they change)"
    file, run = str(folder / FILE), str(folder.parent)
    text = f"""{line}

{FILE} contains the batch, its seed and {weights}.
To compute the losses of the step again:

    import torch
    from attention_vision.runs import load_run
    from attention_vision.training.finite import run_again

    module = load_run({run!r}, {file!r})
    print(run_again(module, torch.load({file!r}, weights_only=True)))
"""
    (folder / "README.txt").write_text(text, encoding="utf-8")
