"""A turn: one player's losses, their backward pass, and the schedules that say whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.rollout import Samples
from stepdistill.typing import Latents, Times

Turn = Literal["student", "critic"]
TurnSchedule = Callable[[int], Sequence[Turn]]
Terms = dict[str, Tensor]


def student_only(step: int) -> Sequence[Turn]:
    """One student update per iteration.

    >>> student_only(3)
    ('student',)
    """
    return ("student",)


def two_time_scales(student_every: int) -> TurnSchedule:
    """Update the critics in every iteration and the student in every k-th, before them (DMD2, section 4.2).

    >>> [two_time_scales(2)(step) for step in (0, 1)]
    [('student', 'critic'), ('critic',)]
    """

    def turns(step: int) -> Sequence[Turn]:
        return ("student", "critic") if step % student_every == 0 else ("critic",)

    return turns


@dataclass(frozen=True)
class PerTime:
    """One value per sample and the time it was taken at; the tracker averages it per noise bucket."""

    values: Tensor
    t: Times


Logs = dict[str, Tensor | PerTime]


class Handoff:
    """Cuts the graph between the student and the networks that judge its output: the two-stage backward.

    The losses are functions of `leaf`, and their gradient in it is taken while the judges' adapter is active. `backward` then
    activates the student's adapter and continues through its graph. The result equals the joint gradient exactly. With
    gradient checkpointing it is the only order in which the student's blocks are recomputed under the student's adapter.
    """

    def __init__(self, x: Latents, student: Denoiser) -> None:
        self._x, self._student = x, student
        self.leaf = x.detach().requires_grad_()

    def backward(self) -> None:
        """Continue the backward pass from the leaf into the student."""
        if self.leaf.grad is None:
            raise RuntimeError("no loss depends on the student's samples")
        self._student.activate()
        self._x.backward(self.leaf.grad)


@dataclass
class Losses:
    """The loss terms of one turn.

    Attributes:
        terms: scalar losses by name.
        weights: factor of each term; 1 where absent.
        logs: tensors to track. They stay on their device until the tracker reads them.
        handoff: present if the terms are functions of its leaf.
        samples: the student's samples, detached, for the critic's turn of the same iteration.
    """

    terms: Terms
    weights: Mapping[str, float] = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    handoff: Handoff | None = None
    samples: Samples | None = None

    @property
    def total(self) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in self.terms.items()]).sum()

    def backward(self, scale: float = 1.0) -> None:
        """Accumulate `scale` times the gradient of the total into the parameters of this turn's player."""
        (self.total * scale).backward()
        if self.handoff is not None:
            self.handoff.backward()
