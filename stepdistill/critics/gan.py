"""The diffusion GAN of DMD2 (https://arxiv.org/abs/2405.14867, section 4.3): heads that judge noised latents.

Real and generated latents are noised at random times, passed through a diffusion network whose features are tapped by hooks, and
judged by small heads under their own prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stepdistill.critics.discriminator import DiscriminatorHeads
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.times import TimeLaw, Uniform
from stepdistill.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
)
from stepdistill.typing import Latents, Times


class GANConfig(BaseModel):
    """Options of the adversarial part. It needs real images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student_weight: float = Field(
        default=0.0, ge=0.0, description="weight of the student's GAN loss; 0 is off"
    )
    critic_weight: float = Field(default=1e-2, ge=0.0, description="weight of the discriminator's loss")
    features: Literal["fake_score", "teacher"] = Field(
        default="fake_score",
        description="network whose features the heads judge; the paper uses the fake score",
    )
    train_backbone: bool = Field(
        default=True,
        description="the discriminator's loss trains the fake score along with the heads, as in the paper; false spares "
        "the backward pass of the real half",
    )
    layers: tuple[str, ...] | None = Field(
        default=None, description="modules to tap; default: what the family names"
    )
    loss: Literal["non_saturating", "hinge"] = Field(
        default="non_saturating", description="the adversarial loss; DMD2 has the non-saturating one"
    )
    width: int = Field(default=128, ge=1, description="hidden width of the heads")
    r1_weight: float = Field(
        default=0.0, ge=0.0, description="weight of the gradient penalty on real features"
    )


GENERATORS = {"non_saturating": non_saturating_generator, "hinge": hinge_generator}
DISCRIMINATORS = {"non_saturating": non_saturating_discriminator, "hinge": hinge_discriminator}


class LatentGAN(nn.Module):
    """Discriminator heads on the features of a diffusion network, the backbone, which is not part of this module.

    Args:
        backbone: a network whose features have the shapes that will be judged.
        config: weights, loss, layers and heads.
        times: law of the times at which latents are judged; default: uniform.
    """

    def __init__(self, backbone: Denoiser, config: GANConfig, times: TimeLaw | None = None) -> None:
        super().__init__()
        self.config = config
        self.times = times or Uniform()
        with torch.no_grad():
            like = next(backbone.parameters())
            x_t = torch.zeros(1, *backbone.latent_shape(), device=like.device, dtype=like.dtype)
            t = torch.full((1,), 0.5, device=like.device)
            features = backbone.features(x_t, t, backbone.uncond(1), layers=config.layers)
        self.heads = DiscriminatorHeads([feature.shape[1:] for feature in features], width=config.width)
        self.heads.to(like.device)

    def student_loss(self, backbone: Denoiser, x0: Latents, cond: Conditioning, rng: RandomStream) -> Tensor:
        """The generator's loss; the gradient flows through the backbone into x0."""
        x_t, t = self.noised(backbone, x0, rng.fork("gan"))
        return GENERATORS[self.config.loss](
            self.heads(backbone.features(x_t, t, cond, layers=self.config.layers))
        )

    def features(
        self, backbone: Denoiser, x0: Sequence[Latents], cond: Sequence[Conditioning], rng: RandomStream
    ) -> list[list[Tensor]]:
        """What the critics' turn judges: the features of each batch of latents, all in one call of the backbone."""
        names = ("gan_real", "gan_fake")[: len(x0)]
        noised = [self.noised(backbone, each, rng.fork(name)) for each, name in zip(x0, names, strict=True)]
        x_t, t = (torch.cat(parts) for parts in zip(*noised, strict=True))
        with torch.set_grad_enabled(self.config.train_backbone and torch.is_grad_enabled()):
            features = backbone.features(x_t, t, Conditioning.cat(list(cond)), layers=self.config.layers)
        return [list(parts) for parts in zip(*(f.chunk(len(x0)) for f in features), strict=True)]

    def noised(self, backbone: Denoiser, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Latents at times of the law, and these times."""
        t, eps = self.times(rng.uniform("t")), rng.normal("eps", x0.shape[1:])
        return backbone.schedule.add_noise(x0, eps.to(x0), t), t

    def critic_losses(
        self, real: Sequence[Tensor], fake: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's terms on the features of both sides, and the logits to log."""
        if not self.config.train_backbone:
            fake = [feature.detach() for feature in fake]
        sides = [torch.cat(pair) for pair in zip(real, fake, strict=True)]
        real_logits, fake_logits = self.heads(sides).split([len(real[0]), len(fake[0])])
        terms = {"gan_critic": DISCRIMINATORS[self.config.loss](real_logits, fake_logits)}
        if self.config.r1_weight > 0:
            leaves = [feature.detach().requires_grad_() for feature in real]
            terms["r1"] = r1_penalty(self.heads(leaves), leaves)
        return terms, {"gan_fake": fake_logits.detach().mean(), "gan_real": real_logits.detach().mean()}

    def weights(self) -> dict[str, float]:
        """The factor of each adversarial term."""
        return {
            "gan_student": self.config.student_weight,
            "gan_critic": self.config.critic_weight,
            "r1": self.config.critic_weight * self.config.r1_weight,
        }
