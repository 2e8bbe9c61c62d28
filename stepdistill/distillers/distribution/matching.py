"""Distribution matching, as DMD (https://arxiv.org/abs/2311.18828) and everything after it share it.

The student follows the difference of two scores at its own noised samples: the teacher's, and that of a fake score which is
fitted to those samples all the while. A method overrides the verb that its paper changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.prediction import Prediction, conditional_target
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import backward_simulation
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.times import ShiftedUniform
from stepdistill.distillers.base import (
    Batch,
    Distiller,
    Handoff,
    Losses,
    PerTime,
    Requirements,
    Turn,
)
from stepdistill.distillers.config import DistillerConfig
from stepdistill.losses.score import denoising_error, dm_gradient, surrogate_loss
from stepdistill.typing import Latents, Times

Terms = dict[str, Tensor]
Logs = dict[str, Tensor | PerTime]


class DistributionMatchingConfig(DistillerConfig):
    """Options that every method of the family has."""

    rollout: Literal["sde", "ode"] = Field(
        default="sde",
        description="the student's steps: x0 then fresh noise (sde), or x0 then the implied noise (ode)",
    )
    student_every: int = Field(
        default=5, ge=1, description="critics learn in every iteration, the student in every k-th"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="times between which the teacher is guided; at high noise a guided score is no score of noised samples, and "
        "asks for more contrast than any samples have",
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="part of what guidance adds to the size of the teacher's x0 that is taken back; at high noise the guided x0 is "
        "larger than any data is",
    )
    renoise_lo: float = Field(
        default=0.02, ge=0.0, le=1.0, description="cleanest time at which scores are compared"
    )
    renoise_hi: float = Field(
        default=0.98, ge=0.0, le=1.0, description="noisiest time at which scores are compared"
    )
    renoise_shift: float = Field(
        default=1.0, gt=0.0, description="shift of these times towards noise; 1 is uniform"
    )
    critic_shift: float = Field(
        default=1.0,
        gt=0.0,
        description="the same of the times at which the fake score learns",
    )
    normaliser: Literal["mean_abs", "none"] = Field(
        default="mean_abs", description="scale of the gradient (DMD eq. 8)"
    )
    critic_space: Literal["own", "x0", "eps", "v", "flow"] = Field(
        default="own",
        description="prediction in which the fake score's error is taken: own is the network's, as in the paper; v lets "
        "high noise count, where an eps error hardly sees x0",
    )

    @field_validator("guidance_interval")
    @classmethod
    def is_interval(cls, value: tuple[float, float]) -> tuple[float, float]:
        """Refuse what is not 0 <= lo < hi <= 1."""
        lo, hi = value
        if not 0 <= lo < hi <= 1:
            raise ValueError("give [lo, hi] with 0 <= lo < hi <= 1, such as [0, 0.7]")
        return value

    @property
    def num_fake_scores(self) -> int:
        """One for each expert."""
        return self.num_experts


ConfigT = TypeVar("ConfigT", bound=DistributionMatchingConfig)


class DistributionMatching(Distiller, Generic[ConfigT]):
    """A student, a fake score, and the difference between the fake score and the teacher.

    Args:
        teacher: the frozen network.
        config: the method's own `Config`.
        roles: how student and fake score are made from the teacher.
        student: a ready student.
        fake_score: a ready fake score, the first where there are several.
    """

    requires = Requirements(critic=True)
    Config = DistributionMatchingConfig
    config: ConfigT

    def __init__(
        self,
        teacher: Denoiser,
        config: ConfigT | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        given = [] if fake_score is None else [fake_score]
        wanted = range(self.config.num_fake_scores - len(given))
        self.fake_scores = [*given, *(teacher.role("fake_score", self.roles) for _ in wanted)]
        config = self.config
        self.times = ShiftedUniform(config.renoise_lo, config.renoise_hi, config.renoise_shift)
        self.critic_times = ShiftedUniform(shift=config.critic_shift)

    @property
    def fake_score(self) -> Denoiser:
        """The fake score; the first where there are several."""
        return self.fake_scores[0]

    def student_step(self, batch: Batch) -> Losses:
        """What the student's samples are pulled by; the gradient reaches the student through them alone."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        x0 = self.sample_student(batch, rng)
        batch.samples = x0.detach()
        handoff = Handoff(x0, self.student_at(batch.step))
        terms, logs = self.match(handoff.leaf, batch, rng)
        return Losses(terms, self.weights(), logs, handoff)

    def critic_step(self, batch: Batch) -> Losses:
        """Fit the critics to the student's samples; those of this iteration's student turn are used again."""
        self.train_only("critic")
        rng = batch.rng.fork("critic")
        if batch.samples is None:
            with torch.no_grad():
                batch.samples = self.sample_student(batch, rng)
        terms, logs = self.fit_critics(batch.samples, batch, rng)
        return Losses(terms, self.weights(), logs)

    def match(self, x0: Latents, batch: Batch, rng: RandomStream) -> tuple[Terms, Logs]:
        """The distribution-matching term at student samples (DMD eq. 7), and its curves."""
        with torch.no_grad():
            x_t, t = self.renoise(x0, rng)
            real = self.teacher(x_t, t, batch.cond, guidance=self.guidance(batch)).x0
            fake_score = self.fake_score_at(batch.step)
            fake = fake_score(x_t, t, batch.cond, guidance=self.fake_guidance(batch)).x0
            estimates = x0 if batch.estimates is None else batch.estimates
            gradient = self.gradient(estimates, real, fake, t)
        logs: Logs = {
            "latent_mean": x0.detach().mean(),
            "latent_std": x0.detach().std(),
            "gradient_norm": gradient.norm(),
            "gap": PerTime((fake - real).abs().flatten(1).mean(1), t),
            "stretch": PerTime(stretch(estimates.detach(), real - fake), t),
        }
        return {"dm": surrogate_loss(x0, gradient)}, logs

    def fit_critics(self, x0: Latents, batch: Batch, rng: RandomStream) -> tuple[Terms, Logs]:
        """The fake score's denoising loss on student samples (DMD eq. 6)."""
        fake_score, space = self.fake_score_at(batch.step), self.config.critic_space
        prediction = fake_score.prediction if space == "own" else space
        x_t, t, target = self.denoising_task(x0, prediction, rng)
        out = fake_score(x_t, t, self.critic_cond(batch, rng))
        error = denoising_error(fake_score.schedule, prediction, out, target)
        loss = (self.critic_weight(t, batch.step) * error).mean()
        return {"fake_score": loss}, {"fake_score": PerTime(error.detach(), t)}

    def denoising_task(
        self, x0: Latents, prediction: Prediction, rng: RandomStream
    ) -> tuple[Latents, Times, Latents]:
        """Noised samples, their times, and what the fake score should predict there."""
        schedule = self.fake_score.schedule
        t, eps = self.critic_times(rng.uniform("t")), rng.normal("eps", x0.shape[1:]).to(x0)
        return schedule.add_noise(x0, eps, t), t, conditional_target(schedule, x0, eps, None, t, prediction)

    def sample_student(self, batch: Batch, rng: RandomStream) -> Latents:
        """A student sample with the graph of one random step of its rollout (DMD2 section 4.5)."""
        sampler, exit_step = self.sampler(), self.exit_step(batch.step, rng)
        noise = rng.normal("noise", batch.shape)
        rollout = backward_simulation(self.student, sampler, noise, batch.cond, rng, exit_step=exit_step)
        return rollout.x0

    def exit_step(self, step: int, rng: RandomStream) -> int:
        """The step of the rollout that this iteration's samples come from."""
        return rng.shared_integer("exit_step", self.config.num_steps)

    def renoise(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Noise student samples to the time at which the scores are compared."""
        t = self.times(rng.uniform("renoise_t"))
        return self.teacher.schedule.add_noise(x0, rng.normal("renoise_eps", x0.shape[1:]).to(x0), t), t

    def gradient(self, x0: Latents, real: Latents, fake: Latents, t: Times) -> Latents:
        """The direction that is injected at x0 (DMD eq. 7 and 8)."""
        return dm_gradient(x0, real, fake, normaliser=self.config.normaliser)

    def guidance(self, batch: Batch) -> Guidance:
        """The teacher's guidance."""
        return self.guidance_at(self.config.guidance_scale, batch)

    def guidance_at(self, scale: float | Tensor, batch: Batch) -> Guidance:
        """A guidance of this scale under the method's other options."""
        config = self.config
        return Guidance(scale, batch.uncond, config.guidance_interval, config.guidance_rescale)

    def fake_guidance(self, batch: Batch) -> Guidance | None:
        """The fake score's guidance: none, since it knows what the student makes of a prompt."""
        return None

    def critic_cond(self, batch: Batch, rng: RandomStream) -> Conditioning:
        """What the fake score is told about the samples it learns."""
        return batch.cond

    def critic_weight(self, t: Times, step: int) -> Times:
        """Weight of the fake score's error at these times."""
        return torch.ones_like(t)

    def student_at(self, step: int) -> Denoiser:
        """The network that this iteration's student turn trains."""
        return self.student

    def fake_score_at(self, step: int) -> Denoiser:
        """The fake score of this iteration's samples."""
        return self.fake_score

    def weights(self) -> dict[str, float]:
        """The factor of each loss term; 1 where none is given."""
        return {}

    def turns(self, step: int) -> Sequence[Turn]:
        """The student in every k-th iteration, the critics in every one (on the same samples where both move)."""
        return ("student", "critic") if step % self.config.student_every == 0 else ("critic",)

    def networks(self) -> dict[str, nn.Module]:
        """Student and fake scores; those not at turn get no gradient."""
        return {**super().networks(), **numbered("fake_score", self.fake_scores)}

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """The student's parameters, and the critics' under one optimiser."""
        critics = [p for each in self.fake_scores for p in each.trainable_parameters()]
        return {**super().players(), "critic": critics}

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """The few-step grid of the stock scheduler that belongs to the rollout kind."""
        times = self.student_times(num_steps or self.config.num_steps, self.config.rollout)
        return StudentSampler(times, self.config.rollout)


def stretch(x0: Latents, step: Latents) -> Tensor:
    """By which part of itself each sample would grow along a step: contrast that is asked for, 0 on average where scores agree.

    >>> stretch(torch.ones(2, 3), torch.tensor([[0.1] * 3, [0.2, -0.1, -0.1]]))
    tensor([0.1000, 0.0000])
    """
    return (x0 * step).flatten(1).sum(1) / x0.flatten(1).square().sum(1).clamp_min(1e-12)


def numbered(name: str, networks: Sequence[Denoiser]) -> dict[str, Denoiser]:
    """Networks of one kind by name: the first has the bare one."""
    return {name if i == 0 else f"{name}_{i + 1}": network for i, network in enumerate(networks)}
