"""DMD2: Improved Distribution Matching Distillation, Yin et al., NeurIPS 2024, https://arxiv.org/abs/2405.14867.

In every iteration the critics (fake score and discriminator heads) learn the student's present samples. In every k-th the student
follows the difference of the two scores and fools the heads. Its samples come from backward simulation, so that each step is
trained on its inference inputs.

Deviations from the released code: the guidance scale is the standard one, losses are means over elements (so the released GAN
weights compare), and the heads have another shape.
"""

from __future__ import annotations

import torch

from stepdistill.critics.gan import LatentGAN
from stepdistill.diffusion.rollout import Samples
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.distribution.config import DMD2Config
from stepdistill.distillers.distribution.matching import DistributionMatching, matching_curves
from stepdistill.distillers.turn import Handoff, Losses, two_time_scales
from stepdistill.errors import UserError
from stepdistill.losses.score import dm_gradient, surrogate_loss


class DMD2(DistributionMatching):
    """Match the teacher's distribution: two time scales, backward simulation, optional GAN."""

    paper = "https://arxiv.org/abs/2405.14867"
    requires = Requirements(critic=True)
    status = "verified"
    passes = 4.1
    Config = DMD2Config
    config: DMD2Config

    def setup(self) -> None:
        super().setup()
        self.turn_schedule = two_time_scales(self.config.student_every)  # section 4.2
        self.gan: LatentGAN | None = None
        if self.config.gan.student_weight > 0:
            # The heads read the fake score's own denoising pass, so real latents are noised by the same law.
            self.gan = LatentGAN(self.fake_score, self.config.gan, self.critic_times)
            self.add_network("heads", self.gan.heads, turn="critic")

    def student_step(self, batch: Batch) -> Losses:
        """Follow the score difference and fool the heads."""
        rng = self.begin("student", batch)
        samples = self.simulate(batch, rng, self.exit_step(batch.step, rng))  # section 4.5
        handoff = Handoff(samples.x0, self.student)
        # Section 4.1, DMD eq. 7-8: grad = w_t (x0_fake - x0_real) at x_t ~ q(x_t | x0)
        scores = self.compare(samples, batch, rng)
        gradient = dm_gradient(samples.x0, scores.real, scores.fake)
        terms = {"dm": surrogate_loss(handoff.leaf, gradient)}
        if self.gan is not None:  # section 4.3: softplus(-D(x_t))
            backbone = self.teacher if self.config.gan.features == "teacher" else self.fake_score_of(samples)
            terms["gan_student"] = self.gan.student_loss(backbone, handoff.leaf, batch.cond, rng)
        return Losses(terms, self.weights(), matching_curves(samples, scores, gradient), handoff, samples.detach())

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Fit the fake score to the student's samples (DMD eq. 6), and the heads to tell them from real latents."""
        rng = self.begin("critic", batch)
        if samples is None:
            with torch.no_grad():
                samples = self.simulate(batch, rng, self.exit_step(batch.step, rng))
        if self.gan is None:
            loss, logs = self.fit_fake_score(samples, batch.cond, rng)
            return Losses({"fake_score": loss}, logs=logs)
        if batch.latents is None or batch.latents_cond is None:
            raise UserError("the GAN needs real images: set data.images, or method.gan.student_weight=0")
        latents, latents_cond = batch.latents.to(samples.x0), batch.latents_cond
        if self.config.gan.features == "teacher":
            sides = [latents, samples.x0], [latents_cond, batch.cond]
            real, fake = self.gan.features(self.teacher, *sides, rng)
            # Last, so that its adapter is the active one when checkpointed blocks are recomputed.
            loss, logs = self.fit_fake_score(samples, batch.cond, rng)
        else:
            # One pass of the fake score on its noised samples serves both: its loss, and the features of the fake side.
            fake_score = self.fake_score_of(samples)
            with fake_score.capture_features() as fake:
                loss, logs = self.fit_fake_score(samples, batch.cond, rng)
            (real,) = self.gan.features(fake_score, [latents], [latents_cond], rng)
        terms, gan_logs = self.gan.critic_losses(real, fake)
        return Losses({"fake_score": loss, **terms}, self.weights(), {**logs, **gan_logs})

    def weights(self) -> dict[str, float]:
        """The factor of each loss term."""
        return {} if self.gan is None else self.gan.weights()
