"""Means over turns and noise levels, and a metrics.jsonl without the lines of abandoned attempts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stepdistill.distillers.base import PerTime
from stepdistill.training import tracking
from stepdistill.training.tracking import Tracker


def lines(tracker: Tracker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tracker.file.read_text().splitlines()]


def test_values_are_averaged_since_the_last_reading(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, [])
    for value in (1.0, 2.0, 6.0):
        tracker.add("loss", {"a": torch.tensor(value)})
    tracker.add("loss", {"b": torch.tensor(5.0)})
    assert tracker.means() == {"loss/a": 3.0, "loss/b": 5.0}
    assert tracker.means() == {}
    tracker.add("loss", {"a": torch.tensor(10.0)})
    assert tracker.means() == {"loss/a": 10.0}


def test_values_per_sample_are_averaged_by_noise_level(tmp_path: Path) -> None:
    """A bucket has its lower edge, the last one its upper edge too; an empty bucket is left out."""
    tracker = Tracker(tmp_path, [])
    t = torch.tensor([0.0, 0.1, 0.2, 0.85, 1.0])
    tracker.add("student", {"error": PerTime(torch.tensor([1.0, 3.0, 7.0, 10.0, 20.0]), t)})
    tracker.add("student", {"error": PerTime(torch.tensor([5.0]), torch.tensor([0.15]))})
    assert tracker.means() == {"student/error_t0.0": 3.0, "student/error_t0.2": 7.0, "student/error_t0.8": 15.0}


def test_lines_after_the_step_of_a_resume_are_of_an_abandoned_attempt(tmp_path: Path) -> None:
    first = Tracker(tmp_path, [])
    for step in (0, 2, 4, 6):
        first.write(step, {"x": float(step)})
    resumed = Tracker(tmp_path, [], resume_step=4)
    assert [line["step"] for line in lines(resumed)] == [0, 2, 4]
    resumed.write(5, {"x": -1.0})
    assert [(line["step"], line["x"]) for line in lines(resumed)][-1] == (5, -1.0)


def test_other_trackers_get_the_same_numbers_and_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def log(self, values: dict[str, float], step: int | None = None) -> None:
            self.heard.append((step, values))

        def finish(self) -> None:
            self.heard.append("finished")

    listener = Listener()
    monkeypatch.setattr(tracking, "_start_tracker", lambda name, run_dir: listener)
    tracker = Tracker(tmp_path, ["wandb"])
    tracker.write(3, {"x": 1.0})
    tracker.close()
    assert listener.heard == [(3, {"x": 1.0}), "finished"]
    assert lines(tracker)[0]["step"] == 3
