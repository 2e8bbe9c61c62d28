"""The interface of a method: its networks, a loss for each player, and the sampler its student runs with.

A distiller is a plain object. It owns networks, never optimisers, devices, precision or logging: those live in `training`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from stepdistill.critics.reward import Reward
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.config import Roles
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import Samples
from stepdistill.diffusion.sampler import SamplerKind, StudentSampler
from stepdistill.diffusion.times import shift_time
from stepdistill.distillers.batch import Batch, Pairs
from stepdistill.distillers.config import DistillerConfig, Requirements
from stepdistill.distillers.turn import Handoff, Losses, PerTime, Turn, TurnSchedule, student_only
from stepdistill.errors import UserError

__all__ = ["Batch", "Distiller", "Handoff", "Losses", "Pairs", "PerTime", "Requirements", "Turn"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Distiller(ABC):
    """A distillation method.

    A method states `paper`, `requires`, `status`, `Config` and `passes` (network passes per sample and iteration at its default
    options), and defines `setup` (its parts beside the student), `student_step` and, if it trains critics, `critic_step`.

    Args:
        teacher: the frozen network.
        config: an instance of the method's `Config`; None for its defaults.
        roles: how student and critics are made from the teacher: adapters on one network, or full copies.
        student: a ready student, instead of a new role of the teacher.
        fake_score: a ready fake score, for methods that train one; the first one if they train several.
        reward: rates images, for methods with one.

    Attributes:
        turn_schedule: maps a step to the players updated in it, in order; `setup` replaces the default, the student alone.
        is_flow_map: whether one step of the student should end where the guided teacher's trajectory from the same noise
            ends; validation then logs the distance.
    """

    paper: ClassVar[str]
    requires: ClassVar[Requirements] = Requirements()
    status: ClassVar[Literal["verified", "toy", "untested"]] = "untested"
    passes: ClassVar[float]
    Config: ClassVar[type[DistillerConfig]] = DistillerConfig
    config: Any  # an instance of `Config`, narrowed by each method
    is_flow_map: bool = False

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
        reward: Reward | None = None,
    ) -> None:
        if teacher.prediction not in self.requires.predictions:
            raise UserError(
                f"{type(self).__name__} does not support a teacher that predicts '{teacher.prediction}'; "
                f"supported: {', '.join(self.requires.predictions)}"
            )
        self.teacher, self.reward = teacher, reward
        self.config = config if config is not None else self.Config()
        self.roles = roles or Roles()
        self.student = student if student is not None else teacher.role("student", self.roles)
        given = [] if fake_score is None else [fake_score]
        missing = range(self.config.num_fake_scores - len(given))
        self.fake_scores = [*given, *(teacher.role("fake_score", self.roles) for _ in missing)]
        self.turn_schedule: TurnSchedule = student_only
        self._parts: dict[str, tuple[nn.Module, Turn | None]] = {}
        for name, network in numbered("fake_score", self.fake_scores).items():
            self.add_network(name, network, turn="critic")
        self.setup()

    def setup(self) -> None:
        """Create what the method has beside student and fake scores: laws of times, heads, targets, its turns."""

    @abstractmethod
    def student_step(self, batch: Batch) -> Losses:
        """Return the student's losses on one batch."""

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Return the critics' losses on one batch.

        Args:
            batch: the same batch as the student's turn of this iteration.
            samples: `Losses.samples` of that turn; None: draw new ones.
        """
        raise NotImplementedError(f"{type(self).__name__} has no critic")

    def turns(self, step: int) -> Sequence[Turn]:
        """The players updated in an iteration, in order."""
        return self.turn_schedule(step)

    @property
    def credit(self) -> tuple[str, str]:
        """Name and paper that model cards credit; they depend on the options where one class covers several papers."""
        return type(self).__name__, self.paper

    @property
    def fake_score(self) -> Denoiser:
        """The fake score; the first if there are several."""
        return self.fake_scores[0]

    def add_network(self, name: str, network: NetworkT, *, turn: Turn | None) -> NetworkT:
        """Register a network beside the student and return it.

        Args:
            name: its name in checkpoints.
            network: a role of the teacher or any module.
            turn: the turn that trains it; None if it has no gradient (an average).
        """
        self._parts[name] = (network, turn)
        return network

    def begin(self, turn: Turn, batch: Batch) -> RandomStream:
        """Let gradients reach only this turn's parameters, and return the turn's random stream.

        The restriction has to last until the backward pass ends, because checkpointed blocks are recomputed there.
        """
        for name, parameters in self.players().items():
            for parameter in parameters:
                parameter.requires_grad_(name == turn)
        return batch.rng.fork(turn)

    def after_student_update(self, step: int) -> None:
        """Run after each update of the student; averages that serve as targets are updated here."""

    def students(self) -> dict[str, Denoiser]:
        """The networks that are averaged, kept and exported, by name: one, or several experts."""
        return {"student": self.student}

    def networks(self) -> dict[str, nn.Module]:
        """Every network in a checkpoint, by name."""
        return {**self.students(), **{name: network for name, (network, _) in self._parts.items()}}

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """The parameters that each turn updates."""
        players: dict[Turn, list[nn.Parameter]] = {
            "student": [p for student in self.students().values() for p in student.trainable_parameters()]
        }
        for network, turn in self._parts.values():
            if turn is not None:
                players.setdefault(turn, []).extend(
                    network.trainable_parameters() if isinstance(network, Denoiser) else network.parameters()
                )
        return players

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The trained tensors of each network, without frozen weights."""
        return {
            name: network.role_state_dict() if isinstance(network, Denoiser) else network.state_dict()
            for name, network in self.networks().items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the result of `state`; every key has to match."""
        for name, network in self.networks().items():
            if isinstance(network, Denoiser):
                network.load_role_state_dict(state[name])
            else:
                network.load_state_dict(state[name])

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """The sampler the student is trained for, or one of the same kind with another number of steps."""
        kind = self.config.sampler_kind
        return StudentSampler(self.student_times(num_steps or self.config.num_steps, kind), kind)

    def student_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """The stock scheduler's grid, shifted by `grid_shift` and scaled to begin at `first_time`."""
        times, first = self.student.few_step_times(num_steps, kind), self.config.first_time
        if first == self.config.grid_shift == 1:
            return times
        moved = first * shift_time(torch.tensor(times, dtype=torch.float64), self.config.grid_shift)
        return tuple(self.student.nearest_time(t) for t in moved.tolist())

    def pipeline(self) -> Any:
        """Return a stock diffusers pipeline that runs the student with the few-step scheduler set."""
        return self.student.pipeline(self.sampler())


def numbered(name: str, networks: list[Denoiser]) -> dict[str, Denoiser]:
    """Name networks of one kind: name, name_2, name_3, ..."""
    return {name if i == 1 else f"{name}_{i}": network for i, network in enumerate(networks, start=1)}
