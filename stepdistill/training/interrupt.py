"""SIGTERM and Ctrl-C: finish the step, write a checkpoint, leave with 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import psutil


class InterruptGuard:
    """Within the block the first SIGINT or SIGTERM only sets `requested`; a second one acts as usual.

    Signals can only be caught in the main thread; elsewhere (some notebooks) the guard does nothing.
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
    """Within the block SIGTERM reaches the programs that this one has started too, and is then what Ctrl-C is here.

    Ctrl-C needs no passing on, as the terminal sends it to all of them. Outside of the main thread, where signals cannot be caught,
    nothing is changed.

    Raises:
        KeyboardInterrupt: SIGTERM came.
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
