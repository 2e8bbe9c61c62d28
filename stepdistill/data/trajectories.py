"""Teacher pairs: noise and the end of the teacher's ODE from it, precomputed for regression methods.

(ReFlow, https://arxiv.org/abs/2209.03003, section 2.2; DMD's regression loss, https://arxiv.org/abs/2311.18828, eq. 9.)
Pairs are cached in shards of `shard_size`, keyed by everything they depend on: the teacher's weights, the embeddings,
the noise and the solver. An interrupted computation resumes at the first missing shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stepdistill.data.cache import cached, fingerprint
from stepdistill.data.config import PairsConfig
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.solver import teacher_trajectory
from stepdistill.typing import Latents

_VERSION = 1  # bump when equal keys would give different pairs


@dataclass(frozen=True)
class TeacherPairs:
    """Pairs of noise and teacher latents; pair i belongs to prompt i modulo the number of prompts.

    Attributes:
        noise: standard normal, (N, *shape).
        x0: end of the teacher's ODE, (N, *shape).
    """

    noise: Latents
    x0: Latents

    def __len__(self) -> int:
        return len(self.noise)


Progress = Callable[[Sequence[range]], Iterable[range]]
"""Wraps the iteration over shards, for example in a progress bar."""


def teacher_pairs(
    teacher: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    config: PairsConfig,
    *,
    seed: int = 0,
    cache_dir: str | None = None,
    progress: Progress = iter,
) -> TeacherPairs:
    """Return teacher pairs, from the cache where possible.

    Args:
        teacher: solves its ODE on the grid of the stock sampler.
        cond: prompt embeddings, on any device.
        uncond: embedding of the negative prompt, one row, on the teacher's device.
        config: number of pairs and solver.
        seed: seed of the noise.
        cache_dir: cache folder; None disables caching.
        progress: see `Progress`.
    """
    shards = [
        range(first, min(first + config.shard_size, config.num)) for first in range(0, config.num, config.shard_size)
    ]
    # The grid of the stock sampler, so that x0 is the image that the teacher's own pipeline would draw.
    times = teacher.few_step_times(config.steps, "ode")
    # A changed weight, prompt, solver or seed changes the key; the batch size does not, and neither does an adapter.
    teacher_key = {
        "version": _VERSION,
        "teacher": fingerprint(base_weights(teacher)) if cache_dir is not None else "",
        "schedule": repr(teacher.schedule),
        "prediction": teacher.prediction,
        "uncond": fingerprint(uncond.tensors.items()),
        "solver": [config.solver, config.guidance_scale, list(times)],
        "seed": seed,
    }
    found = []
    for shard in progress(shards):
        # The prompts repeat cyclically, so that raising `num` keeps all full shards valid.
        rows = cond[[i % len(cond) for i in shard]]
        key = {**teacher_key, "pairs": [shard.start, shard.stop], "cond": fingerprint(rows.tensors.items())}
        compute = partial(solve, teacher, rows, uncond, config, shard, times, seed)
        found.append(cached(cache_dir, key, compute))
    noise, x0 = (torch.cat([part[name] for part in found]) for name in ("noise", "x0"))
    return TeacherPairs(noise, x0)


def solve(
    teacher: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    config: PairsConfig,
    shard: range,
    times: Sequence[float],
    seed: int,
) -> dict[str, Tensor]:
    """Solve the teacher's ODE x1 ~ N(0, I) -> x0 for the pairs of one shard."""
    noises, ends, device = [], [], uncond.device
    for rows in torch.arange(len(shard), device=cond.device).split(config.batch_size):
        # Noise is keyed by the global pair index, so it does not depend on shards or batches.
        indices = tuple(shard[row] for row in rows.tolist())
        noise = RandomStream(seed, 0, indices, device, "pairs").normal("noise", teacher.latent_shape())
        guidance = Guidance(config.guidance_scale, uncond)
        path = teacher_trajectory(teacher, noise, cond[rows].to(device), times, guidance, solver=config.solver)
        ends.append(path.x0)  # float32: the solver promotes to the dtype of the noise
        noises.append(noise)
    return {"noise": torch.cat(noises).cpu(), "x0": torch.cat(ends).cpu()}


def base_weights(teacher: Denoiser) -> Iterable[tuple[str, Tensor]]:
    """Return the teacher's parameters under their names without adapters."""
    return [
        (name.replace(".base_layer", ""), parameter)
        for name, parameter in teacher.named_parameters()
        if ".lora_" not in name
    ]
