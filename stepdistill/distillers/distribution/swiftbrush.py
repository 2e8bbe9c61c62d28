"""SwiftBrush: one-step text-to-image by variational score distillation, Nguyen and Tran, CVPR 2024, https://arxiv.org/abs/2312.05239.

Distribution matching without images, whose fake score is a LoRA on the teacher and is guided as the teacher is. Options:
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
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stepdistill.critics.reward import Reward, RewardConfig
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, RandomScale
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.distillers.base import Batch
from stepdistill.distillers.distribution.matching import (
    DistributionMatching,
    DistributionMatchingConfig,
    Logs,
    Terms,
)
from stepdistill.errors import UserError
from stepdistill.losses.preference import clamped_reward
from stepdistill.typing import Latents, Times


class SwiftBrushConfig(DistributionMatchingConfig):
    """Options of SwiftBrush and of the papers that vary it."""

    num_steps: int = Field(default=1, ge=1, le=8, description="network calls of the student per image")
    guidance_scale: float = Field(default=4.5, ge=0.0, description="of the teacher; 1.0 is off")
    guidance_scale_max: float | None = Field(
        default=None,
        ge=0.0,
        description="PG-SB: the scale is uniform from guidance_scale to this; null: constant",
    )
    fake_guidance_scale: float | None = Field(
        default=None,
        description="of the fake score; null: the teacher's (VSD), 1 - lambda: ESD, 1.0: off, as in DMD and DSD",
    )
    student_every: int = Field(default=1, ge=1, description="1: both move in every iteration")
    normaliser: Literal["mean_abs", "none"] = Field(
        default="none", description="scale of the gradient; none: the paper's"
    )
    critic_space: Literal["own", "x0", "eps", "v", "flow"] = Field(
        default="eps", description="prediction in which the fake score's error is taken, times alpha^2"
    )
    prompt_dropout: float = Field(
        default=0.1, ge=0.0, le=1.0, description="part of the fake score's samples that lose their prompt"
    )
    reward: RewardConfig | None = Field(
        default=None,
        description="v2: similarity of image and prompt, a differentiable scorer ('emoji_clip', 'clip/...'); null: off",
    )
    clip_weight: float = Field(default=0.1, ge=0.0, description="v2: weight of the clamped similarity")
    clip_threshold: float = Field(
        default=0.35, description="v2: similarity above which it does not pull, in the reward's units"
    )
    clip_decay_steps: int | None = Field(
        default=None, ge=1, description="v2: iterations in which the weight falls to zero; null: constant"
    )


class SwiftBrush(DistributionMatching[SwiftBrushConfig]):
    """Variational score distillation with a LoRA fake score, on prompts alone.

    Args:
        reward: the similarity that `config.reward` names; it has to be differentiable in the images.
    """

    paper = "https://arxiv.org/abs/2312.05239"
    status = "verified"
    Config = SwiftBrushConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: SwiftBrushConfig | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student, fake_score=fake_score)
        if self.config.reward is not None and reward is None:
            raise UserError(
                f"method.reward names '{self.config.reward.name}': pass reward=load_reward(name) beside it"
            )
        self.reward = reward

    def gradient(self, x0: Latents, real: Latents, fake: Latents, t: Times) -> Latents:
        """sigma^2 (eps_real - eps_fake), which is alpha sigma times the difference of the x0."""
        alpha, sigma = self.teacher.schedule.level(t)
        return per_sample(alpha * sigma, x0) * super().gradient(x0, real, fake, t)

    def match(self, x0: Latents, batch: Batch, rng: RandomStream) -> tuple[Terms, Logs]:
        """Variational score distillation, and the clamped similarity of v2."""
        terms, logs = super().match(x0, batch, rng)
        if self.reward is not None:
            similarity = self.reward(self.teacher.decode(x0), batch.prompts)
            if x0.requires_grad and not similarity.requires_grad:
                raise UserError(
                    "method.reward has no gradient in the images; name a scorer that is a network"
                )
            decay = self.config.clip_decay_steps
            remaining = 1.0 if decay is None else max(1 - batch.step / decay, 0.0)
            terms["clip"] = remaining * clamped_reward(similarity, threshold=self.config.clip_threshold)
            logs["similarity"] = similarity.detach().mean()
        return terms, logs

    def guidance(self, batch: Batch) -> Guidance:
        """A constant scale, or PG-SB's: the same draw for teacher and fake score."""
        lo, hi = self.config.guidance_scale, self.config.guidance_scale_max
        scale = lo if hi is None else RandomScale(lo, hi)(batch.rng.uniform("guidance_scale"))
        return self.guidance_at(scale, batch)

    def fake_guidance(self, batch: Batch) -> Guidance:
        """The teacher's guidance, or ESD's: uncond + (1 - lambda) (cond - uncond)."""
        scale = self.config.fake_guidance_scale
        same = self.guidance(batch)
        return same if scale is None else replace(same, scale=scale)

    def critic_cond(self, batch: Batch, rng: RandomStream) -> Conditioning:
        """The prompts, some of them dropped, so that the fake score can be guided."""
        is_dropped = rng.uniform("prompt_dropout") < self.config.prompt_dropout
        return Conditioning.where(is_dropped, batch.uncond, batch.cond)

    def critic_weight(self, t: Times, step: int) -> Times:
        """alpha^2, as in the released code."""
        return self.fake_score.schedule.alpha(t) ** 2

    def weights(self) -> dict[str, float]:
        """The factor of each loss term."""
        return {"clip": self.config.clip_weight}


def merge_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, part: float) -> dict[str, Tensor]:
    """part a + (1 - part) b: v2's fusion of a student trained in full and one trained as a merged LoRA with the CLIP loss.

    `network.load_state_dict(merge_weights(first.state_dict(), second.state_dict(), part=0.5))` merges the networks of
    two exported pipelines.

    >>> merge_weights({"w": torch.ones(1)}, {"w": torch.zeros(1)}, part=0.25)
    {'w': tensor([0.2500])}
    """
    if a.keys() != b.keys():
        raise ValueError(f"the networks differ in {len(a.keys() ^ b.keys())} tensors and cannot be merged")
    return {name: torch.lerp(b[name].float(), a[name].float(), part).to(a[name].dtype) for name in a}
