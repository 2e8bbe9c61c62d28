"""Samples through networks, seconds and memory: counted once each, within training only, over all attempts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepdistill.testing import GaussianTeacher
from stepdistill.training import cost
from stepdistill.training.cost import CostMeter, peak_memory_mib


def test_samples_are_counted_not_calls_and_within_training_only() -> None:
    teacher, head = GaussianTeacher(0.0, 1.0), nn.Linear(1, 1)
    meter = CostMeter([teacher, teacher, head])
    x, cond = torch.zeros(5, 1), teacher.encode(["a"] * 5)
    teacher(x, torch.ones(5), cond)
    with meter.counted():
        teacher(x, torch.ones(5), cond)
        teacher(x[:2], t=torch.ones(2), cond=cond[:2])
        head(x)
    teacher(x, torch.ones(5), cond)
    assert meter.record()["network_passes"] == 7


def test_counting_ends_with_the_block_even_after_an_error() -> None:
    teacher = GaussianTeacher(0.0, 1.0)
    meter = CostMeter([teacher])
    with pytest.raises(ZeroDivisionError), meter.counted():
        raise ZeroDivisionError
    teacher(torch.zeros(1, 1), torch.ones(1), teacher.encode(["a"]))
    assert meter.num_passes == 0


def test_seconds_add_up_and_the_peak_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = CostMeter([])
    clock, memory = iter([0.0, 1.5, 10.0, 12.25]), iter([300.4, 200.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(cost, "peak_memory_mib", lambda: next(memory))
    for _ in range(2):
        with meter.counted():
            pass
    assert meter.record() == {"network_passes": 0, "train_seconds": 3.8, "peak_memory_mib": 300}


def test_a_restored_meter_goes_on() -> None:
    meter = CostMeter([])
    meter.load_state({"num_passes": 10, "seconds": 2.0, "peak_memory_mib": 1e9})
    assert meter.state() == {"num_passes": 10, "seconds": 2.0, "peak_memory_mib": 1e9}
    with meter.counted():
        pass
    assert meter.record()["peak_memory_mib"] == 1e9
    assert meter.seconds > 2.0
    meter.load_state({"num_passes": 1, "seconds": 0.0})  # checkpoints of before the peak was kept
    assert meter.peak_memory_mib == 0.0


def test_memory_is_in_mebibytes() -> None:
    """A Python with torch takes some hundred MiB, and no terabyte."""
    assert 50 < peak_memory_mib() < 500_000
