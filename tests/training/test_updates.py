"""What one step does to the weights: rates, clipping, accumulation, Adam's settings, the average."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from stepdistill.distillers.base import Turn
from stepdistill.training.optim import rate_factor
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.trainer import Trainer

Build = Callable[..., tuple[Trainer, object]]


def moments(trainer: Trainer, turn: Turn, name: str) -> list[float]:
    """Adam's moment of both weights of a player."""
    state = trainer.optimizers[turn].state
    return [state[parameter][name].item() for parameter in trainer.players[turn]]


def moves(distiller, turn: Turn) -> list[float]:
    """How far the first weight of a player went in each step."""
    values = [first for first, _ in distiller.seen[turn]] + [distiller.weights(turn)[0].item()]
    return [before - after for before, after in pairwise(values)]


LAWS = {
    "constant": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4],
    "cosine": [0.25, 0.5, 0.75, 1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * n / 4)) for n in range(4))],
}
"""Four steps of warm-up of eight, then down to a fifth."""


@pytest.mark.parametrize("law", LAWS)
def test_each_player_moves_at_its_own_rate_through_warm_up_and_decay(sloped: Build, law: str) -> None:
    """Under a constant gradient every step of Adam is the learning rate, whatever the gradient's size."""
    schedule = {"lr_scheduler": law, "lr_warmup_steps": 4, "lr_final_factor": 0.2, "max_train_steps": 8}
    trainer, distiller = sloped(
        student=(0.3, 0.3), critic=(7.0, 7.0), learning_rate=0.1, critic_learning_rate=0.02, **schedule
    )
    trainer.fit()
    assert moves(distiller, "student") == pytest.approx([0.1 * factor for factor in LAWS[law]], rel=1e-4)
    assert moves(distiller, "critic") == pytest.approx([0.02 * factor for factor in LAWS[law]], rel=1e-4)
    rates = {turn: [group["lr"] for group in each.param_groups] for turn, each in trainer.optimizers.items()}
    assert rates["student"] == pytest.approx([0.1 * LAWS[law][-1]])
    assert rates["critic"] == pytest.approx([0.02 * LAWS[law][-1]])


def test_critics_have_the_students_rate_where_none_is_given(sloped: Build) -> None:
    trainer, distiller = sloped(learning_rate=0.1, max_train_steps=2)
    trainer.fit()
    assert moves(distiller, "critic") == pytest.approx([0.1, 0.1], rel=1e-4)


def test_the_logged_rate_is_that_of_the_step(sloped: Build, tmp_path: Path) -> None:
    trainer, _ = sloped(lr_warmup_steps=4, max_train_steps=3, learning_rate=0.1)
    trainer.fit()
    read = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in read] == pytest.approx([0.025, 0.05, 0.075])


def test_the_rate_stays_at_its_end_beyond_the_last_step() -> None:
    for law in ("linear", "cosine"):
        config = TrainConfig(lr_scheduler=law, max_train_steps=4, lr_final_factor=0.1)
        assert rate_factor(4, config) == rate_factor(9, config) == pytest.approx(0.1)


def test_a_gradient_ten_times_too_long_counts_as_one_of_the_bound(sloped: Build) -> None:
    """(30, 40) has norm 50; at max_grad_norm 5 Adam takes in (3, 4), and a short gradient as it comes."""
    trainer, _ = sloped(student=(30.0, 40.0), critic=(0.3, 0.4), max_grad_norm=5.0, adam_beta1=0.9, adam_beta2=0.99)
    trainer.fit()
    assert moments(trainer, "student", "exp_avg") == pytest.approx([0.1 * 3.0, 0.1 * 4.0], rel=1e-4)
    assert moments(trainer, "student", "exp_avg_sq") == pytest.approx([0.01 * 9.0, 0.01 * 16.0], rel=1e-4)
    assert moments(trainer, "critic", "exp_avg") == pytest.approx([0.1 * 0.3, 0.1 * 0.4], rel=1e-4)


