"""SANA-Sprint: One-Step Diffusion with Continuous-Time Consistency Distillation, Chen et al., 2025, https://arxiv.org/abs/2503.09641.

sCM, which ties the student to the teacher's trajectories, plus latent adversarial distillation (LADD,
https://arxiv.org/abs/2403.12015), which sharpens its single step: heads on the frozen teacher's features judge the student's noised
x0. Half of the adversarial inputs are at the maximal time, where a single step starts. One student serves every number of steps.

Deviations. The released discriminator step writes the probability of the maximal time in place of the maximal time; here it is the
maximal time in both turns. The critics learn on the student's samples of the same iteration, and the tangent's warm-up counts
student updates. Heads have another shape. The guidance scale is an input of networks that have one (method.embed_guidance).
"""

from __future__ import annotations

import torch

from stepdistill.critics.gan import LatentGAN
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import Samples
from stepdistill.diffusion.times import LogNormalSigma
from stepdistill.diffusion.trigflow import trig_x0
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.consistency.config import SANASprintConfig
from stepdistill.distillers.consistency.guided import teacher_guidance, with_guidance_scale
from stepdistill.distillers.consistency.scm import SCM
from stepdistill.distillers.turn import Handoff, Losses, two_time_scales
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times

CRITIC_TIME_MEAN, CRITIC_TIME_STD = 0.1, 1.0
"""Law of log(sigma / alpha) at which samples are judged (the released configuration)."""


class SANASprint(SCM):
    """Continuous-time consistency with latent adversarial distillation."""

    paper = "https://arxiv.org/abs/2503.09641"
    requires = Requirements(latents=True, critic=True)
    status = "verified"
    passes = 8.0
    Config = SANASprintConfig
    config: SANASprintConfig

    def setup(self) -> None:
        super().setup()
        if self.config.gan.features != "teacher":
            raise UserError("SANA-Sprint has no fake score: set method.gan.features=teacher")
        self.turn_schedule = two_time_scales(1)
        law = LogNormalSigma(CRITIC_TIME_MEAN, CRITIC_TIME_STD, self.schedule)
        self.gan = LatentGAN(self.teacher, self.config.gan, law, loss="hinge")
        self.add_network("heads", self.gan.heads, turn="critic")

    def student_step(self, batch: Batch) -> Losses:
        """sCM and the adversarial loss on one call of the student; its output is cut off, as the teacher's features lie between."""
        rng = self.begin("student", batch)
        x0, cond = batch.real()
        x_t, teacher, student_cond = self.noised_with_teacher(batch, rng)
        dF = self.derivative(x_t, teacher, student_cond)
        x_gan, t_gan = self.adversarial_input(x0, rng)
        F = self.balanced_field(
            torch.cat([x_t, x_gan]), torch.cat([teacher.t, t_gan]), Conditioning.cat([student_cond, student_cond])
        )
        handoff = Handoff(F, self.student)
        F, F_gan = handoff.leaf.chunk(2)
        losses = self.tangent_losses(F, dF, x_t, teacher, batch.step)
        # L = L_sCM + lambda L_adv, with L_adv = -D(noised x0)
        sample = trig_x0(F_gan, x_gan, t_gan, self.schedule)
        losses.terms["gan_student"] = self.gan.student_loss(self.teacher, sample, cond, rng)
        samples = self.as_samples(sample.detach(), x_gan)
        return Losses(losses.terms, self.gan.weights(), losses.logs, handoff, samples)

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Fit the heads to tell real latents from the student's x0 of this iteration."""
        rng = self.begin("critic", batch)
        x0, cond = batch.real()
        if samples is None:
            x_gan, t_gan = self.adversarial_input(x0, rng)
            guidance = teacher_guidance(self.config, batch.uncond, rng)
            with torch.no_grad():
                out = self.student(x_gan, t_gan, with_guidance_scale(self.student, cond, guidance))
            samples = self.as_samples(out.x0, x_gan)
        real, fake = self.gan.features(self.teacher, [x0.to(samples.x0), samples.x0], [cond, cond], rng)
        terms, logs = self.gan.critic_losses(real, fake)
        return Losses(terms, self.gan.weights(), {**logs})

    def adversarial_input(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Freshly noised images, some of them at the maximal time."""
        rng = rng.fork("adversarial")
        t = self.times(rng.uniform("t")).clamp(max=self.config.first_time)
        is_max = rng.uniform("is_max") < self.config.max_time_prob
        t = t.masked_fill(is_max, self.config.first_time)
        return self.schedule.add_noise(x0, rng.normal("eps", x0.shape[1:]).to(x0), t), t

    def as_samples(self, x0: Latents, x_t: Latents) -> Samples:
        """Clean samples of one call."""
        return Samples(x_s=x0, s=0.0, x0=x0, x_t=x_t, t=self.config.first_time, exit_step=0)
