"""The options that every method has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DistillerConfig(BaseModel):
    """Fields every method has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(default=4, ge=1, le=8, description="network calls of the student per image")
    guidance_scale: float = Field(
        default=4.0, ge=0.0, description="the teacher's, in training: uncond + s (cond - uncond); 1.0 is off"
    )
    first_time: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="where the student's grid begins, with pure noise; below 1, no x0 of an eps student is divided by nearly 0",
    )
    grid_shift: float = Field(
        default=1.0,
        gt=0.0,
        description="shift of the student's grid towards noise, on top of the scheduler's own; steps with fresh noise mend more "
        "of the first x0 where more of it is covered",
    )

    @property
    def num_experts(self) -> int:
        """Networks that make up the student."""
        return 1

    @property
    def num_fake_scores(self) -> int:
        """Networks of the student's kind that learn beside it."""
        return 0

    @property
    def num_targets(self) -> int:
        """Frozen averages of the student that make its targets."""
        return 0
