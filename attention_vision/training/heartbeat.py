"""Ends a run of several processes when one of them has died or does not move."""

import os
import secrets
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

OK, BYE = b"ok", b"bye "
TURN = 1.0  # seconds between two reports


class Heartbeat(Callback):
    """End all processes of a run within a minute after one was killed or stopped.

    Without it the others wait in their next collective, NCCL's up to its timeout of many minutes. A
    thread of each process sends a datagram to rank zero every second and is answered; work of any
    length, such as a validation, does not stop it. Time is counted in the thread's own turns: a run
    that is suspended as a whole goes on. A process that never got through (a firewall) is not
    watched; one whose main thread waits for ever, while its other threads run, meets the timeout of
    the process group.

    Args:
        seconds: of silence until a process counts as lost.
    """

    def __init__(self, seconds: int = 45):
        self.seconds = seconds
        self._ended = threading.Event()
        self._failed = False  # the others then have to miss this process
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._thread is not None:
            return
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.settimeout(TURN)
        if trainer.is_global_zero:
            link.bind(("", 0))
        # The token tells this run's datagrams from others that reach the port.
        own = (link.getsockname()[1], secrets.token_bytes(8))
        port, token = trainer.strategy.broadcast(own)
        environment: Any = trainer.strategy  # that of several processes
        host = environment.cluster_environment.main_address
        if not trainer.is_global_zero:
            try:
                link.connect((host, port))  # takes no datagrams from elsewhere
            except OSError:  # a name without an address of this kind
                return
        watch = self.lead if trainer.is_global_zero else self.follow
        self._ended.clear()
        self._thread = threading.Thread(target=watch, args=(trainer, link, token), daemon=True)
        self._thread.start()

    def lead(self, trainer: Trainer, link: socket.socket, token: bytes) -> None:
        """Answer the others and count their silence; poll those that this process started."""
        silent: dict[int, int] = {}
        addresses: dict[int, Any] = {}
        started = getattr(trainer.strategy.launcher, "procs", [])
        while not self._ended.wait(TURN):
            silent = {rank: turns + 1 for rank, turns in silent.items()}
            with suppress(OSError):
                link.setblocking(False)
                while True:
                    beat, address = link.recvfrom(64)
                    if beat[: len(token)] != token:
                        continue
                    rank = int(beat[len(token) :].removeprefix(BYE))
                    if beat.startswith(BYE, len(token)):
                        silent.pop(rank, None)
                    else:
                        silent[rank], addresses[rank] = 0, address
                        link.sendto(OK, address)
            lost = [rank for rank, turns in silent.items() if turns > self.seconds]
            lost += [one for one, process in enumerate(started, 1) if process.poll()]
            if lost:
                for address in addresses.values():
                    send(link, str(lost[0]).encode(), address)
                self.end(trainer, lost[0])
        for address in () if self._failed else addresses.values():
            send(link, BYE, address)

    def follow(self, trainer: Trainer, link: socket.socket, token: bytes) -> None:
        """Report to rank zero every second, and count its silence."""
        silent: int | None = None
        rank = str(trainer.global_rank).encode()
        while not self._ended.wait(TURN):
            try:
                link.send(token + rank)
                answer = link.recv(64)
            except OSError:
                # Refused at once where the other process has ended, else after a turn.
                silent = None if silent is None else silent + 1
                if silent is not None and silent > self.seconds // 2:  # turns of two seconds
                    self.end(trainer, 0)
                continue
            if answer == BYE:
                return
            if answer != OK:
                self.end(trainer, int(answer))
            silent = 0
        with suppress(OSError):
            if not self._failed:
                link.send(token + BYE + rank)

    def end(self, trainer: Trainer, lost: int) -> None:
        """End this process, whose main thread may wait for the lost one for ever."""
        line = (
            f"attention-vision: error: process {lost} of {trainer.world_size} of this run has ended"
            " or does not move: this one ends too; its own line says why, if it has one\n"
        )
        os.write(2, line.encode())
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        os._exit(1)

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._failed = True
        self.stop()


def send(link: socket.socket, message: bytes, address: Any) -> None:
    with suppress(OSError):
        link.sendto(message, address)
