"""The shared autoencoder: 64 px pictures to 8x8x16 latents of unit variance, as a stock AutoencoderKL."""

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
    """The generator of a training step: a resumed run draws what the uninterrupted one would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, across and down."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


class AutoencoderStage(Stage):
    """Absolute and squared error, the same on edges at two scales, and a slight pull of the latents to N(0, 1)."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.world = EmojiWorld()
        self.vae: Any = AutoencoderKL(**recipe.network["autoencoder"])
        self.networks = nn.ModuleDict({"vae": self.vae})
        self.kl_weight = recipe.options.get("kl_weight", 1e-6)
        self.edge_weight = recipe.options.get("edge_weight", 1.0)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruct fresh scenes."""
        size = self.recipe.train.batch_size
        images, _ = self.world.scenes(self.recipe.scenes.seed, range(step * size, (step + 1) * size))
        images = images * 2 - 1
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=step_generator(self.recipe.train.seed, step))
        latents = posterior.mean + posterior.std * noise
        output = self.vae.decode(latents).sample.float()
        error = (output - images).abs().mean() + F.mse_loss(output, images)
        edge = self.edge_error(output, images) + self.edge_error(
            F.avg_pool2d(output, 2), F.avg_pool2d(images, 2)
        )
        kl = posterior.kl().mean()
        logs = {
            "l1": (output - images).abs().mean(),
            "edge": edge,
            "kl": kl,
            "latent_std": posterior.mean.std(),
        }
        return error + self.edge_weight * edge + self.kl_weight * kl, logs

    @staticmethod
    def edge_error(output: Images, images: Images) -> Tensor:
        """Mean absolute difference of edges."""
        pairs = zip(edges(output), edges(images), strict=True)
        return torch.stack([(ours - true).abs().mean() for ours, true in pairs]).sum()

    def start_from(self, folder: Path) -> None:
        """Go on with an exported autoencoder, 1x1 convolutions included."""
        self.vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        self.networks["vae"] = self.vae

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the autoencoder with 1x1 convolutions that give every latent channel mean 0 and variance 1."""
        images, _ = self.world.scenes(self.recipe.scenes.seed, range(MEASURED_SCENES))
        latents = torch.cat([self.vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(128)])
        standardised(self.vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3))).half().save_pretrained(folder)


@torch.no_grad()
def standardised(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> AutoencoderKL:
    """The same autoencoder with latents (z - mean) / std: folded into `quant_conv` and `post_quant_conv`, hence exact."""
    own = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    config = {
        **own,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }
    wide = AutoencoderKL.from_config(config)
    assert isinstance(wide, AutoencoderKL)
    before, after = pointwise(wide.quant_conv), pointwise(wide.post_quant_conv)
    for weight, bias in (before, after):
        weight.copy_(torch.eye(len(weight))[:, :, None, None])
        bias.zero_()
    wide.load_state_dict(vae.state_dict(), strict=False)
    scale = torch.cat([1 / std, torch.ones_like(std)])
    shift = torch.cat([-mean / std, -2 * std.log()])
    before[0].mul_(scale[:, None, None, None])
    before[1].mul_(scale).add_(shift)
    after[1].add_(after[0][:, :, 0, 0] @ mean)
    after[0].mul_(std[None, :, None, None])
    return wide


def pointwise(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1x1 convolution."""
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight, convolution.bias
