"""What networks cost on this machine: parameters, multiply-adds, time and memory."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

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
        parameters: numbers that are learned, frozen ones included.
        macs: multiply-adds of a forward pass per image, which papers call FLOPs, see `macs`.
        images: of the batch that is measured.
        forward_seconds: of a forward pass of the batch in evaluation.
        step_seconds: of a forward and a backward pass in training, without the optimiser; None
            where nothing is trained.
        peak_memory: bytes that tensors take at the worst moment of that step (of the forward pass
            where nothing is trained): weights, batch, activations, gradients, kernels' scratch;
            no state of an optimiser.
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
class Work:
    """A network and what it does to a batch.

    Attributes:
        name: of the row in a table.
        network: whose parameters and mode count.
        forward: a forward pass, for evaluation.
        loss: a forward pass of training, to a scalar whose gradient is taken.
        batch: the tensors that are fed.
    """

    name: str
    network: nn.Module
    forward: Callable[[], object]
    loss: Callable[[], Tensor]
    batch: tuple[Tensor, ...]

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


def cost(network: nn.Module, images: Tensor, repeats: int = 5) -> Cost:
    """What a network of images alone costs on the device that both are on.

    The loss is the mean square of all that the network gives. Weights, running statistics,
    gradients, mode and random state stay as they are: a copy is measured.

    Args:
        network: images -> a tensor, or tensors in lists and dicts.
        images: (B, C, H, W), or whatever the network takes; the first axis is the batch.
        repeats: passes that each time is the median of.
    """
    network = deepcopy(network)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        return measure([work("", network, images)], repeats)[0]


def work(name: str, network: nn.Module, *batch: Tensor) -> Work:
    """`network(*batch)`, and the mean square of what it gives as a loss."""

    def loss() -> Tensor:
        outputs = list(tensors(network(*batch)))
        return sum(output.float().square().mean() for output in outputs) / len(outputs)

    return Work(name, network, lambda: network(*batch), loss, batch)


def tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors(part)


def measure(works: Sequence[Work], repeats: int = 5) -> list[Cost]:
    """The costs of several networks, which take turns.

    A machine that is busy for a while slows all of them down alike: each repeat goes through all
    networks, every second one backwards. Times are medians over repeats, after a warm-up.
    """
    counts = [macs(one) for one in works]
    memory = [peak_memory(one) for one in works]  # warms up, too: two steps
    forward: list[list[float]] = [[] for _ in works]
    steps: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats):
        order = range(len(works)) if repeat % 2 else reversed(range(len(works)))
        for place in order:
            one = works[place]
            forward[place].append(seconds(one.evaluate, one.batch[0].device))
            if one.trained:
                steps[place].append(seconds(one.step, one.batch[0].device))
    return [
        Cost(
            parameters=sum(parameter.numel() for parameter in one.network.parameters()),
            macs=counts[place],
            images=len(one.batch[0]),
            forward_seconds=median(forward[place]),
            step_seconds=median(steps[place]) if one.trained else None,
            peak_memory=memory[place],
        )
        for place, one in enumerate(works)
    ]


def macs(one: Work) -> int:
    """Multiply-adds of a forward pass in evaluation, per image.

    Those of convolutions and of products of matrices, attention included, half of what torch's
    `FlopCounterMode` counts. What goes element by element (norms, activations, softmax, gates,
    pooling, resizing) is left out, as papers do. Attention is counted as it is written: the zeros
    that fill up narrow heads for the fused kernel cost time, not multiply-adds.
    """
    one.network.eval()
    counter = FlopCounterMode(display=False)
    leaves = [x for x in (*one.network.parameters(), *one.batch) if x.requires_grad]
    for leaf in leaves:  # the counter stumbles over their views under no_grad
        leaf.requires_grad_(False)
    try:
        with attention_backend("eager"), torch.no_grad(), counter:
            one.forward()
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)
    return counter.get_total_flops() // (2 * len(one.batch[0]))


def peak_memory(one: Work) -> int:
    """See `Cost`."""
    held = (*one.network.parameters(), *one.network.buffers(), *one.batch)
    own = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return own + growth(one.step if one.trained else one.evaluate, one.batch[0].device)


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that tensors take at the worst moment of `run`, above what they took before.

    On a GPU its allocator knows; on a CPU all is added up that torch's allocator hands out and gets
    back, scratch memory inside of kernels included. `run` is called twice: what the first call
    allocates once and for all does not count.
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
    for event in record.profiler.kineto_results.events():  # in the order of time
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def seconds(run: Callable[[], None], device: torch.device) -> float:
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def hardware(device: torch.device | None = None) -> str:
    """Names the GPU, or the processor, its cores and the threads that torch uses.

    Args:
        device: what is measured on; by default the GPU where there is one.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {threads} thread{plural}"
