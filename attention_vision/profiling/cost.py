"""Cost of networks on this machine: parameters, multiply-adds, time and memory."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attention_vision.attention import attention_backend

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler announces itself on stderr


@dataclass(frozen=True)
class Cost:
    """The cost of a network for a batch of `images`.

    Attributes:
        parameters: number of parameters, frozen ones included.
        macs: multiply-adds of a forward pass per image, which papers call FLOPs, see `macs`.
        images: size of the batch that is measured.
        forward_seconds: duration of a forward pass of the batch in evaluation.
        step_seconds: duration of a forward and a backward pass in training, without the optimizer;
            None if nothing is trained.
        peak_memory: bytes of all tensors at the worst moment of that step (of the forward pass if
            nothing is trained): weights, batch, activations, gradients, scratch memory of kernels;
            without the state of an optimizer.
    """

    parameters: int
    macs: int
    images: int
    forward_seconds: float
    step_seconds: float | None
    peak_memory: int

    @property
    def images_per_second(self) -> float:
        """In evaluation."""
        return self.images / self.forward_seconds

    @property
    def trained_images_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.images / self.step_seconds


@dataclass(frozen=True)
class Workload:
    """A network and what it does to a batch.

    Attributes:
        name: title of its row in a table.
        network: the module that has the parameters and the mode.
        forward: a forward pass, for evaluation.
        loss: a forward pass of training, to a scalar whose gradient is taken.
        batch: the tensors that the network is fed.
    """

    name: str
    network: nn.Module
    forward: Callable[[], object]
    loss: Callable[[], Tensor]
    batch: tuple[Tensor, ...]

    @classmethod
    def of_network(cls, name: str, network: nn.Module, *batch: Tensor) -> Self:
        """`network(*batch)`, with the mean square of its output as the loss."""

        def loss() -> Tensor:
            squares = [x.float().square().mean() for x in tensors_in(network(*batch))]
            return torch.stack(squares).mean()

        return cls(name, network, lambda: network(*batch), loss, batch)

    @property
    def trained(self) -> bool:
        return any(x.requires_grad for x in (*self.network.parameters(), *self.batch))

    def evaluate(self) -> None:
        self.network.eval()
        with torch.no_grad():
            self.forward()

    def step(self) -> None:
        """Forward and backward; the gradients are dropped."""
        self.network.train()
        self.loss().backward()
        for tensor in (*self.network.parameters(), *self.batch):
            tensor.grad = None


def tensors_in(output: object) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dicts."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors_in(part)


def cost(network: nn.Module, images: Tensor, repeats: int = 5) -> Cost:
    """Measure a network of images alone, on the device that both are on.

    The loss is the mean square of all outputs. Weights, running statistics, gradients, mode and
    random state stay as they are: a copy is measured.

    Args:
        network: images -> a tensor, or tensors in lists and dicts.
        images: (B, C, H, W), or whatever the network takes; the first axis is the batch.
        repeats: number of passes that each time is the median of.
    """
    network = deepcopy(network)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        return measure([Workload.of_network("", network, images)], repeats)[0]


def measure(workloads: Sequence[Workload], repeats: int = 5) -> list[Cost]:
    """Measure the costs of several networks, which take turns.

    A machine that is busy for a while slows all of them down alike: each repeat goes through all
    networks, every second one backwards. Times are medians over repeats, after a warm-up.
    """
    counts = [macs(one) for one in workloads]
    memory = [peak_memory(one) for one in workloads]  # warms up, too: two steps
    forward: list[list[float]] = [[] for _ in workloads]
    steps: list[list[float]] = [[] for _ in workloads]
    for repeat in range(repeats):
        order = range(len(workloads)) if repeat % 2 else reversed(range(len(workloads)))
        for number in order:
            one = workloads[number]
            forward[number].append(seconds(one.evaluate, one.batch[0].device))
            if one.trained:
                steps[number].append(seconds(one.step, one.batch[0].device))
    return [
        Cost(
            parameters=sum(parameter.numel() for parameter in one.network.parameters()),
            macs=counts[number],
            images=len(one.batch[0]),
            forward_seconds=median(forward[number]),
            step_seconds=median(steps[number]) if one.trained else None,
            peak_memory=memory[number],
        )
        for number, one in enumerate(workloads)
    ]


def macs(workload: Workload) -> int:
    """Count the multiply-adds of a forward pass in evaluation, per image.

    Those of convolutions and of products of matrices, attention included, half of what torch's
    `FlopCounterMode` counts. Elementwise operations (norms, activations, softmax, gates, pooling,
    resizing) are left out, as in papers. Attention is counted as it is written: the zeros that pad
    narrow heads for the fused kernel cost time, not multiply-adds.
    """
    workload.network.eval()
    counter = FlopCounterMode(display=False)
    inputs = (*workload.network.parameters(), *workload.batch)
    leaves = [x for x in inputs if x.requires_grad]
    for leaf in leaves:  # the counter stumbles over their views under no_grad
        leaf.requires_grad_(False)
    try:
        with attention_backend("eager"), torch.no_grad(), counter:
            workload.forward()
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)
    return counter.get_total_flops() // (2 * len(workload.batch[0]))


def peak_memory(workload: Workload) -> int:
    """Bytes of all tensors at the worst moment of a step, see `Cost`."""
    network = workload.network
    held = (*network.parameters(), *network.buffers(), *workload.batch)
    own = sum(tensor.numel() * tensor.element_size() for tensor in held)
    run = workload.step if workload.trained else workload.evaluate
    return own + growth(run, workload.batch[0].device)


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of all tensors at the worst moment of `run`, less those before it.

    A GPU's allocator counts them; on a CPU this adds up all that torch's allocator hands out and
    receives back, scratch memory inside of kernels included. `run` is called twice: what the first
    call allocates for good does not count.
    """
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    now = most = 0
    assert record.profiler is not None
    results: Any = record.profiler.kineto_results  # torch's stub lacks `nbytes`
    for event in results.events():  # in the order of time
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Duration of `run`, until the device has finished."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def hardware(device: torch.device | None = None) -> str:
    """Name of the GPU, or of the processor with its cores and the threads that torch uses.

    Args:
        device: the one in question; by default the GPU if there is one.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {threads} thread{plural}"
