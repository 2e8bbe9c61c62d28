"""Train a method on a toy for a few hundred fast iterations, to see whether it learns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch, Pairs
from stepdistill.distillers.turn import Losses, Turn
from stepdistill.typing import Latents, Times


@dataclass(frozen=True)
class BulkStream(RandomStream):
    """A random stream with one generator per draw instead of per sample: fast, but dependent on batch splitting."""

    def normal(self, purpose: str, shape: Sequence[int]) -> Latents:
        return torch.randn(len(self), *shape, generator=self._generator(purpose))

    def uniform(self, purpose: str) -> Times:
        return torch.rand(len(self), generator=self._generator(purpose))

    def _generator(self, purpose: str) -> torch.Generator:
        key = f"{self.seed},{self.step},{self._path(purpose)}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def turn_losses(distiller: Distiller, batch: Batch) -> Iterator[tuple[Turn, Losses]]:
    """Yield the players of a batch's iteration and their losses, in order; the critics get the student's samples."""
    samples = None
    for turn in distiller.turns(batch.step):
        is_student = turn == "student"
        losses = distiller.student_step(batch) if is_student else distiller.critic_step(batch, samples)
        samples = losses.samples
        yield turn, losses


def train_toy(
    distiller: Distiller,
    cond: Conditioning,
    latents: Latents | None = None,
    *,
    pairs: Pairs | None = None,
    num_steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    critic_learning_rate: float | None = None,
    seed: int = 0,
) -> Distiller:
    """Train a method with Adam and linear decay.

    Args:
        cond: one row, or one per sample of `latents`.
        latents: real data, sampled at random.
        pairs: teacher pairs, for methods that need them.
        critic_learning_rate: default: the student's.
    """
    rates = {"student": learning_rate, "critic": critic_learning_rate or learning_rate}
    players = distiller.players()
    optimizers = {turn: torch.optim.Adam(p, lr=rates[turn]) for turn, p in players.items()}
    uncond = distiller.teacher.uncond(1).expand(batch_size)
    for step in range(num_steps):
        rng = BulkStream(seed, step, tuple(range(batch_size)))
        rows = (rng.uniform("rows") * (len(cond) if latents is None else len(latents))).long()
        batch_cond = cond.expand(batch_size) if len(cond) == 1 else cond[rows]
        real = None if latents is None else latents[rows]
        batch = Batch(batch_cond, uncond, rng, step, distiller.teacher.latent_shape(), real, batch_cond)
        if pairs is not None:
            rows = (rng.uniform("pairs") * len(pairs.noise)).long()
            batch.pairs = Pairs(pairs.noise[rows], pairs.x0[rows], pairs.cond[rows])
        for turn, losses in turn_losses(distiller, batch):
            losses.backward()
            for group in optimizers[turn].param_groups:
                group["lr"] = rates[turn] * (1 - step / num_steps)
            optimizers[turn].step()
            optimizers[turn].zero_grad()
            if turn == "student":
                distiller.after_student_update(step)
    return distiller
