"""Noises and where the teacher's ODE takes them, computed once: the data of methods that regress on the teacher's own images.

Pairs are kept in files of `shard_size`, each under a name made of all it depends on: the teacher's weights, the embeddings, the
noise and the solver. So a stopped computation goes on where it was, and another teacher or prompt never meets old pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stepdistill.data.cache import cached, fingerprint
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.choices import Solver
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.solver import teacher_trajectory
from stepdistill.typing import Latents

_VERSION = 1


class PairsConfig(BaseModel):
    """Which pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num: int = Field(default=0, ge=0, description="pairs of a noise and the teacher's image of it; 0: none")
    steps: int = Field(
        default=50, ge=1, description="the teacher's network calls per pair (heun: twice that)"
    )
    guidance_scale: float = Field(default=4.0, ge=0.0, description="of the teacher in its ODE; 1.0 is off")
    solver: Solver = Field(default="ddim", description="ddim, euler or heun")
    batch_size: int = Field(default=64, ge=1, description="pairs solved at once")
    shard_size: int = Field(default=256, ge=1, description="pairs per file: as much as a stop can lose")


@dataclass(frozen=True)
class TeacherPairs:
    """Pair number i is of prompt number i, counted round.

    Attributes:
        noise: standard normal, (N, *shape).
        x0: the teacher's latents, (N, *shape).
    """

    noise: Latents
    x0: Latents

    def __len__(self) -> int:
        return len(self.noise)


Watch = Callable[[Sequence[range]], Iterable[range]]
"""Passes the shards on one by one, and may show how far they are."""


def teacher_pairs(
    teacher: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    config: PairsConfig,
    *,
    seed: int = 0,
    cache_dir: str | None = None,
    watch: Watch = iter,
) -> TeacherPairs:
    """The pairs of a configuration, read where they are kept under `cache_dir` and computed where not.

    Args:
        teacher: solves its ODE on the grid of the stock sampler.
        cond: embeddings of the prompts, on any device.
        uncond: one row, what guidance pushes away from, on the teacher's device.
        config: how many, and by which solver.
        seed: of the noises.
        cache_dir: None keeps nothing on disk.
        watch: see `Watch`.
    """
    shards = [
        range(first, min(first + config.shard_size, config.num))
        for first in range(0, config.num, config.shard_size)
    ]
    times = teacher.few_step_times(config.steps, "ode")
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
    for shard in watch(shards):
        told = cond[[i % len(cond) for i in shard]]
        key = {**teacher_key, "pairs": [shard.start, shard.stop], "cond": fingerprint(told.tensors.items())}
        found.append(
            cached(
                cache_dir,
                key,
                lambda shard=shard, told=told: solve(teacher, told, uncond, config, shard, times, seed),
            )
        )
    return TeacherPairs(
        torch.cat([part["noise"] for part in found]), torch.cat([part["x0"] for part in found])
    )


def solve(
    teacher: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    config: PairsConfig,
    shard: range,
    times: Sequence[float],
    seed: int,
) -> dict[str, Tensor]:
    """Noise and the end of the teacher's trajectory for the pairs of one shard."""
    noises, ends, device = [], [], uncond.device
    for rows in torch.arange(len(shard), device=cond.device).split(config.batch_size):
        indices = tuple(shard[row] for row in rows.tolist())
        noise = RandomStream(seed, 0, indices, device, "pairs").normal("noise", teacher.latent_shape())
        guidance, told = Guidance(config.guidance_scale, uncond), cond[rows].to(device)
        ends.append(
            teacher_trajectory(teacher, noise, told, times, guidance, solver=config.solver).x0.float()
        )
        noises.append(noise)
    return {"noise": torch.cat(noises).cpu(), "x0": torch.cat(ends).cpu()}


def base_weights(teacher: Denoiser) -> Iterable[tuple[str, Tensor]]:
    """The teacher's parameters under the names they have without adapters."""
    return [
        (name.replace(".base_layer", ""), parameter)
        for name, parameter in teacher.named_parameters()
        if ".lora_" not in name
    ]
