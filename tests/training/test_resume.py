"""What a resumed run keeps: the count of bad steps, the best score, the cost, Adam's moments, the average."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.training.checkpoint import latest_checkpoint, load_checkpoint
from stepdistill.training.recipe import ValidationConfig
from stepdistill.training.trainer import Trainer

NAN = float("nan")
Build = Callable[..., tuple[Trainer, object]]


def test_bad_steps_are_counted_over_all_attempts(sloped: Build, tmp_path: Path) -> None:
    """Both players' losses are no numbers at every step: two skips each, and the fifth one ends the run."""
    bad = {"factors": [NAN] * 9, "max_skipped_steps": 5}
    first, _ = sloped(**bad, max_train_steps=2)
    first.fit()
    assert first.num_skipped == 4
    second, distiller = sloped(**bad, max_train_steps=9)
    with pytest.raises(UserError, match=r"5 steps were not finite, the last in the student's slope"):
        second.fit()
    assert second.num_skipped == 5
    assert len(distiller.seen["student"]) == 1, "the first bad step after the resume is the last one"
    read = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in read if "loss/slope" not in line][-1] == 5


def test_one_bad_step_less_than_the_bound_is_survived(sloped: Build) -> None:
    trainer, _ = sloped(factors=[NAN, NAN], max_skipped_steps=5, max_train_steps=4)
    trainer.fit()
    assert trainer.num_skipped == 4


class Scores:
    """A validator that measures nothing: its distances are given by step."""

    def __init__(self, distances: Mapping[int, float]) -> None:
        self.distances = distances

    def run(self, step: int) -> dict[str, float]:
        return {"validation/frechet_distance": self.distances[step]}


def best(run_dir: Path) -> tuple[str, float, float]:
    """Step, distance and first weight of what is kept in `best/`."""
    folder = latest_checkpoint(run_dir / "best")
    assert folder is not None
    tensors, state = load_checkpoint(folder)
    return folder.name, state["frechet_distance"], tensors["student"]["gain"].item()


def scored(sloped: Build, distances: Mapping[int, float], max_train_steps: int) -> Trainer:
    trainer, _ = sloped(
        validation=ValidationConfig(every=1), max_train_steps=max_train_steps, learning_rate=0.1, ema_decay=0.0
    )
    trainer.build_validator = lambda: Scores(distances)  # type: ignore[method-assign]
    trainer.fit()
    return trainer


def test_a_worse_score_after_a_resume_does_not_replace_the_best(sloped: Build, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert scored(sloped, {0: 0.5, 1: 5.0, 2: 3.0}, 2).best_score == 3.0, "step 0 is the teacher's student"
    assert best(run_dir) == ("step_2", 3.0, pytest.approx(0.8))
    assert scored(sloped, {3: 4.0, 4: 3.0}, 4).best_score == 3.0
    assert best(run_dir) == ("step_2", 3.0, pytest.approx(0.8))
    assert scored(sloped, {5: 2.0, 6: 2.5}, 6).best_score == 2.0
    assert best(run_dir) == ("step_5", 2.0, pytest.approx(0.5))
    assert [path.name for path in run_dir.glob("best/checkpoints/step_*")] == ["step_5"], "one is kept"


def test_the_best_student_is_kept_as_its_average(sloped: Build, tmp_path: Path) -> None:
    trainer, distiller = sloped(
        validation=ValidationConfig(every=2), max_train_steps=2, learning_rate=0.1, ema_decay=0.999
    )
    trainer.build_validator = lambda: Scores({0: 9.0, 2: 1.0})  # type: ignore[method-assign]
    trainer.fit()
    average = 3 / 12 * (2 / 11 * 1.0 + 9 / 11 * 0.9) + 9 / 12 * 0.8
    assert best(tmp_path / "run")[2] == pytest.approx(average, abs=1e-5)
    assert distiller.weights("student")[0].item() == pytest.approx(0.8, abs=1e-5)


def test_the_cost_of_all_attempts_is_summed(sloped: Build, tmp_path: Path) -> None:
    """Three samples a step through the student, once."""
    sloped(train_batch_size=3, max_train_steps=2)[0].fit()
    first = json.loads((tmp_path / "run/cost.json").read_text())
    assert first["network_passes"] == 6
    resumed, _ = sloped(train_batch_size=3, max_train_steps=5)
    resumed.cost.seconds = 1e6  # what was measured before `fit` is of no run
    resumed.fit()
    record = json.loads((tmp_path / "run/cost.json").read_text())
    assert record["network_passes"] == 15
    assert first["train_seconds"] <= record["train_seconds"] < 1000
    assert record["peak_memory_mib"] >= first["peak_memory_mib"] > 0


def test_moments_rates_and_the_average_are_those_of_the_uninterrupted_run(sloped: Build, tmp_path: Path) -> None:
    """Slopes that change show what Adam remembers."""
    settings = {"factors": [1.0, -0.5, 0.25, 1.0, 2.0], "lr_scheduler": "linear", "lr_warmup_steps": 2}
    whole, expected = sloped(**settings, max_train_steps=5, output_dir=str(tmp_path / "whole"))
    whole.fit()
    stopped, _ = sloped(**settings, max_train_steps=5, checkpointing_steps=3)
    stopped.after_step = lambda done, bar, after=stopped.after_step: after(done, bar) if done < 4 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        stopped.fit()
    resumed, distiller = sloped(**settings, max_train_steps=5)
    resumed.fit()
    assert len(distiller.seen["student"]) == 2
    for turn in ("student", "critic"):
        assert torch.equal(distiller.weights(turn), expected.weights(turn))
    assert torch.equal(resumed.ema.average[0], whole.ema.average[0])


def test_null_starts_over_and_a_folder_is_resumed(sloped: Build, tmp_path: Path) -> None:
    sloped(max_train_steps=4, checkpointing_steps=1)[0].fit()
    _, distiller = build = sloped(max_train_steps=2, resume_from_checkpoint=None)
    build[0].fit()
    assert len(distiller.seen["student"]) == 2
    _, distiller = build = sloped(max_train_steps=4, resume_from_checkpoint=str(tmp_path / "run/checkpoints/step_3"))
    build[0].fit()
    assert distiller.seen["student"] == [[pytest.approx(0.7), pytest.approx(-0.3)]]


def test_checkpoints_and_lines_come_when_they_are_due(sloped: Build, tmp_path: Path) -> None:
    trainer, _ = sloped(max_train_steps=7, checkpointing_steps=2, checkpoints_total_limit=3, log_every=3)
    trainer.fit()
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step_*"))
    assert names == ["step_4", "step_6", "step_7"]
    read = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in read] == [3, 6, 7]
