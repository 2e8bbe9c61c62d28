"""Options of the data. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from stepdistill.diffusion.choices import Solver


class PairsConfig(BaseModel):
    """Settings of the teacher pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num: int = Field(default=0, ge=0, description="number of pairs of noise and teacher image; 0: none")
    steps: int = Field(default=50, ge=1, description="solver steps per pair (heun: two network calls per step)")
    guidance_scale: float = Field(default=4.0, ge=0.0, description="guidance scale of the ODE; 1.0 is off")
    solver: Solver = Field(default="ddim", description="ddim, euler or heun")
    batch_size: int = Field(default=64, ge=1, description="pairs per batch")
    shard_size: int = Field(default=256, ge=1, description="pairs per cache file; an interruption loses at most one")
