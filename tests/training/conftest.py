"""A method whose every gradient is known: what the trainer does with it has a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepdistill.distillers.base import Batch, Distiller, Losses, Turn
from stepdistill.testing import GaussianTeacher
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.trainer import Trainer


class Slopes(Distiller):
    """Losses that are linear in two weights: the gradient is `slopes`, whatever the step and the batch.

    Attributes:
        slopes: gradient of each player's (first, second) weight.
        factors: of the loss at each step; steps beyond them have factor 1.
        seen: both weights of each player before each of its updates.
        updated: the steps at which the student was updated.
    """

    paper = "https://arxiv.org/abs/1412.6980"

    def __init__(self, *, student: Sequence[float], critic: Sequence[float], factors: Sequence[float] = ()) -> None:
        super().__init__(GaussianTeacher(0.0, 1.0))
        self.turns = lambda step: ("student", "critic")
        self.critic = self.add_network("critic", nn.Linear(1, 1), turn="critic")
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        self.slopes: dict[Turn, Tensor] = {"student": torch.tensor(student), "critic": torch.tensor(critic)}
        self.factors = tuple(factors)
        self.seen: dict[Turn, list[list[float]]] = {"student": [], "critic": []}
        self.updated: list[int] = []

    def weights(self, turn: Turn) -> Tensor:
        return torch.cat([parameter.flatten() for parameter in self.players()[turn]])

    def student_step(self, batch: Batch) -> Losses:
        # The student's network is called, so that its passes are counted.
        self.student(batch.noise("start"), torch.ones(len(batch.cond)), batch.cond)
        return self._losses("student", batch)

    def critic_step(self, batch: Batch, samples: object = None) -> Losses:
        return self._losses("critic", batch)

    def after_student_update(self, step: int) -> None:
        self.updated.append(step)

    def _losses(self, turn: Turn, batch: Batch) -> Losses:
        self.seen[turn].append(self.weights(turn).tolist())
        factor = self.factors[batch.step] if batch.step < len(self.factors) else 1.0
        loss = factor * (self.slopes[turn] * self.weights(turn)).sum()
        return Losses({"slope": loss}, logs={"factor": torch.tensor(factor)})


@pytest.fixture
def sloped(tmp_path: Path) -> Callable[..., tuple[Trainer, Slopes]]:
    """Build a trainer of `Slopes` in `tmp_path/run`, and its method; keywords are those of the method or of `TrainConfig`."""

    def build(
        *,
        student: Sequence[float] = (1.0, 1.0),
        critic: Sequence[float] = (1.0, 1.0),
        factors: Sequence[float] = (),
        validation: Any = None,
        **options: Any,
    ) -> tuple[Trainer, Slopes]:
        distiller = Slopes(student=student, critic=critic, factors=factors)
        settings = {
            "max_train_steps": 1, "learning_rate": 0.1, "ema_decay": 0.9, "device": "cpu", "log_every": 1,
            "mixed_precision": "no", "output_dir": str(tmp_path / "run"),
        }  # fmt: skip
        config = TrainConfig.model_validate(settings | options)
        return Trainer(distiller, config, ["a", "b", "c"], validation=validation), distiller

    return build
