"""The diffusion GAN of DMD2 (https://arxiv.org/abs/2405.14867, section 4.3): heads that judge noised latents.

Real and generated latents are noised at random times and pass through a diffusion network. Hooks tap its features, and small heads
turn them into logits, each image under its own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stepdistill.critics.config import GANConfig
from stepdistill.critics.discriminator import DiscriminatorHeads
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.times import TimeLaw
from stepdistill.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
)
from stepdistill.typing import Latents, Times

GENERATORS = {"non_saturating": non_saturating_generator, "hinge": hinge_generator}
DISCRIMINATORS = {"non_saturating": non_saturating_discriminator, "hinge": hinge_discriminator}


class LatentGAN(nn.Module):
    """Discriminator heads on the features of a diffusion network. The network (backbone) is not part of this module.

    Args:
        backbone: a network whose features have the shapes that will be judged.
        config: weights and width.
        times: law of the times at which latents are judged.
        loss: the adversarial loss: DMD2 has the non-saturating one, LADD and SANA-Sprint the hinge.
    """

    def __init__(
        self,
        backbone: Denoiser,
        config: GANConfig,
        times: TimeLaw,
        *,
        loss: Literal["non_saturating", "hinge"] = "non_saturating",
    ) -> None:
        super().__init__()
        self.config, self.times = config, times
        self.generator_loss, self.discriminator_loss = GENERATORS[loss], DISCRIMINATORS[loss]
        with torch.no_grad():
            like = next(backbone.parameters())
            x_t = torch.zeros(1, *backbone.latent_shape(), device=like.device, dtype=like.dtype)
            t = torch.full((1,), 0.5, device=like.device)
            features = backbone.features(x_t, t, backbone.uncond(1))
        self.heads = DiscriminatorHeads([feature.shape[1:] for feature in features], width=config.width)
        self.heads.to(like.device)

    def student_loss(self, backbone: Denoiser, x0: Latents, cond: Conditioning, rng: RandomStream) -> Tensor:
        """The generator's loss; its gradient flows through the backbone into x0."""
        x_t, t = self.noised(backbone, x0, rng.fork("gan"))
        return self.generator_loss(self.heads(backbone.features(x_t, t, cond)))

    def features(
        self, backbone: Denoiser, x0: Sequence[Latents], cond: Sequence[Conditioning], rng: RandomStream
    ) -> list[list[Tensor]]:
        """Features of each batch of noised latents, all from one call of the backbone."""
        names = ("gan_real", "gan_fake")[: len(x0)]
        noised = [self.noised(backbone, each, rng.fork(name)) for each, name in zip(x0, names, strict=True)]
        x_t, t = (torch.cat(parts) for parts in zip(*noised, strict=True))
        with torch.set_grad_enabled(self.config.train_backbone and torch.is_grad_enabled()):
            features = backbone.features(x_t, t, Conditioning.cat(list(cond)))
        return [list(parts) for parts in zip(*(f.chunk(len(x0)) for f in features), strict=True)]

    def noised(self, backbone: Denoiser, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Noise latents to times of the law; return both."""
        t, eps = self.times(rng.uniform("t")), rng.normal("eps", x0.shape[1:])
        return backbone.schedule.add_noise(x0, eps.to(x0), t), t

    def critic_losses(
        self, real: Sequence[Tensor], fake: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's terms on the features of both sides, and the mean logits to log."""
        if not self.config.train_backbone:
            fake = [feature.detach() for feature in fake]
        sides = [torch.cat(pair) for pair in zip(real, fake, strict=True)]
        real_logits, fake_logits = self.heads(sides).split([len(real[0]), len(fake[0])])
        terms = {"gan_critic": self.discriminator_loss(real_logits, fake_logits)}
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
