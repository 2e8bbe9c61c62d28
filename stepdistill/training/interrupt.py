"""SIGTERM and Ctrl-C: finish the step, write a checkpoint, exit with 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import psutil


class InterruptGuard:
    """Within the block, the first SIGINT or SIGTERM only sets `requested`; the second acts as usual.

    Only the main thread can catch signals; in another thread (some notebooks) the guard does nothing.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> InterruptGuard:
        caught = self.signals if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def termination_passed_on() -> Iterator[None]:
    """Within the block, forward SIGTERM to child processes and raise KeyboardInterrupt.

    Ctrl-C needs no forwarding, because the terminal sends it to the whole group. Only the main thread can catch signals; in another
    thread this does nothing.

    Raises:
        KeyboardInterrupt: SIGTERM was received.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for program in psutil.Process().children():
            program.terminate()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
