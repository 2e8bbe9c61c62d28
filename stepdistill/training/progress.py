"""The progress bar: steps, seconds per step, time left, memory, the latest losses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def peak_memory_gib() -> float:
    """Return peak memory in GiB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class TrainingProgress:
    """A progress bar on standard error, shown while the block runs.

    In a notebook it needs ipywidgets; without them it is printed once, at the end.

    Args:
        total: steps of the run.
        start: steps already done before a resume.
        shown: False on all processes but the main one.
    """

    def __init__(self, total: int, start: int, *, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("[bold]distil"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True, force_jupyter=None if find_spec("ipywidgets") else False),
            disable=not shown,
        )
        self._task = self._bar.add_task("train", total=total, completed=start, rate="", note="")
        self._seconds: float | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        self._last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count one step."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self._seconds = elapsed if self._seconds is None else 0.95 * self._seconds + 0.05 * elapsed
        self._bar.update(self._task, advance=1, rate=f"{self._seconds:.2f} s/it")

    def show(self, means: Mapping[str, float]) -> None:
        """Show the latest losses and the memory beside the bar."""
        losses = [
            f"{name.removeprefix('loss/')} {value:.3g}" for name, value in means.items() if name.startswith("loss/")
        ]
        self._bar.update(self._task, note="  ".join([f"{peak_memory_gib():.1f} GiB", *losses]))
