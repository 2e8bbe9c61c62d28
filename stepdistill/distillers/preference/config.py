"""Options of the preference methods. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stepdistill.critics.config import RewardConfig
from stepdistill.diffusion.choices import Kernel, Reduction
from stepdistill.diffusion.sampler import SamplerKind
from stepdistill.distillers.config import DistillerConfig

ErrorWeight = Literal["inverse_variance", "snr"]
"""inverse_variance: the error of x0 over sigma^2, that of v (VP) or of the flow. snr: alpha^2 times that, the error of eps."""


class PSOConfig(DistillerConfig):
    """Options of PSO."""

    guidance_scale: float = Field(
        default=1.0, ge=1.0, le=1.0, description="off: few-step students run without guidance"
    )
    mode: Literal["online", "offline", "hinge"] = Field(
        default="online",
        description="online: a reward ranks samples; offline: images against samples; hinge: offline without a reference",
    )
    rollout: SamplerKind = Field(
        default="sde", description="student steps: x0 plus fresh noise (sde), or ode, which cannot be tuned online"
    )
    kernel: Kernel = Field(
        default="renoise", description="online: transition kernel; ancestral for Euler-ancestral students"
    )
    reward: RewardConfig | None = Field(
        default=None,
        description="online: scorer that ranks the images (emoji_clip, hps/v2.1, pickscore, ...), or package.module:function",
    )
    shared_start: bool = Field(
        default=False, description="online: start both trajectories of a prompt from the same noise"
    )
    beta: float = Field(default=50.0, gt=0.0, description="inverse temperature of the margin, given the reduction")
    reduction: Reduction = Field(
        default="mean", description="over a latent's elements; with mean, beta is D times that of the formulae"
    )
    clip_range: float | None = Field(
        default=0.1, gt=0.0, lt=1.0, description="online: clip ratios to 1 +- this; null: unclipped"
    )
    negative_weight: float = Field(
        default=0.1,
        ge=0.0,
        description="offline: weight of the loser's error; 0.1 is the released code's for concepts, 1 is DPO",
    )
    prior_weight: float = Field(
        default=0.5, ge=0.0, description="offline: weight of the loss that keeps losers denoisable"
    )
    error_weight: ErrorWeight = Field(
        default="inverse_variance", description="offline: error of x0 over sigma^2, or of eps (snr)"
    )
    losers: Literal["reference", "student"] = Field(
        default="reference", description="offline: network that draws the losers"
    )

    @property
    def sampler_kind(self) -> SamplerKind:
        return self.rollout
