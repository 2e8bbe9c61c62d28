"""Options of the adversary and of rewards. This module imports no torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class GANConfig(BaseModel):
    """Options of the adversarial loss. It needs real images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student_weight: float = Field(default=0.0, ge=0.0, description="weight of the student's GAN loss; 0 is off")
    critic_weight: float = Field(default=1e-2, ge=0.0, description="weight of the discriminator's loss")
    features: Literal["fake_score", "teacher"] = Field(
        default="fake_score", description="network whose features the heads judge; the teacher needs a pass of its own"
    )
    train_backbone: bool = Field(
        default=True,
        description="let the discriminator's loss train the fake score too, as in the paper; false saves a backward pass",
    )
    width: int = Field(default=128, ge=1, description="hidden width of the discriminator heads")
    r1_weight: float = Field(default=0.0, ge=0.0, description="weight of the gradient penalty on real features")


class RewardConfig(BaseModel):
    """A reward in a recipe: `reward: pickscore`, or `reward: {name: pickscore, weights: PATH}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(
        description="a scorer (emoji_clip, clip/..., hps/v2.1, pickscore, image_reward, aesthetic), or package.module:function"
    )
    weights: str | None = Field(
        default=None, description="file or folder of the scorer's weights; null: search the known places"
    )
    tokenizer: str | None = Field(default=None, description="folder of its tokenizer; null: search the known places")
    backbone: str | None = Field(
        default=None, description="aesthetic: weights of its CLIP model; null: search the known places"
    )
    python: str | None = Field(default=None, description="hps/v3: Python interpreter of its environment")
    command: str | list[str] | None = Field(
        default=None, description="program that scores a manifest of images; can rank, has no gradient"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="precision of its weights")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> Any:
        """Write the bare name if nothing else is set."""
        return self.name if self == RewardConfig(name=self.name) else handler(self)

    def options(self) -> dict[str, Any]:
        """The scorer's constructor arguments: every field but name and precision."""
        return {key: getattr(self, key) for key in type(self).model_fields if key not in ("name", "dtype")}
