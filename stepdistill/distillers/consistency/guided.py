"""What the methods of this family share: the teacher's guidance, fixed or drawn, and a student that may be told of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from stepdistill.conditioning import Conditioning
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.config import DistillerConfig
from stepdistill.errors import UserError
from stepdistill.guidance import Guidance, RandomScale
from stepdistill.prediction import jump_gain
from stepdistill.rng import RandomStream
from stepdistill.typing import Times

LossSpace = Literal["latent", "output"]
LOSS_SPACE = (
    "unit of the loss: latents (the papers), in which an eps network's late times outweigh the early ones by sigma / alpha, "
    "or the network's output, in which all weigh alike"
)


class GuidedConfig(DistillerConfig):
    """Options of guidance."""

    guidance_range: tuple[float, float] | None = Field(
        default=None,
        description="lowest and highest guidance scale, drawn for each sample; null: always guidance_scale",
    )
    embed_guidance: bool = Field(
        default=False,
        description="tell the student the scale, so that it can be chosen in the pipeline call (guidance_scale is its "
        "default); for U-Nets with roles.mode=full, or with a guidance input of their own",
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


def gap_weight(network: Denoiser, space: LossSpace, t: Times, edge: Times) -> Times | None:
    """What turns a gap between two jumps from t to `edge` into a gap between the network's outputs; None for latents.

    The gap is what the outputs differ by, times the jump's gain. A loss that is linear in the gap pulls at the output of an
    eps network by sigma_t / alpha_t: 45 at pure noise, 0.2 at the last step, so that the first jumps of the chain, which all
    the others rest on, are learnt last.
    """
    if space == "latent":
        return None
    return 1 / jump_gain(network.prediction, network.schedule, t, edge)
