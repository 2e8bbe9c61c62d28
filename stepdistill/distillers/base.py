"""What a method is: networks, a loss for each player, and the sampler its student is meant for.

A distiller is a plain object. It owns networks and never optimisers, devices, precision or logging: those live in `training`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.sampler import SamplerKind, StudentSampler
from stepdistill.diffusion.times import shift_time
from stepdistill.distillers.config import DistillerConfig
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times

Turn = Literal["student", "critic"]


@dataclass(frozen=True)
class Pairs:
    """Noises and where the teacher's guided ODE takes them; all fields have the same rows.

    Attributes:
        noise: standard normal, before the schedule's `prior_std`.
        x0: the teacher's latents.
        cond: the prompts' conditioning.
    """

    noise: Latents
    x0: Latents
    cond: Conditioning


@dataclass
class Batch:
    """What one turn works on. Rows are the same samples in every field.

    Attributes:
        cond: the prompts' conditioning, B rows.
        uncond: the negative prompt's conditioning, B rows.
        rng: the turn's noise; named draws, one generator per sample.
        step: the optimisation step, for schedules that depend on it.
        shape: shape of one latent, without the batch dimension.
        latents: real latents for the methods that use data, or None. They are other samples than the prompts.
        latents_cond: the conditioning of the real latents.
        samples: student samples made earlier in this step, for a later turn of the same step to reuse.
        estimates: the student's x0 behind `samples`, where those stop short of the data.
        prompts: the texts behind `cond`, for rewards that read; empty where there are none.
        pairs: noises with the teacher's images of them, or None. They are other samples than the prompts.
    """

    cond: Conditioning
    uncond: Conditioning
    rng: RandomStream
    step: int
    shape: tuple[int, ...]
    latents: Latents | None = None
    latents_cond: Conditioning | None = None
    samples: Latents | None = None
    estimates: Latents | None = None
    prompts: tuple[str, ...] = ()
    pairs: Pairs | None = None

    def noise(self, purpose: str) -> Latents:
        """Standard normal noise of the latents' shape, (B, *shape)."""
        return self.rng.normal(purpose, self.shape)

    def real(self) -> tuple[Latents, Conditioning]:
        """Real latents with their conditioning.

        Raises:
            UserError: the recipe names no images.
        """
        if self.latents is None or self.latents_cond is None:
            raise UserError("this method needs real latents: set data.images")
        return self.latents, self.latents_cond


@dataclass(frozen=True)
class PerTime:
    """One value per sample with the time it was taken at; the tracker averages it per noise bucket."""

    values: Tensor
    t: Times


class Handoff:
    """Cuts the graph between the student and everything that judges its output.

    The judges' gradient is taken on `leaf` while their adapter is active; `backward` then re-activates the student and
    continues through its graph. The result is exactly the joint gradient, as the loss reaches the student through x0 alone, and
    with gradient checkpointing it is the only order in which the student's blocks are recomputed under the student's adapter.
    """

    def __init__(self, x0: Latents, student: Denoiser) -> None:
        self._x0, self._student = x0, student
        self.leaf = x0.detach().requires_grad_()

    def backward(self) -> None:
        """Continue the backward pass from the leaf into the student."""
        if self.leaf.grad is None:
            raise RuntimeError("no loss reached the student's samples: nothing to hand on")
        self._student.activate()
        self._x0.backward(self.leaf.grad)


@dataclass
class Losses:
    """The terms of one turn's loss.

    Attributes:
        terms: scalar losses by name.
        weights: factor of each term; 1 where none is given.
        logs: tensors to track. They stay on their device until the tracker reads them.
        handoff: set when the terms are functions of a cut-off student output.
    """

    terms: dict[str, Tensor]
    weights: Mapping[str, float] = field(default_factory=dict)
    logs: dict[str, Tensor | PerTime] = field(default_factory=dict)
    handoff: Handoff | None = None

    @property
    def total(self) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in self.terms.items()]).sum()

    def backward(self, scale: float = 1.0) -> None:
        """Accumulate `scale` times the gradient of the total into the parameters of this turn's player."""
        (self.total * scale).backward()
        if self.handoff is not None:
            self.handoff.backward()


