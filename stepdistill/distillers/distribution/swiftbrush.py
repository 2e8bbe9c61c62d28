"""SwiftBrush: one-step text-to-image by variational score distillation, Nguyen and Tran, CVPR 2024, https://arxiv.org/abs/2312.05239.

Distribution matching without images, whose fake score is a LoRA on the teacher and is guided like the teacher. Options:
- v2 (Dao et al., ECCV 2024, https://arxiv.org/abs/2408.14176): the clamped CLIP loss (`reward`), and `merge_weights`;
- PG-SB of SNOOPI (Nguyen et al., https://arxiv.org/abs/2412.02687): a random guidance scale (`guidance_scale_max`);
- ESD (Wang et al., https://arxiv.org/abs/2401.00909) with entropy weight lambda: `fake_guidance_scale` = 1 - lambda;
- the two directions of DSD (DreamPolish, https://arxiv.org/abs/2411.01602), a (cond - fake) + b (cond - uncond):
  `fake_guidance_scale` = 1 and `guidance_scale` = 1 + b / a; the common factor a is part of the learning rate.

Deviations: prompts are dropped and scales drawn per sample instead of per batch, which has the same mean and less variance; with
`num_steps` above 1 the student is trained by backward simulation, which the papers do not do; images are decoded by the teacher's
own autoencoder, not by a tiny one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, RandomScale
from stepdistill.diffusion.rollout import Samples
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.distribution.config import SwiftBrushConfig
from stepdistill.distillers.distribution.matching import DistributionMatching, Scores, matching_curves
from stepdistill.distillers.turn import Handoff, Losses
from stepdistill.errors import UserError
from stepdistill.losses.preference import clamped_reward
from stepdistill.losses.score import score_difference, surrogate_loss
from stepdistill.typing import Latents


class SwiftBrush(DistributionMatching):
    """Variational score distillation with a LoRA fake score, from prompts alone."""

    paper = "https://arxiv.org/abs/2312.05239"
    requires = Requirements(critic=True)
    status = "verified"
    passes = 6.0
    Config = SwiftBrushConfig
    config: SwiftBrushConfig

    def setup(self) -> None:
        super().setup()
        if self.config.reward is not None and self.reward is None:
            raise UserError(
                f"method.reward names '{self.config.reward.name}': pass reward=load_reward(name) beside it"
            )

    def student_step(self, batch: Batch) -> Losses:
        """Follow sigma^2 (eps_real - eps_fake), and with v2 the clamped reward."""
        rng = self.begin("student", batch)
        samples = self.simulate(batch, rng, self.exit_step(batch.step, rng))
        handoff = Handoff(samples.x0, self.student)
        scores = self.compare(samples, batch, rng, *self.guidances(batch))
        gradient = vsd_gradient(self.teacher.schedule, scores)
        terms = {"dm": surrogate_loss(handoff.leaf, gradient)}
        logs = matching_curves(samples, scores, gradient)
        if self.config.reward is not None:
            similarity = self.similarity(handoff.leaf, batch.prompts)
            # v2: max(0, tau - similarity), with a weight that decays to zero
            decay = self.config.clip_decay_steps
            remaining = 1.0 if decay is None else max(1 - batch.step / decay, 0.0)
            terms["clip"] = remaining * clamped_reward(similarity, threshold=self.config.clip_threshold)
            logs["similarity"] = similarity.detach().mean()
        return Losses(terms, {"clip": self.config.clip_weight}, logs, handoff, samples.detach())

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Fit the LoRA to the student's samples with weight alpha^2 (the released code), dropping some prompts."""
        rng = self.begin("critic", batch)
        if samples is None:
            with torch.no_grad():
                samples = self.simulate(batch, rng, self.exit_step(batch.step, rng))
        # Without its prompt now and then, the fake score could not be guided.
        is_dropped = rng.uniform("prompt_dropout") < self.config.prompt_dropout
        cond = Conditioning.where(is_dropped, batch.uncond, batch.cond)
        schedule = self.fake_score.schedule
        loss, logs = self.fit_fake_score(samples, cond, rng, weight=lambda t: schedule.alpha(t) ** 2)
        return Losses({"fake_score": loss}, logs=logs)

    def guidances(self, batch: Batch) -> tuple[Guidance, Guidance]:
        """The guidance of teacher and fake score: one scale for both (VSD, PG-SB), or the fake score's own (ESD, DSD)."""
        lo, hi = self.config.guidance_scale, self.config.guidance_scale_max
        scale = lo if hi is None else RandomScale(lo, hi)(batch.rng.uniform("guidance_scale"))
        guidance, fake_scale = self.guidance(batch, scale), self.config.fake_guidance_scale
        return guidance, guidance if fake_scale is None else replace(guidance, scale=fake_scale)

    def similarity(self, x0: Latents, prompts: tuple[str, ...]) -> Tensor:
        """The reward of the decoded samples, with its gradient."""
        assert self.reward is not None  # checked in setup
        similarity = self.reward(self.teacher.decode(x0), prompts)
        if x0.requires_grad and not similarity.requires_grad:
            raise UserError("method.reward has no gradient in the images; name a scorer that is a network")
        return similarity


def vsd_gradient(schedule: NoiseSchedule, scores: Scores) -> Latents:
    """The VSD gradient with w(t) = sigma^2: sigma^2 (eps_real - eps_fake) = alpha sigma (x0_fake - x0_real).

    ProlificDreamer, https://arxiv.org/abs/2305.16213, eq. 9, as SwiftBrush weights it.
    """
    alpha, sigma = schedule.level(scores.t)
    return per_sample(alpha * sigma, scores.real) * score_difference(scores.real, scores.fake)


def merge_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, part: float) -> dict[str, Tensor]:
    """part a + (1 - part) b: v2 merges a fully trained student with one trained as a LoRA with the CLIP loss.

    `network.load_state_dict(merge_weights(first.state_dict(), second.state_dict(), part=0.5))` merges the networks of
    two exported pipelines.

    >>> merge_weights({"w": torch.ones(1)}, {"w": torch.zeros(1)}, part=0.25)
    {'w': tensor([0.2500])}
    """
    if a.keys() != b.keys():
        raise ValueError(f"the networks differ in {len(a.keys() ^ b.keys())} tensors and cannot be merged")
    return {name: torch.lerp(b[name].float(), a[name].float(), part).to(a[name].dtype) for name in a}
