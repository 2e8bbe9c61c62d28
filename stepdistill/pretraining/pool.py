"""A fixed pool of scenes as latents and token ids, encoded once and cached beside the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepdistill.data.emoji import EmojiWorld
from stepdistill.pretraining.clip import tokenize
from stepdistill.pretraining.recipe import Scenes
from stepdistill.training.device import has_bf16_units

CHUNK = 256


@dataclass(frozen=True)
class Pool:
    """Latents (n, 16, 8, 8) and token ids (n, length) of the scenes, and the token ids of the empty caption."""

    latents: Tensor
    tokens: Tensor
    empty: Tensor

    def batch(self, size: int, dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample latents and tokens, dropping captions with probability `dropout`."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < dropout
        tokens = torch.where(dropped[:, None], self.empty, self.tokens[rows].long())
        return self.latents[rows].float(), tokens


@torch.no_grad()
def encode_scenes(world: EmojiWorld, vae: Any, scenes: Scenes) -> Tensor:
    """Encode scenes to scaled latents, float16."""
    latents = []
    is_half = has_bf16_units(torch.device("cpu"))
    for start in range(0, scenes.count, CHUNK):
        images, _ = world.scenes(scenes.seed, range(start, min(start + CHUNK, scenes.count)))
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        latents.append(((mean - vae.config.shift_factor) * vae.config.scaling_factor).half())
    return torch.cat(latents).contiguous()


def load_pool(world: EmojiWorld, vae_folder: Path, tokenizer: Any, scenes: Scenes, cache: Path) -> Pool:
    """Load a recipe's pool, with latents cached by autoencoder weights and scenes."""
    weights = (vae_folder / "diffusion_pytorch_model.safetensors").read_bytes()
    first = world.scenes(scenes.seed, range(4))[0].numpy().tobytes()
    key = hashlib.sha256(weights + first + f"{scenes.seed},{scenes.count}".encode()).hexdigest()[:16]
    file = cache / f"latents_{key}.safetensors"
    if not file.exists():
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32)
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"latents": encode_scenes(world, vae, scenes)}, file)
    captions = [world.describe(scenes.seed, index)[1] for index in range(scenes.count)]
    tokens = tokenize(tokenizer, captions).short()
    return Pool(load_file(file)["latents"], tokens, tokenize(tokenizer, [""])[0])
