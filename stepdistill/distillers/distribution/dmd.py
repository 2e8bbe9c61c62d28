"""DMD: One-step Diffusion with Distribution Matching Distillation, Yin et al., CVPR 2024, https://arxiv.org/abs/2311.18828.

Algorithm 1. Half of the student's samples start from fresh noise and follow the difference of the two scores. The other half start
from noises whose teacher image is known and regress to it.

Deviations: the regression is LPIPS of decoded images if its package is installed, else a pseudo-Huber distance of latents. With
several steps, which the paper does not have, only the first step is regressed: it decides the image, and the teacher's pairs draw
it towards the teacher's shares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepdistill.critics.perceptual import PerceptualDistance, lpips_is_installed
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import Samples, backward_simulation
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.distribution.config import DMDConfig
from stepdistill.distillers.distribution.matching import DistributionMatching, matching_curves
from stepdistill.distillers.turn import Handoff, Losses
from stepdistill.errors import UserError
from stepdistill.losses.regression import pseudo_huber
from stepdistill.losses.score import dm_gradient, surrogate_loss
from stepdistill.typing import Latents

HUBER_C = 0.03
"""Error of a latent element at which the regression turns from quadratic to linear: below the visible, latents have unit scale."""


class DMD(DistributionMatching):
    """Match the teacher's distribution, and regress to its images of known noises."""

    paper = "https://arxiv.org/abs/2311.18828"
    requires = Requirements(critic=True, pairs=True)
    status = "verified"
    passes = 6.0
    Config = DMDConfig
    config: DMDConfig

    def setup(self) -> None:
        super().setup()
        kind = self.config.regression
        is_perceptual = kind == "lpips" or (kind == "auto" and lpips_is_installed())
        self.perceptual = PerceptualDistance() if is_perceptual else None

    def student_step(self, batch: Batch) -> Losses:
        """Match at fresh noises and regress at the pairs' noises, in one call of the student.

        Raises:
            UserError: there are no pairs.
        """
        if batch.pairs is None:
            raise UserError("DMD needs teacher pairs: set data.pairs.num")
        rng = self.begin("student", batch)
        exit_step, num_fresh = self.exit_step(batch.step, rng), len(batch.cond)
        noise, cond = rng.normal("noise", batch.shape), batch.cond
        if exit_step == 0:
            noise = torch.cat([noise, batch.pairs.noise])
            cond = Conditioning.cat([cond, batch.pairs.cond])
        both = backward_simulation(self.student, self.sampler(), noise, cond, rng, exit_step=exit_step)
        handoff = Handoff(both.x0, self.student)
        # Eq. 7-8: grad = w_t (x0_fake - x0_real) at x_t ~ q(x_t | x0), of the fresh samples
        samples = both.first(num_fresh)
        scores = self.compare(samples, batch, rng)
        gradient = dm_gradient(samples.x0, scores.real, scores.fake)
        terms = {"dm": surrogate_loss(handoff.leaf[:num_fresh], gradient)}
        if exit_step == 0:  # eq. 9: the distance of G(z_ref) to y_ref
            terms["regression"] = self.distance(handoff.leaf[num_fresh:], batch.pairs.x0)
        weights = {"regression": self.config.regression_weight}
        return Losses(terms, weights, matching_curves(samples, scores, gradient), handoff, samples.detach())

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Fit the fake score to the student's fresh samples (eq. 6)."""
        rng = self.begin("critic", batch)
        if samples is None:
            with torch.no_grad():
                samples = self.simulate(batch, rng, self.exit_step(batch.step, rng))
        loss, logs = self.fit_fake_score(samples, batch.cond, rng)
        return Losses({"fake_score": loss}, logs=logs)

    def distance(self, x0: Latents, target: Latents) -> Tensor:
        """Distance of samples to the teacher's images of the same noises."""
        if self.perceptual is None:
            return pseudo_huber(x0, target, c=HUBER_C)
        with torch.no_grad():
            images = self.teacher.decode(target)
        return self.perceptual(self.teacher.decode(x0), images)
