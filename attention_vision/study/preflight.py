"""What is known of a cell before it runs: whether it builds, and what it costs."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Timer

from attention_vision.errors import InputError
from attention_vision.profiling.cost import Cost, macs, measure
from attention_vision.runs.command import build, parse
from attention_vision.runs.tasks import Task
from attention_vision.study.definition import flops_to_steps


@dataclass(frozen=True)
class Inspection:
    """What is known of a cell before it runs.

    Args:
        parameters: of the module, frozen ones included.
        macs: multiply-adds of a forward pass per image, of both networks of a GAN.
        steps: of the optimiser in the whole run; None where seconds end it, or where epochs do and
            the data is not here.
        limit: seconds that end it, if any do.
        images: of one step.
        step_seconds: of a forward and a backward pass here, of a batch at a time.
        peak_memory: bytes of such a step; None where it was measured with fewer images.
    """

    parameters: int
    macs: int | None
    steps: int | None
    limit: float | None
    images: int
    step_seconds: float | None
    peak_memory: int | None

    @property
    def seconds(self) -> float | None:
        """Of all steps, without the optimiser, the data and the validations; at most the limit."""
        ends = [] if self.limit is None else [self.limit]
        if self.steps is not None and self.step_seconds is not None:
            ends.append(self.steps * self.step_seconds)
        return min(ends, default=None)


def inspect(task: str, config: Path, flops: float | None, without_data: bool) -> Inspection:
    """Parses and builds a cell, and counts what it costs.

    Args:
        task: classification, detection or generation.
        config: the file to parse.
        flops: the study's budget, where it is in FLOPs.
        without_data: whether missing data is no error.

    Raises:
        InputError: the config does not parse or build, its data is missing, or the budget needs
            multiply-adds that are not known.
    """
    parsed = parse(task, "fit", ["-c", str(config)])
    objects = build(parsed)
    module, data, trainer = objects.module, objects.data, parsed.config.trainer
    images, accumulate = data.batch_size, trainer.accumulate_grad_batches
    costs = costs_of(parsed.task, module, data, device_of(trainer.accelerator))
    if flops is not None:
        if len(costs) != 1:
            raise InputError("a budget in FLOPs needs one network whose cost is known: take steps")
        steps = flops_to_steps(flops, costs[0].macs, images * accumulate)
    else:
        try:
            data.prepare_data()
            data.setup("fit")
            batches = len(data.train_dataloader())
        except InputError:
            if not without_data:
                raise
            batches = None
        steps = steps_of(batches, trainer)
    return Inspection(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=sum(cost.macs for cost in costs) if costs else None,
        steps=steps,
        limit=Timer(trainer.max_time).time_remaining(),
        images=images * accumulate,
        step_seconds=accumulate * sum(cost.step_seconds * images / cost.images for cost in costs)
        if costs
        else None,
        peak_memory=costs[0].peak_memory if [cost.images for cost in costs] == [images] else None,
    )


def steps_of(batches: int | None, trainer: Namespace) -> int | None:
    """Optimiser steps of a whole run of the trainer's config; None where they are not known.

    Args:
        batches: of the training data; None where it is not here.
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
    if limit is not None:  # as Lightning reads it: a share, or a number
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    whole = epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return whole if steps == -1 else min(whole, steps)


def costs_of(
    task: Task, module: LightningModule, data: LightningDataModule, device: torch.device
) -> list[Cost]:
    """Of the module's networks for a batch of the data's size, or as much as takes seconds."""
    try:
        tools = task.tools()
        size = tools.image_size(data)
        (one, *_) = tools.workloads("", module.to(device), size, 1)
        affordable = data.batch_size if device.type == "cuda" else int(2e10 / max(1, macs(one)))
        batch = max(1, min(data.batch_size, affordable))
        return measure(tools.workloads("", module, size, batch), repeats=1)
    except (InputError, AttributeError):  # a module or data that `profile` does not know
        return []


def device_of(accelerator: str) -> torch.device:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")
