"""Preflight of a cell: builds it and estimates its cost before it runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Timer

from attention_vision.config.trust import trusting
from attention_vision.data.loading import TaskData
from attention_vision.errors import InputError
from attention_vision.profiling.cost import Cost, macs, measure
from attention_vision.runs.command import build, parse
from attention_vision.runs.tasks import Task
from attention_vision.study.definition import flops_to_steps


@dataclass(frozen=True)
class Preflight:
    """Expected cost of a run of a cell.

    Args:
        parameters: number of parameters of the module, frozen ones included.
        macs: multiply-adds of a forward pass per image, of both networks of a GAN.
        steps: optimizer steps of the whole run; None if a time limit ends it, or if epochs do and
            the data is not here.
        limit: time limit in seconds, if any.
        images: images per optimizer step.
        step_seconds: time of the forward and backward passes of a step on this machine.
        peak_memory: bytes of such a step; None if it was measured with fewer images.
        data: fingerprint of the data, see `TaskData.fingerprint`; empty if it is not here.
        evaluated: images of a validation; None if the data is not here.
    """

    parameters: int
    macs: int | None
    steps: int | None
    limit: float | None
    images: int
    step_seconds: float | None
    peak_memory: int | None
    data: dict[str, Any]
    evaluated: int | None = None

    @property
    def seconds(self) -> float | None:
        """Time of all steps, without optimizer, data loading and validation; at most the limit."""
        ends = [] if self.limit is None else [self.limit]
        if self.steps is not None and self.step_seconds is not None:
            ends.append(self.steps * self.step_seconds)
        return min(ends, default=None)


@trusting()
def run_preflight(task: str, config: Path, flops: float | None, without_data: bool) -> Preflight:
    """Parse and build a cell, and measure its cost.

    Args:
        task: classification, detection or generation.
        config: the file to parse.
        flops: the study's budget, if it is in FLOPs.
        without_data: whether missing data is accepted.

    Raises:
        InputError: the config does not parse or build, its data is missing, or the budget needs
            multiply-adds that cannot be counted.
    """
    parsed = parse(task, "fit", ["-c", str(config)])
    objects = build(parsed)
    module, data, trainer = objects.module, objects.data, parsed.config.trainer
    images, accumulate = batch_size(data), trainer.accumulate_grad_batches
    costs = costs_of(parsed.task, module, data, device_of(trainer.accelerator))
    batches, identity = open_data(data, without_data)
    if flops is not None:
        if len(costs) != 1:
            raise InputError(
                "a budget in FLOPs needs a single network of known cost: give a budget in steps"
            )
        steps = flops_to_steps(flops, costs[0].macs, images * accumulate)
    else:
        steps = steps_of(batches, trainer)
    return Preflight(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=sum(cost.macs for cost in costs) if costs else None,
        steps=steps,
        limit=Timer(trainer.max_time).time_remaining(),
        images=images * accumulate,
        step_seconds=accumulate
        * sum(cast(float, cost.step_seconds) * images / cost.images for cost in costs)
        if costs
        else None,
        peak_memory=costs[0].peak_memory if [cost.images for cost in costs] == [images] else None,
        data=identity,
        evaluated=validated_images(identity, images, trainer.limit_val_batches),
    )


def validated_images(
    identity: dict[str, Any], images: int, limit: int | float | None
) -> int | None:
    """Return the images of a validation; None if they are not known.

    Args:
        identity: fingerprint of the data.
        images: per batch.
        limit: the trainer's limit: a number of batches, or a fraction.
    """
    samples = identity.get("val", {}).get("samples")
    if samples is None or limit is None:
        return samples
    return int(samples * limit) if isinstance(limit, float) else min(samples, limit * images)


def open_data(data: LightningDataModule, without_data: bool) -> tuple[int | None, dict[str, Any]]:
    """Open the data for training; return the batches of an epoch and the fingerprint.

    Raises:
        InputError: the data is missing, unless `without_data` accepts that: None and {} then.
    """
    try:
        data.prepare_data()
        data.setup("fit")
        if isinstance(data, TaskData):
            data.resident_gib = 0.0  # batches are counted, no image is read
        batches = len(data.train_dataloader())
    except InputError:
        if not without_data:
            raise
        return None, {}
    return batches, data.fingerprint() if isinstance(data, TaskData) else {}


def steps_of(batches: int | None, trainer: Namespace) -> int | None:
    """Return the optimizer steps of a whole run; None if they are not known.

    Args:
        batches: training batches per epoch; None if the data is not here.
        trainer: the trainer's config.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs is None:  # as Lightning reads it
        epochs = 1000 if steps == -1 else -1
    if trainer.max_time is not None or epochs == steps == -1:
        return None
    if epochs == -1:
        return steps
    if batches is None:
        return None
    limit = trainer.limit_train_batches
    if limit is not None:  # as Lightning reads it: a fraction, or a number
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    whole = epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return whole if steps == -1 else min(whole, steps)


def costs_of(
    task: Task, module: LightningModule, data: LightningDataModule, device: torch.device
) -> list[Cost]:
    """Measure the module's networks for one batch, smaller on a CPU if it would take long."""
    try:
        tools, images = task.tools(), batch_size(data)
        size = tools.image_size(data)
        (one, *_) = tools.workloads("", module.to(device), size, 1)
        affordable = images if device.type == "cuda" else int(2e10 / max(1, macs(one)))
        batch = max(1, min(images, affordable))
        return measure(tools.workloads("", module, size, batch), repeats=1)
    except (InputError, AttributeError):  # a module or data that `profile` does not support
        return []


def batch_size(data: LightningDataModule) -> int:
    """Images per batch, which every data module of this package names so."""
    return cast(Any, data).batch_size  # Lightning's base class does not have it


def device_of(accelerator: str) -> torch.device:
    """Return the device that the trainer's accelerator means on this machine."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")
