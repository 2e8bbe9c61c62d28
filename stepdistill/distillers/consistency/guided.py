"""What the methods of this family share: the teacher's guidance, fixed or drawn, and a student that may be told of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, RandomScale
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.config import DistillerConfig
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times


class GuidedConfig(DistillerConfig):
    """Options of guidance, and of what the times weigh."""

    guidance_range: tuple[float, float] | None = Field(
        default=None,
        description="lowest and highest guidance scale, drawn for each sample; null: always guidance_scale",
    )
    embed_guidance: bool = Field(
        default=False,
        description="tell the student the scale, so that it can be chosen in the pipeline call (guidance_scale is its "
        "default); for U-Nets with roles.mode=full, or with a guidance input of their own",
    )
    loss_space: Literal["latent", "output"] = Field(
        default="latent",
        description="whose errors the loss weighs: those of latents (the papers), where an eps network's late times pull sigma / alpha "
        "times as hard as its early ones, or those of the network's output, where all times pull alike",
    )


class GuidedDistiller(Distiller):
    """A method whose target is the flow of the guided teacher."""

    Config = GuidedConfig
    config: Any  # a GuidedConfig, narrowed by each method

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        span = self.config.guidance_range
        if span is not None and not 0 <= span[0] <= span[1]:
            raise UserError(f"method.guidance_range is [lowest, highest], both at least 0, got {list(span)}")
        if self.config.embed_guidance:
            self.student.embed_guidance(self.config.guidance_scale)

    def guidance(self, uncond: Conditioning, rng: RandomStream) -> Guidance:
        """The teacher's guidance: the fixed scale, or one drawn per sample."""
        span = self.config.guidance_range
        if span is None:
            return Guidance(self.config.guidance_scale, uncond)
        return Guidance(RandomScale(*span)(rng.uniform("guidance_scale")), uncond)

    def told(self, cond: Conditioning, guidance: Guidance) -> Conditioning:
        """The student's conditioning: with the drawn scale in it where the student has an input for that."""
        if self.student.embedded_guidance is None or not isinstance(guidance.scale, Tensor):
            return cond
        return cond.told("guidance_scale", guidance.scale)

    def balanced(self, prediction: Latents, gain: Times) -> Latents:
        """The same values; with loss_space=output their gradient is divided by their gain over the network's output.

        A loss pulls at the output of an eps network by sigma_t / alpha_t times as hard as at the x0 it makes: by 45 at pure noise and
        by 0.2 at the last step. So the first jumps of the chain, which all the others rest on, are learnt last.
        """
        if self.config.loss_space == "latent":
            return prediction
        return prediction.detach() + (prediction - prediction.detach()) / per_sample(gain, prediction)
