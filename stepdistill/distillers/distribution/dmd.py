"""DMD: One-step Diffusion with Distribution Matching Distillation, Yin et al., CVPR 2024, https://arxiv.org/abs/2311.18828.

Algorithm 1: half of the student's samples are pulled by the difference of the two scores (`matching.py`), the other half start from
noises whose image by the teacher is known, and are pulled to those images. Deviations: the regression is LPIPS of decoded images
where its package is installed, else a pseudo-Huber distance of latents; the gradient is the released code's (fake - real) / mean
|x0 - real|, without the factor alpha of the paper's text, which has the same fixed points. With several steps, which the paper has
not, it is DMD2 whose first step is regressed: the first step decides which kind of picture comes, and the teacher's pairs draw it
towards the teacher's shares.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stepdistill.critics.perceptual import PerceptualDistance, lpips_is_installed
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import one_step
from stepdistill.distillers.base import Batch, Handoff, Losses, Requirements
from stepdistill.distillers.distribution.dmd2 import DMD2, DMD2Config
from stepdistill.errors import UserError
from stepdistill.losses.regression import pseudo_huber
from stepdistill.typing import Latents


class DMDConfig(DMD2Config):
    """Options of DMD."""

    num_steps: int = Field(
        default=1,
        ge=1,
        le=8,
        description="network calls of the student per image; 1 is the paper's, of more the first is regressed",
    )
    guidance_scale: float = Field(default=3.0, ge=0.0, description="of the teacher's score; 1.0 is off")
    student_every: int = Field(default=1, ge=1, description="1: both move in every iteration")
    regression: Literal["auto", "lpips", "pseudo_huber"] = Field(
        default="auto", description="distance to the teacher's images; auto: lpips where it is installed"
    )
    regression_weight: float = Field(default=0.25, ge=0.0, description="weight of that distance")
    huber_c: float = Field(
        default=0.03, gt=0.0, description="where pseudo_huber turns from square to linear, per element"
    )


class DMD(DMD2[DMDConfig]):
    """Distribution matching, with a regression on the teacher's own noise-image pairs."""

    paper = "https://arxiv.org/abs/2311.18828"
    requires = Requirements(critic=True, pairs=True)
    status = "verified"
    Config = DMDConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: DMDConfig | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student, fake_score=fake_score)
        kind = self.config.regression
        is_perceptual = kind == "lpips" or (kind == "auto" and lpips_is_installed())
        self.perceptual = PerceptualDistance() if is_perceptual else None

    def student_step(self, batch: Batch) -> Losses:
        """Distribution matching at fresh noises, regression at the pairs' noises: one call of the student.

        Raises:
            UserError: there are no pairs.
        """
        if batch.pairs is None:
            raise UserError("DMD needs pairs of the teacher: set data.pairs.num")
        rng = batch.rng.fork("student")
        if self.exit_step(batch.step, rng) > 0:
            return super().student_step(batch)
        self.train_only("student")
        noise = torch.cat([rng.normal("noise", batch.shape), batch.pairs.noise])
        cond = Conditioning.cat([batch.cond, batch.pairs.cond])
        handoff = Handoff(one_step(self.student, noise, cond, self.sampler().times[0]), self.student)
        fresh, paired = handoff.leaf.split([len(batch.cond), len(batch.pairs.noise)])
        batch.samples = fresh.detach()
        terms, logs = self.match(fresh, batch, rng)
        terms["regression"] = self.distance(paired, batch.pairs.x0)
        return Losses(terms, self.weights(), logs, handoff)

    def distance(self, x0: Latents, target: Latents) -> Tensor:
        """How far samples are from the teacher's images of the same noises."""
        if self.perceptual is None:
            return pseudo_huber(x0, target, c=self.config.huber_c)
        with torch.no_grad():
            images = self.teacher.decode(target)
        return self.perceptual(self.teacher.decode(x0), images)

    def weights(self) -> dict[str, float]:
        """The factor of each loss term."""
        return super().weights() | {"regression": self.config.regression_weight}
