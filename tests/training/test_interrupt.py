"""The first signal is noted, the second acts; programs that were started get SIGTERM too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from stepdistill.training.interrupt import InterruptGuard, termination_passed_on


class ReachedError(Exception):
    """The handler that was there before ran."""


@pytest.fixture(autouse=True)
def _handlers():
    """Handlers that raise, so that no signal ends the tests."""

    def reached(number: int, frame: object) -> None:
        raise ReachedError(number)

    before = {number: signal.signal(number, reached) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number: int, second: int) -> None:
    with InterruptGuard() as guard:
        assert not guard.requested
        os.kill(os.getpid(), number)
        assert guard.requested
        with pytest.raises(ReachedError):
            os.kill(os.getpid(), second)


def test_after_the_block_signals_act_as_before() -> None:
    with InterruptGuard() as guard:
        pass
    with pytest.raises(ReachedError):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not guard.requested


def test_outside_of_the_main_thread_nothing_is_caught() -> None:
    found: list[object] = []

    def work() -> None:
        with InterruptGuard() as guard, termination_passed_on():
            found.append(guard.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_sigterm_reaches_the_programs_that_were_started() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(KeyboardInterrupt), termination_passed_on():
            os.kill(os.getpid(), signal.SIGTERM)
        assert sleeper.wait(timeout=10) == -signal.SIGTERM
    finally:
        sleeper.kill()
        sleeper.wait()
    with pytest.raises(ReachedError):
        os.kill(os.getpid(), signal.SIGTERM)
