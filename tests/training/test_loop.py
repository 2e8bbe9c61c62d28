"""What the loop does when: validations, logs, updates, and how a bad step is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepdistill.distillers.base import Batch, Losses
from stepdistill.errors import UserError
from stepdistill.training.checkpoint import latest_checkpoint
from stepdistill.training.recipe import ValidationConfig
from stepdistill.training.tracking import Tracker
from stepdistill.training.trainer import Trainer

NAN = float("nan")
Build = Callable[..., tuple[Trainer, Any]]


class Watcher:
    """A validator that keeps the student's weight at each validation."""

    def __init__(self, distiller: Any) -> None:
        self.distiller = distiller
        self.seen: dict[int, float] = {}

    def run(self, step: int) -> dict[str, float]:
        self.seen[step] = self.distiller.weights("student")[0].item()
        return {"validation/seen": self.seen[step]}


def watched(sloped: Build, **options: Any) -> tuple[Watcher, Trainer]:
    trainer, distiller = sloped(validation=ValidationConfig(every=2), **options)
    watcher = Watcher(distiller)
    trainer.build_validator = lambda: watcher  # type: ignore[method-assign,return-value]
    trainer.fit()
    return watcher, trainer


def read(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


def test_the_average_is_validated_before_the_first_step_when_due_and_at_the_end(sloped: Build, tmp_path: Path) -> None:
    watcher, trainer = watched(sloped, max_train_steps=5, learning_rate=0.1, ema_decay=0.999)
    assert list(watcher.seen) == [0, 2, 4, 5]
    second = 3 / 12 * (2 / 11 * 1.0 + 9 / 11 * 0.9) + 9 / 12 * 0.8
    assert watcher.seen[0] == 1.0
    assert watcher.seen[2] == pytest.approx(second, abs=1e-5)
    assert watcher.seen[5] == pytest.approx(trainer.ema.average[0].item())
    assert [line["step"] for line in read(tmp_path) if "validation/seen" in line] == [0, 2, 4, 5]
    resumed, _ = watched(sloped, max_train_steps=6)
    assert list(resumed.seen) == [6], "the start is the first attempt's"


def test_every_turn_is_logged_at_every_interval_and_at_the_end(sloped: Build, tmp_path: Path) -> None:
    trainer, _ = sloped(max_train_steps=5, log_every=2, factors=(1.0, 2.0, 3.0, 5.0, 8.0))
    trainer.fit()
    found = [(line["step"], line["student/factor"], line["critic/factor"]) for line in read(tmp_path)]
    assert found == [(2, 1.5, 1.5), (4, 4.0, 4.0), (5, 8.0, 8.0)]


def test_the_method_hears_of_each_update_of_the_student_and_of_no_skipped_one(sloped: Build) -> None:
    trainer, distiller = sloped(max_train_steps=4, factors=(1.0, NAN, 1.0, 1.0))
    trainer.fit()
    assert distiller.updated == [0, 2, 3]
    assert trainer.ema.num_updates == 3


def test_a_gradient_that_overflows_under_a_finite_loss_is_named_and_kept_from_the_weights(
    sloped: Build, tmp_path: Path
) -> None:
    """The slopes are finite in float32, their norm is not."""
    trainer, distiller = sloped(student=(3e38, 3e38), max_train_steps=3, max_skipped_steps=2)
    with pytest.raises(UserError, match=r"2 steps were not finite, the last in the student's gradient"):
        trainer.fit()
    assert distiller.weights("student").tolist() == [1.0, 0.0]
    folder = latest_checkpoint(tmp_path / "run")
    assert folder is not None
    assert folder.name == "step_1"


def test_samples_of_all_micro_batches_are_trained_on(sloped: Build) -> None:
    trainer, distiller = sloped(train_batch_size=2, gradient_accumulation_steps=3)
    seen: list[torch.Tensor] = []
    compute = distiller.student_step
    distiller.student_step = lambda batch: seen.append(batch.noise("start")) or compute(batch)
    trainer.fit()
    assert [len(noise) for noise in seen] == [2, 2, 2]
    assert len(torch.cat(seen).unique()) == 6


def test_the_critics_judge_the_students_samples_of_their_own_micro_batch(sloped: Build) -> None:
    trainer, distiller = sloped(train_batch_size=2, gradient_accumulation_steps=3)
    student, critic, received = distiller.student_step, distiller.critic_step, []

    def drawing(batch: Batch) -> Losses:
        return replace(student(batch), samples=batch.rng.indices)  # type: ignore[arg-type]

    def judging(batch: Batch, samples: Any) -> Losses:
        received.append((batch.rng.indices, samples))
        return critic(batch)

    distiller.student_step, distiller.critic_step = drawing, judging
    trainer.fit()
    assert received == [((0, 1), (0, 1)), ((2, 3), (2, 3)), ((4, 5), (4, 5))]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_trains_on_its_own_share(sloped: Build, tmp_path: Path, rank: int) -> None:
    trainer, distiller = sloped(train_batch_size=2, gradient_accumulation_steps=2)
    trainer.accelerator = SimpleNamespace(  # type: ignore[assignment]
        num_processes=2, process_index=rank, mixed_precision="no", autocast=nullcontext, is_main_process=True
    )
    (tmp_path / "run").mkdir()
    trainer.tracker = Tracker(tmp_path / "run", [])
    seen: list[torch.Tensor] = []
    compute = distiller.student_step
    distiller.student_step = lambda batch: seen.append(batch.noise("start")) or compute(batch)
    trainer.run_step(3)
    whole = trainer.data.batch(seed=0, step=3, indices=range(8), size=8).noise("start")
    assert torch.equal(torch.cat(seen), whole[4 * rank : 4 * rank + 4])