def test_a_clipped_step_moves_the_weights_as_the_clipped_gradient_says(sloped: Build) -> None:
    """With an epsilon far above the gradient Adam is plain descent: a step of rate * gradient / epsilon."""
    descent = {"adam_beta1": 0.0, "adam_epsilon": 1e6, "learning_rate": 1e5, "max_grad_norm": 5.0}
    trainer, distiller = sloped(student=(30.0, 40.0), critic=(0.3, 0.4), **descent)
    before = {turn: distiller.weights(turn).clone() for turn in trainer.players}
    trainer.fit()
    moved = {turn: (before[turn] - distiller.weights(turn)).tolist() for turn in trainer.players}
    assert moved["student"] == pytest.approx([0.1 * 3.0, 0.1 * 4.0], rel=1e-3)
    assert moved["critic"] == pytest.approx([0.1 * 0.3, 0.1 * 0.4], rel=1e-3)


def test_the_logged_norm_is_that_before_clipping(sloped: Build, tmp_path: Path) -> None:
    trainer, _ = sloped(student=(30.0, 40.0), max_grad_norm=5.0)
    trainer.fit()
    (line,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert line["student/grad_norm"] == pytest.approx(50.0)
    assert line["critic/grad_norm"] == pytest.approx(math.sqrt(2))


def test_micro_batches_average_their_gradients(sloped: Build) -> None:
    """Adam hides a factor of all gradients; its first moment does not."""
    trainer, distiller = sloped(student=(0.6, 0.8), gradient_accumulation_steps=4, adam_beta1=0.5)
    trainer.fit()
    assert len(distiller.seen["student"]) == 4
    assert moments(trainer, "student", "exp_avg") == pytest.approx([0.3, 0.4], rel=1e-4)


def test_no_gradient_is_left_for_the_next_step(sloped: Build) -> None:
    trainer, _ = sloped(student=(0.6, 0.8), factors=(1.0, 0.0), max_train_steps=2, adam_beta1=0.5)
    trainer.fit()
    assert moments(trainer, "student", "exp_avg") == pytest.approx([0.15, 0.2], rel=1e-4)


def test_weights_decay_without_a_gradient(sloped: Build) -> None:
    trainer, distiller = sloped(student=(0.0, 0.0), adam_weight_decay=0.5, learning_rate=0.1, max_train_steps=3)
    trainer.fit()
    assert distiller.weights("student").tolist() == pytest.approx([(1 - 0.1 * 0.5) ** 3, 0.0], rel=1e-5)


def test_epsilon_bounds_the_step_of_a_small_gradient(sloped: Build) -> None:
    trainer, distiller = sloped(student=(0.01, 0.01), adam_epsilon=0.03, learning_rate=0.1)
    trainer.fit()
    assert moves(distiller, "student") == pytest.approx([0.1 * 0.01 / (0.01 + 0.03)], rel=1e-4)


def test_the_trainers_average_is_the_closed_form_and_waits_for_good_steps(sloped: Build) -> None:
    """The student goes 1.0, 0.9, 0.8, (a skipped step), 0.7; decays of three updates are 2/11, 3/12, 4/13."""
    trainer, distiller = sloped(
        factors=(1.0, 1.0, float("nan"), 1.0), max_train_steps=4, learning_rate=0.1, ema_decay=0.999
    )
    trainer.fit()
    expected = 1.0
    for weight, decay in zip((0.9, 0.8, 0.7), (2 / 11, 3 / 12, 4 / 13), strict=True):
        expected = decay * expected + (1 - decay) * weight
    assert trainer.ema.average[0].item() == pytest.approx(expected, abs=1e-5)
    assert trainer.num_skipped == 2  # the student's and the critic's
    with trainer.student_average():
        assert distiller.weights("student")[0].item() == pytest.approx(expected, abs=1e-5)
    assert distiller.weights("student")[0].item() == pytest.approx(0.7, abs=1e-5)
    assert torch.isfinite(distiller.weights("critic")).all()
