"""What a reward is to a method: a function of images and their prompts; and how a recipe names one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from torch import Tensor

from stepdistill.typing import Images


class Reward(Protocol):
    """Rates images, larger is better. Any callable will do.

    Methods that only rank (PSO) call it without gradients; those that follow its gradient (SwiftBrush v2) need one that is
    differentiable in the images.
    """

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """One number per image (B,), from images in [0, 1] and as many prompts."""
        ...


class RewardConfig(BaseModel):
    """A reward in a recipe: `reward: pickscore`, or `reward: {name: pickscore, weights: PATH}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(
        description="a scorer (emoji_clip, clip/..., hps/v2.1, pickscore, image_reward, aesthetic), or package.module:function"
    )
    weights: str | None = Field(
        default=None, description="file or folder of the scorer's weights; null: searched"
    )
    tokenizer: str | None = Field(default=None, description="folder of its tokenizer; null: searched")
    backbone: str | None = Field(
        default=None, description="aesthetic: weights of its CLIP model; null: searched"
    )
    python: str | None = Field(default=None, description="hps/v3: the interpreter of its own environment")
    command: str | list[str] | None = Field(
        default=None,
        description="a program that scores a manifest of pictures; it can rank, and has no gradient",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="precision of its weights")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> Any:
        """The name where nothing else is set, as a recipe would write it."""
        return self.name if self == RewardConfig(name=self.name) else handler(self)

    def options(self) -> dict[str, Any]:
        """What the scorer is made with: all but name and precision."""
        return {key: getattr(self, key) for key in type(self).model_fields if key not in ("name", "dtype")}
