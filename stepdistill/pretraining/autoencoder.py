"""The shared autoencoder: 64 px pictures to 16x8x8 latents of unit variance, as a stock AutoencoderKL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from stepdistill.data.emoji import EmojiWorld
from stepdistill.pretraining.recipe import PretrainRecipe
from stepdistill.pretraining.stage import Stage
from stepdistill.typing import Images

MEASURED_SCENES = 1024


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a training step, which makes a resumed run bitwise identical."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return horizontal and vertical differences of neighbouring pixels."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


class AutoencoderStage(Stage):
    """L1 and squared error, L1 on edges at two scales, and a small KL to N(0, 1)."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.world = EmojiWorld()
        self.vae: Any = AutoencoderKL(**recipe.network["autoencoder"])
        self.networks = nn.ModuleDict({"vae": self.vae})
        self.kl_weight = recipe.options.get("kl_weight", 1e-6)
        self.edge_weight = recipe.options.get("edge_weight", 1.0)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        size = self.recipe.train.batch_size
        images, _ = self.world.scenes(self.recipe.scenes.seed, range(step * size, (step + 1) * size))
        images = images * 2 - 1
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=step_generator(self.recipe.train.seed, step))
        latents = posterior.mean + posterior.std * noise
        output = self.vae.decode(latents).sample.float()
        error = (output - images).abs().mean() + F.mse_loss(output, images)
        edge = self.edge_error(output, images) + self.edge_error(F.avg_pool2d(output, 2), F.avg_pool2d(images, 2))
        kl = posterior.kl().mean()
        l1 = (output - images).abs().mean()
        logs = {"l1": l1, "edge": edge, "kl": kl, "latent_std": posterior.mean.std()}
        return error + self.edge_weight * edge + self.kl_weight * kl, logs

    @staticmethod
    def edge_error(output: Images, images: Images) -> Tensor:
        """Return the mean absolute error of the edges."""
        pairs = zip(edges(output), edges(images), strict=True)
        return torch.stack([(ours - true).abs().mean() for ours, true in pairs]).sum()

    def start_from(self, folder: Path) -> None:
        self.vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        self.networks["vae"] = self.vae

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder with 1x1 convolutions that standardise every latent channel."""
        images, _ = self.world.scenes(self.recipe.scenes.seed, range(MEASURED_SCENES))
        latents = torch.cat([self.vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(128)])
        standardised(self.vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3))).half().save_pretrained(folder)


@torch.no_grad()
def standardised(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> AutoencoderKL:
    """Return an equivalent autoencoder with latents (z - mean) / std, folded into its 1x1 convolutions."""
    own = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    convolutions = {"use_quant_conv": True, "use_post_quant_conv": True}
    wide = AutoencoderKL.from_config({**own, **convolutions, "scaling_factor": 1.0, "shift_factor": 0.0})
    assert isinstance(wide, AutoencoderKL)
    before, after = pointwise(wide.quant_conv), pointwise(wide.post_quant_conv)
    for weight, bias in (before, after):
        weight.copy_(torch.eye(len(weight))[:, :, None, None])
        bias.zero_()
    wide.load_state_dict(vae.state_dict(), strict=False)
    # The encoder's moments are (mean, log variance): mean -> (mean - m) / s, log variance -> log variance - 2 log s.
    scale = torch.cat([1 / std, torch.ones_like(std)])
    shift = torch.cat([-mean / std, -2 * std.log()])
    before[0].mul_(scale[:, None, None, None])
    before[1].mul_(scale).add_(shift)
    # The decoder sees s z + m.
    after[1].add_(after[0][:, :, 0, 0] @ mean)
    after[0].mul_(std[None, :, None, None])
    return wide


def pointwise(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a 1x1 convolution."""
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight, convolution.bias
