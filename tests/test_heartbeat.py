"""A process that was lost ends the others; one that works for long, or has finished, does not."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest

from attention_vision.training import heartbeat
from attention_vision.training.heartbeat import Heartbeat


def process(rank: int, ports, seconds: float, fault: int, finishes: bool) -> None:
    """One of two processes of a run whose main thread sleeps."""

    def broadcast(port: tuple[int, bytes]) -> tuple[int, bytes]:
        if rank == 0:
            ports.put(port)
            return port
        return ports.get()

    strategy = SimpleNamespace(
        broadcast=broadcast,
        launcher=None,
        cluster_environment=SimpleNamespace(main_address="127.0.0.1"),
    )
    trainer = SimpleNamespace(
        world_size=2, global_rank=rank, is_global_zero=rank == 0, strategy=strategy
    )
    beat = Heartbeat(seconds=2)
    beat.setup(trainer, None, "fit")
    time.sleep(seconds)
    if fault:
        os.kill(os.getpid(), fault)
    if finishes:
        beat.teardown(trainer, None, "fit")
    time.sleep(1)
    os._exit(0)


@pytest.mark.parametrize(
    ("lost", "fault", "code"),
    [
        (1, signal.SIGKILL, 1),
        (1, signal.SIGSTOP, 1),
        (0, signal.SIGKILL, 1),
        (1, 0, 0),  # works for long, and so finishes long after the other one
        (0, 0, 0),
    ],
)
def test_the_other_process(lost, fault, code, monkeypatch):
    monkeypatch.setattr(heartbeat, "TURN", 0.2)
    context = multiprocessing.get_context("fork")
    ports = context.Queue()
    seconds = {lost: 0.6 if fault else 2.0, 1 - lost: 6.0 if fault else 0.6}
    both = [
        context.Process(
            target=process,
            args=(rank, ports, seconds[rank], fault if rank == lost else 0, not fault),
        )
        for rank in (0, 1)
    ]
    for one in both:
        one.start()
    both[1 - lost].join(15)
    assert both[1 - lost].exitcode == code
    both[lost].kill()
    both[lost].join()
