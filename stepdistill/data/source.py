"""Training data: prompt embeddings and, for methods that need them, real latents and teacher pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from stepdistill.data.cache import cached, fingerprint, named_weights
from stepdistill.data.images import load_images
from stepdistill.data.prompts import load_prompts
from stepdistill.data.trajectories import TeacherPairs
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.distillers.batch import Batch, Pairs
from stepdistill.errors import UserError

ENCODE_BATCH = 64


@dataclass(frozen=True)
class TrainingData:
    """Precomputed training data; text encoders and autoencoder are no longer needed on the device.

    Attributes:
        prompts: prompt texts, aligned with the rows of `cond`.
        cond: prompt embeddings.
        uncond: embedding of the negative prompt, one row.
        shape: shape of one latent.
        latents: real latents, or None.
        latents_cond: embeddings of their captions.
        pairs: noise and the teacher's latents, or None.
        batch_device: device of batches; None: the device of the embeddings.
    """

    prompts: tuple[str, ...]
    cond: Conditioning
    uncond: Conditioning
    shape: tuple[int, ...]
    latents: Tensor | None = None
    latents_cond: Conditioning | None = None
    pairs: TeacherPairs | None = None
    batch_device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Device of batches."""
        return self.batch_device or self.cond.device

    def to(self, device: torch.device | str) -> TrainingData:
        """Return the same data with batches on a device.

        The data themselves do not move: a T5 embedding takes a MiB or more, too much for thousands on a GPU.
        """
        return replace(self, uncond=self.uncond.to(device), batch_device=torch.device(device))

    def batch(self, *, seed: int, step: int, indices: Sequence[int], size: int) -> Batch:
        """Return a (micro-)batch of a step.

        Args:
            seed: seed of the run.
            step: training step.
            indices: indices of the samples within the step; a sample does not depend on the split into batches.
            size: global batch size of the step, over all processes and micro-batches.
        """
        device, positions = self.device, [step * size + i for i in indices]
        rows = rows_of(positions, count=len(self.cond), seed=seed, purpose="prompts")
        batch = Batch(
            cond=self.cond[rows.to(self.cond.device)].to(device),
            uncond=self.uncond.to(device).expand(len(indices)),
            rng=RandomStream(seed, step, tuple(indices), device),
            step=step,
            shape=self.shape,
            prompts=tuple(self.prompts[row] for row in rows.tolist()),
        )
        if self.latents is not None and self.latents_cond is not None:
            rows = rows_of(positions, count=len(self.latents), seed=seed, purpose="images")
            rows = rows.to(self.latents.device)
            batch.latents = self.latents[rows].to(device)
            batch.latents_cond = self.latents_cond[rows].to(device)
        if self.pairs is not None:
            rows = rows_of(positions, count=len(self.pairs), seed=seed, purpose="pairs")
            cond = self.cond[(rows % len(self.cond)).to(self.cond.device)].to(device)
            noise, x0 = (table[rows.to(table.device)].to(device) for table in (self.pairs.noise, self.pairs.x0))
            batch.pairs = Pairs(noise, x0, cond)
        return batch


@lru_cache(maxsize=8)
def _permutation(seed: int, purpose: str, epoch: int, count: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randperm(count, generator=generator)


def rows_of(positions: Sequence[int], *, count: int, seed: int, purpose: str) -> Tensor:
    """Map draw positions to rows: every epoch is a permutation, computed without replaying earlier draws."""
    return torch.stack([_permutation(seed, purpose, at // count, count)[at % count] for at in positions])


def encode_prompts(teacher: Denoiser, prompts: Sequence[str]) -> Conditioning:
    """Encode prompts in batches."""
    with torch.no_grad():
        parts = [
            teacher.encode(prompts[start : start + ENCODE_BATCH]) for start in range(0, len(prompts), ENCODE_BATCH)
        ]
    return Conditioning.cat(parts)


def data_from_prompts(teacher: Denoiser, prompts: Sequence[str]) -> TrainingData:
    """Create prompts-only data from a list of texts."""
    with torch.no_grad():
        uncond = teacher.uncond(1)
    return TrainingData(tuple(prompts), encode_prompts(teacher, prompts), uncond, tuple(teacher.latent_shape()))


def prepare_data(
    teacher: Denoiser,
    *,
    model: str,
    prompts: str,
    images: str | None = None,
    num_prompts: int | None = None,
    num_images: int | None = None,
    negative_prompt: str = "",
    cache_dir: str | None = None,
    seed: int = 0,
) -> TrainingData:
    """Load prompts and images, encode them, and cache the result.

    Args:
        teacher: encodes texts and images.
        model: name of the teacher with its prompt arguments; part of the cache key, with its encoders' weights.
        prompts: see `load_prompts`.
        images: see `load_images`; None for prompts only.
        num_prompts: maximum number of prompts.
        num_images: maximum number of images.
        negative_prompt: negative prompt of guidance.
        cache_dir: cache folder; None disables caching.
        seed: seed of the embedded captions and scenes.

    Raises:
        UserError: the sources cannot be read, or images are given for a teacher without autoencoder.
    """
    texts = load_prompts(prompts, limit=num_prompts, seed=seed)
    encoders = "" if cache_dir is None else fingerprint(named_weights(teacher.encoders()).items())
    key = {"model": model, "encoders": encoders, "version": 2, "seed": seed}
    cond = cached(cache_dir, {**key, "prompts": _digest(texts)}, lambda: encode_prompts(teacher, texts).tensors)
    with torch.no_grad():
        uncond = teacher.encode([negative_prompt]) if negative_prompt else teacher.uncond(1)
    data = TrainingData(tuple(texts), Conditioning(cond), uncond, tuple(teacher.latent_shape()))
    if images is None:
        return data
    if not isinstance(teacher, PipelineDenoiser):
        raise UserError("data.images needs a diffusers pipeline as the teacher; remove it to train on prompts")
    encoder = teacher
    image_key = {**key, "images": images, "num_images": num_images}
    stored = cached(cache_dir, image_key, lambda: encode_images(encoder, images, num_images, seed))
    return replace(data, latents=stored.pop("latents"), latents_cond=Conditioning(stored))


def encode_images(teacher: PipelineDenoiser, images: str, limit: int | None, seed: int) -> dict[str, Tensor]:
    """Encode images to latents and their captions to embeddings."""
    latents, captions = [], []
    for pixels, texts in load_images(images, size=teacher.image_size(), limit=limit, seed=seed):
        with torch.no_grad():
            latents.append(teacher.encode_images(pixels))
        captions += texts
    return {"latents": torch.cat(latents), **encode_prompts(teacher, captions).tensors}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
