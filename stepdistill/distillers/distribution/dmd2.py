"""DMD2: Improved Distribution Matching Distillation, Yin et al., NeurIPS 2024, https://arxiv.org/abs/2405.14867.

In every iteration the critics (fake score and discriminator heads) learn what the student makes now; in every k-th the student
follows the difference of the two scores and fools the heads. Deviations from the released code: the guidance scale is the standard
one, losses are means over elements (so the released GAN weights compare), and the heads have our own shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stepdistill.critics.gan import GANConfig, LatentGAN
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.distillers.base import (
    Batch,
    Distiller,
    DistillerConfig,
    Handoff,
    Losses,
    PerTime,
    Requirements,
    Turn,
)
from stepdistill.errors import UserError
from stepdistill.guidance import Guidance
from stepdistill.losses.score import denoising_error, dm_gradient, surrogate_loss
from stepdistill.prediction import conditional_target
from stepdistill.rng import RandomStream
from stepdistill.rollout import backward_simulation
from stepdistill.sampler import StudentSampler
from stepdistill.times import Shifted, Uniform
from stepdistill.typing import Latents, Times


class DMD2Config(DistillerConfig):
    """Options of DMD2."""

    rollout: Literal["sde", "ode"] = Field(
        default="sde",
        description="the student's steps: x0 then fresh noise (sde), or x0 then the implied noise (ode)",
    )
    student_every: int = Field(
        default=5, ge=1, description="critics learn in every iteration, the student in every k-th"
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
    normaliser: Literal["mean_abs", "none"] = Field(
        default="mean_abs", description="scale of the gradient (DMD eq. 8)"
    )
    critic_space: Literal["own", "x0", "eps", "v", "flow"] = Field(
        default="own",
        description="prediction in which the fake score's error is taken: own is the network's, as in the paper; v lets "
        "high noise count, where an eps error hardly sees x0",
    )
    gan: GANConfig = Field(default=GANConfig(), description="the adversarial part; off by default")


class DMD2(Distiller):
    """Distribution matching with a two time-scale fake score, backward simulation and an optional GAN."""

    paper = "https://arxiv.org/abs/2405.14867"
    requires = Requirements(critic=True)
    status = "verified"
    Config = DMD2Config
    config: DMD2Config

    def __init__(
        self,
        teacher: Denoiser,
        config: DMD2Config | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        self.fake_score = fake_score if fake_score is not None else teacher.role("fake_score", self.roles)
        self.times = Shifted(
            Uniform(self.config.renoise_lo, self.config.renoise_hi), self.config.renoise_shift
        )
        gan = self.config.gan
        backbone = self.fake_score if gan.features == "fake_score" else teacher
        self.gan = LatentGAN(backbone, gan) if gan.student_weight > 0 else None

    def student_step(self, batch: Batch) -> Losses:
        """Distribution matching (section 4.1) and the generator's side of the GAN (section 4.3)."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        x0 = self.sample_student(batch, rng)
        batch.samples = x0.detach()
        handoff = Handoff(x0, self.student)
        x0 = handoff.leaf
        with torch.no_grad():
            x_t, t = self.renoise(x0, rng)
            real = self.teacher(x_t, t, batch.cond, guidance=self.guidance(batch)).x0
            fake = self.fake_score(x_t, t, batch.cond).x0
            gradient = self.gradient(x0, real, fake)
        terms = {"dm": surrogate_loss(x0, gradient)}
        if self.gan is not None:
            terms["gan_student"] = self.gan.student_loss(x0, batch.cond, rng)
        logs = {
            "latent_mean": x0.detach().mean(),
            "latent_std": x0.detach().std(),
            "gradient_norm": gradient.norm(),
            "gap": PerTime((fake - real).abs().flatten(1).mean(1), t),
        }
        return Losses(terms, self.weights(), logs, handoff)

    def critic_step(self, batch: Batch) -> Losses:
        """The fake score's denoising loss on student samples and the discriminator's side of the GAN."""
        self.train_only("critic")
        rng = batch.rng.fork("critic")
        if batch.samples is None:
            with torch.no_grad():
                batch.samples = self.sample_student(batch, rng)
        x0 = batch.samples
        t, eps = rng.uniform("t"), rng.normal("eps", batch.shape).to(x0)
        schedule, space = self.fake_score.schedule, self.config.critic_space
        prediction = self.fake_score.prediction if space == "own" else space
        out = self.fake_score(schedule.add_noise(x0, eps, t), t, batch.cond)
        target = conditional_target(schedule, x0, eps, None, t, prediction)
        error = denoising_error(schedule, prediction, out, target)
        terms = {"fake_score": error.mean()}
        logs: dict[str, Tensor | PerTime] = {"fake_score": PerTime(error.detach(), t)}
        if self.gan is not None:
            if batch.latents is None or batch.latents_cond is None:
                raise UserError("the GAN needs real latents: set data.images, or method.gan.student_weight=0")
            gan_terms, gan_logs = self.gan.critic_losses(
                x0, batch.cond, batch.latents, batch.latents_cond, rng
            )
            terms, logs = terms | gan_terms, logs | gan_logs
        return Losses(terms, self.weights(), logs)

    def sample_student(self, batch: Batch, rng: RandomStream) -> Latents:
        """A student sample with the graph of one random step of its rollout (section 4.5)."""
        sampler = self.sampler()
        exit_step = rng.shared_integer("exit_step", len(sampler.times))
        noise = rng.normal("noise", batch.shape)
        rollout = backward_simulation(self.student, sampler, noise, batch.cond, rng, exit_step=exit_step)
        return rollout.x0

    def renoise(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Noise student samples to the time at which the scores are compared."""
        t = self.times(rng.uniform("renoise_t"))
        return self.teacher.schedule.add_noise(x0, rng.normal("renoise_eps", x0.shape[1:]).to(x0), t), t

    def gradient(self, x0: Latents, real: Latents, fake: Latents) -> Latents:
        """The direction that is injected at x0 (DMD eq. 7 and 8)."""
        return dm_gradient(x0, real, fake, normaliser=self.config.normaliser)

    def guidance(self, batch: Batch) -> Guidance:
        """The teacher's guidance; the fake score is never guided."""
        return Guidance(self.config.guidance_scale, batch.uncond)

    def weights(self) -> dict[str, float]:
        """The factor of each loss term."""
        return self.gan.weights() if self.gan is not None else {}

    def turns(self, step: int) -> Sequence[Turn]:
        """The student in every k-th iteration, the critics in every one (on the same samples where both move)."""
        return ("student", "critic") if step % self.config.student_every == 0 else ("critic",)

    def networks(self) -> dict[str, nn.Module]:
        """Student, fake score and the heads."""
        heads = {} if self.gan is None else {"heads": self.gan.heads}
        return {"student": self.student, "fake_score": self.fake_score, **heads}

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """The student's parameters; the critics' parameters under one optimiser."""
        heads = [] if self.gan is None else list(self.gan.parameters())
        return {
            "student": self.student.trainable_parameters(),
            "critic": [*self.fake_score.trainable_parameters(), *heads],
        }

    def sampler(self) -> StudentSampler:
        """The few-step grid of the stock scheduler that belongs to the rollout kind."""
        times = self.student.few_step_times(self.config.num_steps, self.config.rollout)
        return StudentSampler(times, self.config.rollout)
