"""Curves: metrics.jsonl always, TensorBoard and others on request. Tensors are read from the device every `log_every` steps."""

from __future__ import annotations

import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.distillers.turn import PerTime
from stepdistill.errors import UserError
from stepdistill.training.parallel import sum_over_processes

TIME_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Edges of the noise buckets that per-sample values are averaged over."""


class Tracker:
    """Collect the values that turns log, and write their means.

    Args:
        run_dir: the run folder.
        report_to: other trackers, by their accelerate names.
        resume_step: lines of metrics.jsonl after this step are dropped; they belong to steps that will be repeated.
    """

    def __init__(self, run_dir: Path, report_to: list[str], resume_step: int = 0) -> None:
        self.file = run_dir / "metrics.jsonl"
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = defaultdict(float)
        self._started = time.time()
        self._trackers = [_start_tracker(name, run_dir) for name in report_to]
        if self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if json.loads(line)["step"] <= resume_step]
            self.file.write_text("".join(line + "\n" for line in lines))

    def add(self, prefix: str, values: Mapping[str, Tensor | PerTime]) -> None:
        """Add tensors without reading them."""
        for name, value in values.items():
            if isinstance(value, PerTime):
                self._add_per_time(f"{prefix}/{name}", value)
            else:
                self._add(f"{prefix}/{name}", value.detach().float(), 1.0)

    def _add_per_time(self, name: str, value: PerTime) -> None:
        for lo, hi in pairwise(TIME_EDGES):
            below = value.t <= hi if hi == TIME_EDGES[-1] else value.t < hi  # pure noise is at t = 1
            inside = ((value.t >= lo) & below).float()
            self._add(f"{name}_t{lo:.1f}", (value.values.detach().float() * inside).sum(), inside.sum())

    def _add(self, name: str, value: Tensor, count: Tensor | float) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts[name] + count

    def means(self) -> dict[str, float]:
        """Return the means since the last call, over all processes, with one read of the device."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        device = self._sums[names[0]].device
        counts = [torch.as_tensor(self._counts[name], device=device, dtype=torch.float32) for name in names]
        sums = torch.stack([self._sums[name] for name in names])
        table = sum_over_processes(torch.stack([sums, torch.stack(counts)])).tolist()
        self._sums.clear()
        self._counts.clear()
        return {name: total / count for name, total, count in zip(names, *table, strict=True) if count > 0}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl and log to the other trackers."""
        line = {"step": step, "time": round(time.time() - self._started, 3), **values}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Close the other trackers."""
        for tracker in self._trackers:
            tracker.finish()


def _start_tracker(name: str, run_dir: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"track.report_to: '{name}' is not installed; pip install 'stepdistill[tracking]' or remove it"
        )
    tracker = LOGGER_TYPE_TO_CLASS[name]
    options = {"logging_dir": str(run_dir)} if tracker.requires_logging_directory else {}
    instance = tracker(run_dir.name, **options)
    instance.start()
    return instance