@dataclass(frozen=True)
class Requirements:
    """What a method needs from the recipe.

    Attributes:
        latents: it needs real images.
        critic: it trains networks beside the student.
        pairs: it needs noises with the teacher's images of them.
        predictions: the prediction types it can work with.
    """

    latents: bool = False
    critic: bool = False
    pairs: bool = False
    predictions: tuple[str, ...] = ("x0", "eps", "v", "flow")

    def names(self) -> list[str]:
        """What is required, in words."""
        optional = {"real images": self.latents, "teacher pairs": self.pairs, "critic": self.critic}
        return ["prompts", *(name for name, is_needed in optional.items() if is_needed)]


class Publication(NamedTuple):
    """Under what name, and where, a method was published."""

    name: str
    paper: str


class Distiller(ABC):
    """A distillation method.

    Args:
        teacher: the frozen network.
        config: the method's own `Config`.
        roles: how student and critics are made from the teacher: adapters on one backbone, or full copies.
        student: a ready student, instead of the one the roles rule makes.
    """

    paper: ClassVar[str]
    requires: ClassVar[Requirements] = Requirements()
    status: ClassVar[Literal["verified", "toy", "untested"]] = "untested"
    is_flow_map: bool = False
    """Whether the student's one step ought to end where the guided teacher's trajectory from the same noise ends; then
    validations log how far off it is."""
    Config: ClassVar[type[DistillerConfig]] = DistillerConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        if teacher.prediction not in self.requires.predictions:
            raise UserError(
                f"{type(self).__name__} cannot use a teacher that predicts '{teacher.prediction}'; "
                f"it takes {', '.join(self.requires.predictions)}"
            )
        self.teacher = teacher
        self.config = config if config is not None else self.Config()
        self.roles = roles or Roles()
        self.student = student if student is not None else teacher.role("student", self.roles)

    @property
    def publication(self) -> Publication:
        """What model cards credit: the method, or what its options make of it."""
        return Publication(type(self).__name__, self.paper)

    @abstractmethod
    def student_step(self, batch: Batch) -> Losses:
        """The student's loss on one batch."""

    def critic_step(self, batch: Batch) -> Losses:
        """The critics' loss on one batch."""
        raise NotImplementedError(f"{type(self).__name__} has no critic")

    def train_only(self, turn: Turn) -> None:
        """Let gradients reach this turn's parameters and no other player's.

        It has to hold until the backward pass is done: checkpointed blocks are recomputed there.
        """
        for name, parameters in self.players().items():
            for parameter in parameters:
                parameter.requires_grad_(name == turn)

    def turns(self, step: int) -> Sequence[Turn]:
        """Who is updated in this step, in order."""
        return ("student",)

    def after_student_update(self, step: int) -> None:
        """Called after each update of the student."""

    def students(self) -> dict[str, Denoiser]:
        """What is averaged, kept and exported: the student, by name; several where it is made of experts."""
        return {"student": self.student}

    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        return dict(self.students())

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """The parameters each turn updates."""
        return {
            "student": [p for student in self.students().values() for p in student.trainable_parameters()]
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The trained tensors of each network; frozen weights are not in it."""
        return {
            name: network.role_state_dict() if isinstance(network, Denoiser) else network.state_dict()
            for name, network in self.networks().items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `state` gave. Every key has to match."""
        for name, network in self.networks().items():
            if isinstance(network, Denoiser):
                network.load_role_state_dict(state[name])
            else:
                network.load_state_dict(state[name])

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """The grid and the kind of steps the student is trained for; or that kind of steps in another number."""
        return StudentSampler(self.student_times(num_steps or self.config.num_steps, "sde"), "sde")

    def student_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """The stock scheduler's grid of so many steps, moved by `grid_shift` and scaled to begin at `first_time`."""
        times, first = self.student.few_step_times(num_steps, kind), self.config.first_time
        if first == self.config.grid_shift == 1:
            return times
        moved = first * shift_time(torch.tensor(times, dtype=torch.float64), self.config.grid_shift)
        return tuple(self.student.nearest_time(t) for t in moved.tolist())

    def pipeline(self) -> Any:
        """A stock diffusers pipeline that runs the student, with the few-step scheduler set."""
        return self.student.pipeline(self.sampler())
