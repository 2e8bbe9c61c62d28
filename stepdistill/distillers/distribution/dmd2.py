"""DMD2: Improved Distribution Matching Distillation, Yin et al., NeurIPS 2024, https://arxiv.org/abs/2405.14867.

In every iteration the critics (fake score and discriminator heads) learn what the student makes now; in every k-th the student
follows the difference of the two scores and fools the heads. What this file does not show is distribution matching as the family
shares it, in `matching.py`: the gradient, the fake score's loss, backward simulation, the two time scales. Deviations from the
released code: the guidance scale is the standard one, losses are means over elements (so the released GAN weights compare), and
the heads have our own shape.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field
from torch import nn

from stepdistill.critics.gan import GANConfig, LatentGAN
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.rng import RandomStream
from stepdistill.distillers.base import Batch, Turn
from stepdistill.distillers.distribution.matching import (
    DistributionMatching,
    DistributionMatchingConfig,
    Logs,
    Terms,
)
from stepdistill.errors import UserError
from stepdistill.typing import Latents


class DMD2Config(DistributionMatchingConfig):
    """Options of DMD2."""

    gan: GANConfig = Field(default=GANConfig(), description="the adversarial part; off by default")
    fake_score_per_step: bool = Field(
        default=False,
        description="a fake score for each step of the student; with one for all, as in the paper, only the mixture of their "
        "samples is matched, and the last step, which is what is seen, has more contrast than the teacher",
    )

    @property
    def num_fake_scores(self) -> int:
        """One, or one for each step."""
        return self.num_steps if self.fake_score_per_step else 1


ConfigT = TypeVar("ConfigT", bound=DMD2Config)


class DMD2(DistributionMatching[ConfigT]):
    """Distribution matching with a two time-scale fake score, backward simulation and an optional GAN."""

    paper = "https://arxiv.org/abs/2405.14867"
    status = "verified"
    Config = DMD2Config

    def __init__(
        self,
        teacher: Denoiser,
        config: ConfigT | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student, fake_score=fake_score)
        gan = self.config.gan
        # The heads see samples in the fake score's pass, so real latents have to be noised by the same law.
        self.gan = LatentGAN(self.fake_score, gan, self.critic_times) if gan.student_weight > 0 else None

    def match(self, x0: Latents, batch: Batch, rng: RandomStream) -> tuple[Terms, Logs]:
        """Distribution matching (section 4.1) and the generator's side of the GAN (section 4.3)."""
        terms, logs = super().match(x0, batch, rng)
        if self.gan is not None:
            teacher_judges = self.config.gan.features == "teacher"
            backbone = self.teacher if teacher_judges else self.fake_score_at(batch.step)
            terms["gan_student"] = self.gan.student_loss(backbone, x0, batch.cond, rng)
        return terms, logs

    def fit_critics(self, x0: Latents, batch: Batch, rng: RandomStream) -> tuple[Terms, Logs]:
        """The fake score's denoising loss and the discriminator's side of the GAN.

        Student samples are noised by the same law for both, so the fake score's own pass has the features to be judged.
        """
        if self.gan is None:
            return super().fit_critics(x0, batch, rng)
        if batch.latents is None or batch.latents_cond is None:
            raise UserError("the GAN needs real latents: set data.images, or method.gan.student_weight=0")
        if self.config.gan.features == "teacher":
            sides = [batch.latents.to(x0), x0], [batch.latents_cond, batch.cond]
            real, fake = self.gan.features(self.teacher, *sides, rng)
            # Last, so that its adapter is the active one when checkpointed blocks run again.
            terms, logs = super().fit_critics(x0, batch, rng)
        else:
            fake_score = self.fake_score_at(batch.step)
            with fake_score.capture_features(self.config.gan.layers) as fake:
                terms, logs = super().fit_critics(x0, batch, rng)
            (real,) = self.gan.features(fake_score, [batch.latents.to(x0)], [batch.latents_cond], rng)
        gan_terms, gan_logs = self.gan.critic_losses(real, fake)
        return terms | gan_terms, logs | gan_logs

    def exit_step(self, step: int, rng: RandomStream) -> int:
        """At random; with a fake score for each step in turn, so that each is fitted ahead of its own student turn."""
        return self.step_at(step) if self.config.fake_score_per_step else super().exit_step(step, rng)

    def step_at(self, step: int) -> int:
        """The student's step at turn: another one after each student turn."""
        return -(-step // self.config.student_every) % self.config.num_steps

    def fake_score_at(self, step: int) -> Denoiser:
        """The fake score of this iteration's samples."""
        return self.fake_scores[self.step_at(step)] if self.config.fake_score_per_step else self.fake_score

    def weights(self) -> dict[str, float]:
        """The factor of each loss term."""
        return self.gan.weights() if self.gan is not None else {}

    def networks(self) -> dict[str, nn.Module]:
        """Student, fake score and the heads."""
        heads: dict[str, nn.Module] = {} if self.gan is None else {"heads": self.gan.heads}
        return super().networks() | heads

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """The student's parameters; the critics' parameters under one optimiser."""
        players = super().players()
        if self.gan is not None:
            players["critic"] = [*players["critic"], *self.gan.parameters()]
        return players
