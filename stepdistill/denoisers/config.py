"""Options of the roles. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Roles(BaseModel):
    """How to create a method's trainable networks from the teacher.

    >>> Roles(rank=16).scaling_alpha
    16.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["shared", "full"] = Field(
        default="shared", description="shared: LoRA adapters on one network; full: copies of the network"
    )
    rank: int = Field(default=64, ge=1, description="LoRA rank")
    alpha: float | None = Field(default=None, gt=0, description="LoRA alpha; default: the rank, i.e. scale 1")
    target_modules: list[str] | None = Field(default=None, description="layers to adapt; default: the family's")
    seed: int = Field(default=0, ge=0, description="seed of the LoRA initialisation")

    @property
    def scaling_alpha(self) -> float:
        """Alpha, by default the rank."""
        return float(self.rank) if self.alpha is None else self.alpha
