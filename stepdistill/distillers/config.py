"""Options and requirements that every method has. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from stepdistill.diffusion.sampler import SamplerKind


class DistillerConfig(BaseModel):
    """Fields every method has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(default=4, ge=1, le=8, description="student network calls per image")
    guidance_scale: float = Field(
        default=4.0, ge=0.0, description="guidance scale of the teacher: uncond + s (cond - uncond); 1.0 is off"
    )
    first_time: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="first time of the student's grid; below 1 an eps student does not divide by alpha near 0",
    )
    grid_shift: float = Field(
        default=1.0, gt=0.0, description="shift of the student's grid towards noise, on top of the scheduler's own"
    )

    @property
    def sampler_kind(self) -> SamplerKind:
        """How the student steps: "sde" adds fresh noise, "ode" keeps the estimated noise."""
        return "sde"

    @property
    def num_experts(self) -> int:
        """Networks that make up the student."""
        return 1

    @property
    def num_fake_scores(self) -> int:
        """Fake scores trained beside the student."""
        return 0

    @property
    def num_targets(self) -> int:
        """Frozen averages of the student that provide its targets."""
        return 0


@dataclass(frozen=True)
class Requirements:
    """What a method needs from the recipe.

    Attributes:
        latents: real images.
        critic: networks trained beside the student.
        pairs: noises with the teacher's images of them.
        predictions: supported prediction types of the teacher.
    """

    latents: bool = False
    critic: bool = False
    pairs: bool = False
    predictions: tuple[str, ...] = ("x0", "eps", "v", "flow")

    def names(self) -> list[str]:
        """The requirements as words: "prompts" and whatever else is needed."""
        optional = {"real images": self.latents, "teacher pairs": self.pairs, "critic": self.critic}
        return ["prompts", *(name for name, is_needed in optional.items() if is_needed)]
