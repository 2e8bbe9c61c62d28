"""Options of the consistency methods. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stepdistill.critics.config import GANConfig
from stepdistill.diffusion.choices import Differentiation
from stepdistill.diffusion.sampler import SamplerKind
from stepdistill.distillers.config import DistillerConfig


class GuidedConfig(DistillerConfig):
    """Options of guidance and of the loss's space, for every method of the family."""

    guidance_range: tuple[float, float] | None = Field(
        default=None, description="[lowest, highest] guidance scale, drawn per sample; null: always guidance_scale"
    )
    embed_guidance: bool = Field(
        default=False,
        description="give the student a guidance-scale input, for pipelines' guidance_scale; U-Nets with roles.mode=full",
    )
    loss_space: Literal["latent", "output"] = Field(
        default="latent",
        description="take the loss in latents (the papers) or in the network's output, where all times weigh alike",
    )

    @field_validator("guidance_range")
    @classmethod
    def is_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        """Reject all but 0 <= lo <= hi."""
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError("give [lowest, highest], both at least 0")
        return value


class LCMConfig(GuidedConfig):
    """Options of consistency distillation on a grid: LCM, PCM and Hyper-SD."""

    solver_steps: int = Field(
        default=40,
        ge=1,
        description="points of the teacher's grid, a multiple of num_steps and of the segments; LCM has 50 (skip 20)",
    )
    segments: tuple[int, ...] = Field(
        default=(1,),
        min_length=1,
        description="segments of the trajectory in each stage: [1] is LCM, [4] is PCM, [8, 4, 2, 1] is Hyper-SD",
    )
    stage_steps: int = Field(default=1000, ge=1, description="iterations per stage, except the last")
    target: Literal["online", "ema"] = Field(
        default="online", description="target network: the student itself (LCM-LoRA, PCM) or its average (LCM)"
    )
    target_decay: float = Field(default=0.95, ge=0.0, lt=1.0, description="decay of that average")
    huber_c: float = Field(default=1e-3, ge=0.0, description="error at which the loss turns from quadratic to linear")

    @property
    def sampler_kind(self) -> SamplerKind:
        return "sde" if self.segments[-1] == 1 else "ode"

    @property
    def num_targets(self) -> int:
        return 1 if self.target == "ema" else 0


class SCMConfig(GuidedConfig):
    """Options of continuous-time consistency."""

    tangent: Differentiation = Field(
        default="jvp",
        description="derivative along the ODE: jvp (exact), semi (exact in x, difference in t), finite, or backward (damped)",
    )
    tangent_step: float = Field(
        default=5e-4,
        gt=0,
        description="step of the differences in log(sigma / alpha); 0.03 to 0.1 for steep time embeddings",
    )
    tangent_warmup_steps: int = Field(
        default=1000, ge=0, description="iterations over which the student's own derivative comes in"
    )
    tangent_constant: float = Field(default=0.1, ge=0, description="c of the normalisation g / (rms(g) + c)")
    learn_variance: bool = Field(default=True, description="learn a weight of times, the log-variance of the loss")
    time_mean: float = Field(default=-0.3, description="mean of log(sigma / alpha) of the training times")
    time_std: float = Field(default=1.4, gt=0, description="standard deviation of log(sigma / alpha)")

    @property
    def has_log_variance(self) -> bool:
        """Whether the method has a learned weight of times."""
        return self.learn_variance


class SprintGANConfig(GANConfig):
    """The adversarial loss with the paper's weights, on the teacher's features."""

    features: Literal["fake_score", "teacher"] = Field(
        default="teacher", description="network whose features the heads judge; there is only the teacher"
    )

    student_weight: float = Field(default=0.5, gt=0.0, description="weight of the student's GAN loss")
    critic_weight: float = Field(default=0.5, gt=0.0, description="weight of the discriminator's loss")


class SANASprintConfig(SCMConfig):
    """Options of SANA-Sprint."""

    time_mean: float = Field(default=0.9, description="mean of log(sigma / alpha) of the training times")
    time_std: float = Field(default=1.6, gt=0, description="standard deviation of log(sigma / alpha)")
    max_time_prob: float = Field(
        default=0.5, ge=0, le=1, description="share of the adversarial inputs at the maximal time"
    )
    gan: SprintGANConfig = Field(default=SprintGANConfig(), description="the adversarial loss")


class TBCMConfig(SCMConfig):
    """Options of trajectory-backward consistency."""

    form: Literal["continuous", "discrete"] = Field(
        default="continuous", description="tangents at the states (the paper), or agreement of successive states"
    )
    route_points: int = Field(default=16, ge=2, description="teacher calls per trajectory, each a training point")
    calm_after: int | None = Field(
        default=None, ge=0, description="iteration from which the student's own derivative is damped; null: never"
    )
    huber_c: float = Field(
        default=1e-3, ge=0.0, description="discrete form: error at which the loss turns from quadratic to linear"
    )

    @property
    def has_log_variance(self) -> bool:
        return self.learn_variance and self.form == "continuous"
