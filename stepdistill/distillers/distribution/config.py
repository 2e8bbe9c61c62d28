"""Options of the distribution-matching methods. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stepdistill.critics.config import GANConfig, RewardConfig
from stepdistill.diffusion.sampler import SamplerKind
from stepdistill.distillers.config import DistillerConfig

CriticSpace = Literal["own", "x0", "eps", "v", "flow"]


class DistributionMatchingConfig(DistillerConfig):
    """Options every method of the family has."""

    rollout: SamplerKind = Field(
        default="sde", description="student steps: x0 plus fresh noise (sde), or plus the estimated noise (ode)"
    )
    student_every: int = Field(
        default=5, ge=1, description="update the critics every iteration, the student every k-th"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="times between which the teacher is guided; guidance at high noise adds contrast",
    )
    renoise_lo: float = Field(default=0.02, ge=0.0, le=1.0, description="lowest time at which scores are compared")
    renoise_hi: float = Field(default=0.98, ge=0.0, le=1.0, description="highest time at which scores are compared")
    renoise_shift: float = Field(default=1.0, gt=0.0, description="shift of these times towards noise; 1 is uniform")
    critic_shift: float = Field(
        default=1.0, gt=0.0, description="shift of the fake score's training times towards noise; 1 is uniform"
    )
    critic_space: CriticSpace = Field(
        default="own",
        description="prediction in which the fake score's error is taken; own: the network's; v weights high noise more than eps",
    )

    @field_validator("guidance_interval")
    @classmethod
    def is_interval(cls, value: tuple[float, float]) -> tuple[float, float]:
        """Reject all but 0 <= lo < hi <= 1."""
        lo, hi = value
        if not 0 <= lo < hi <= 1:
            raise ValueError("give [lo, hi] with 0 <= lo < hi <= 1, such as [0, 0.7]")
        return value

    @property
    def sampler_kind(self) -> SamplerKind:
        return self.rollout

    @property
    def num_fake_scores(self) -> int:
        return self.num_experts


class FakeScorePerStepConfig(DistributionMatchingConfig):
    """The option of one fake score per student step."""

    fake_score_per_step: bool = Field(
        default=False,
        description="train one fake score per student step; with a single one (the paper) the last step gains contrast",
    )

    @property
    def num_fake_scores(self) -> int:
        return self.num_steps if self.fake_score_per_step else 1


class DMD2Config(FakeScorePerStepConfig):
    """Options of DMD2."""

    gan: GANConfig = Field(default=GANConfig(), description="the adversarial loss; off by default")


class DMDConfig(FakeScorePerStepConfig):
    """Options of DMD."""

    num_steps: int = Field(
        default=1, ge=1, le=8, description="student network calls per image; only the first is regressed"
    )
    guidance_scale: float = Field(default=3.0, ge=0.0, description="guidance scale of the teacher; 1.0 is off")
    student_every: int = Field(default=1, ge=1, description="1: update student and fake score every iteration")
    regression: Literal["auto", "lpips", "pseudo_huber"] = Field(
        default="auto", description="distance to the teacher's images; auto: lpips if installed"
    )
    regression_weight: float = Field(default=0.25, ge=0.0, description="weight of the regression")


class PhasedDMDConfig(DistributionMatchingConfig):
    """Options of Phased DMD."""

    rollout: SamplerKind = Field(
        default="ode", description="student steps: x0 plus the estimated noise (ode, the paper), or fresh noise (sde)"
    )
    num_phases: int = Field(default=2, ge=1, description="number of phases; each has one expert and as many steps")
    phase_iterations: int | None = Field(
        default=None, ge=1, description="iterations per phase, trained one after the other; null: alternate"
    )

    @property
    def num_experts(self) -> int:
        return self.num_phases


class SwiftBrushConfig(DistributionMatchingConfig):
    """Options of SwiftBrush and its variants."""

    num_steps: int = Field(default=1, ge=1, le=8, description="student network calls per image")
    guidance_scale: float = Field(default=4.5, ge=0.0, description="guidance scale of the teacher; 1.0 is off")
    guidance_scale_max: float | None = Field(
        default=None, ge=0.0, description="PG-SB: draw the scale between guidance_scale and this; null: constant"
    )
    fake_guidance_scale: float | None = Field(
        default=None,
        description="guidance scale of the fake score; null: the teacher's (VSD), 1 - lambda: ESD, 1.0: off (DMD, DSD)",
    )
    student_every: int = Field(default=1, ge=1, description="1: update student and fake score every iteration")
    critic_space: CriticSpace = Field(
        default="eps", description="prediction in which the fake score's error is taken, times alpha^2"
    )
    prompt_dropout: float = Field(
        default=0.1, ge=0.0, le=1.0, description="share of the fake score's samples trained without their prompt"
    )
    reward: RewardConfig | None = Field(
        default=None, description="v2: differentiable scorer of image and prompt (emoji_clip, clip/...); null: off"
    )
    clip_weight: float = Field(default=0.1, ge=0.0, description="v2: weight of the clamped reward")
    clip_threshold: float = Field(
        default=0.35, description="v2: reward above which there is no gradient, in the reward's units"
    )
    clip_decay_steps: int | None = Field(
        default=None, ge=1, description="v2: iterations until the weight has fallen to zero; null: constant"
    )
