"""The diffusion GAN of DMD2 (https://arxiv.org/abs/2405.14867, section 4.3): heads that judge noised latents.

Real and generated latents are noised at random times, passed through a diffusion network whose features are tapped by hooks, and
judged by small heads under their own prompts.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stepdistill.conditioning import Conditioning
from stepdistill.critics.discriminator import DiscriminatorHeads
from stepdistill.denoisers.base import Denoiser
from stepdistill.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
)
from stepdistill.rng import RandomStream
from stepdistill.times import TimeLaw, Uniform
from stepdistill.typing import Latents


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
    """Discriminator heads on the features of `backbone`.

    The backbone is not a submodule: its parameters belong to whoever owns it.

    Args:
        backbone: the network whose features are judged.
        config: weights, loss, layers and heads.
        times: law of the times at which latents are judged; default: uniform.
    """

    def __init__(self, backbone: Denoiser, config: GANConfig, times: TimeLaw | None = None) -> None:
        super().__init__()
        self.config = config
        self.times = times or Uniform()
        self._backbone = (backbone,)
        with torch.no_grad():
            like = next(backbone.parameters())
            x_t = torch.zeros(1, *backbone.latent_shape(), device=like.device, dtype=like.dtype)
            features = self.tap(x_t, torch.full((1,), 0.5, device=like.device), backbone.uncond(1))
        self.heads = DiscriminatorHeads([feature.shape[1:] for feature in features], width=config.width)
        self.heads.to(like.device)

    def tap(self, x_t: Latents, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """The backbone's features of noised latents."""
        return self._backbone[0].features(x_t, t, cond, layers=self.config.layers)

    def features(self, x0: Latents, cond: Conditioning, rng: RandomStream) -> list[Tensor]:
        """Noise latents at times of the law and tap the backbone."""
        t = self.times(rng.uniform("t"))
        eps = rng.normal("eps", x0.shape[1:]).to(x0)
        return self.tap(self._backbone[0].schedule.add_noise(x0, eps, t), t, cond)

    def student_loss(self, x0: Latents, cond: Conditioning, rng: RandomStream) -> Tensor:
        """The generator's loss; the gradient flows through the backbone into x0."""
        return GENERATORS[self.config.loss](self.heads(self.features(x0, cond, rng.fork("gan"))))

    def critic_losses(
        self,
        fake: Latents,
        fake_cond: Conditioning,
        real: Latents,
        real_cond: Conditioning,
        rng: RandomStream,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's terms, and the logits to log.

        Real and fake go through the backbone in one call; each has its own time and noise.
        """
        schedule, n = self._backbone[0].schedule, fake.shape[0]
        streams = (rng.fork("gan_fake"), rng.fork("gan_real"))
        t = self.times(torch.cat([stream.uniform("t") for stream in streams]))
        eps = torch.cat([stream.normal("eps", fake.shape[1:]) for stream in streams]).to(fake)
        x_t = schedule.add_noise(torch.cat([fake, real.to(fake)]), eps, t)
        features = self.tap(x_t, t, Conditioning.cat([fake_cond, real_cond]))
        logits = self.heads(features)
        terms = {"gan_critic": DISCRIMINATORS[self.config.loss](logits[n:], logits[:n])}
        if self.config.r1_weight > 0:
            leaves = [feature[n:].detach().requires_grad_() for feature in features]
            terms["r1"] = r1_penalty(self.heads(leaves), leaves)
        return terms, {"gan_fake": logits[:n].detach().mean(), "gan_real": logits[n:].detach().mean()}

    def weights(self) -> dict[str, float]:
        """The factor of each adversarial term."""
        return {
            "gan_student": self.config.student_weight,
            "gan_critic": self.config.critic_weight,
            "r1": self.config.critic_weight * self.config.r1_weight,
        }
