"""Explicit randomness: every number is a function of (seed, step, purpose, sample), and of nothing else.

So results do not depend on how a batch is split over devices, ranks or micro-batches, nor on the order of
calls, and a resumed run continues bitwise. Each sample has its own counter-based generator, keyed by a
BLAKE2b digest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from stepdistill.typing import Latents, Times


@dataclass(frozen=True)
class RandomStream:
    """The randomness of one training step, for the samples of these global numbers within the step's batch.

    >>> whole, part = RandomStream(0, 7, (0, 1, 2, 3)), RandomStream(0, 7, (2, 3))
    >>> torch.equal(whole.normal("noise", (4,))[2:], part.normal("noise", (4,)))
    True
    """

    seed: int
    step: int
    indices: tuple[int, ...]
    device: torch.device | str = "cpu"
    scope: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    def fork(self, purpose: str) -> RandomStream:
        """The same samples with a namespace of purposes of their own."""
        return replace(self, scope=self._path(purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Latents:
        """Standard normal numbers of shape (B, *shape), float32."""
        out = np.empty((len(self.indices), *shape), dtype=np.float32)
        for row, generator in enumerate(self._generators(purpose, self.indices)):
            out[row] = generator.standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def uniform(self, purpose: str) -> Times:
        """One number in [0, 1) per sample, float32."""
        draws = [generator.random(dtype=np.float32) for generator in self._generators(purpose, self.indices)]
        return torch.from_numpy(np.array(draws, dtype=np.float32)).to(self.device)

    def shared_uniform(self, purpose: str) -> float:
        """One number in [0, 1) for the whole step: the same on every rank and for every sample."""
        return float(next(self._generators(purpose, ["shared"])).random())

    def shared_integer(self, purpose: str, high: int) -> int:
        """One integer in [0, high) for the whole step: the same on every rank and for every sample."""
        if high < 1:
            raise ValueError(f"high must be at least 1, got {high}")
        return min(math.floor(self.shared_uniform(purpose) * high), high - 1)

    def _path(self, purpose: str) -> str:
        # The length of each part makes the path unambiguous whatever characters a purpose holds.
        return f"{self.scope}{len(purpose)}:{purpose}/"

    def _generators(self, purpose: str, owners: Sequence[int | str]) -> Iterator[np.random.Generator]:
        """One generator, keyed anew for each owner: making a new one costs several times as much."""
        philox = np.random.Philox(key=0)
        generator, state = np.random.Generator(philox), philox.state
        for owner in owners:
            key = f"{self.seed},{self.step},{owner},{self._path(purpose)}"
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            state["state"]["key"] = np.frombuffer(digest, dtype="<u8")
            philox.state = state
            yield generator
