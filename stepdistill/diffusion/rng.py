"""Explicit randomness: every draw is a pure function of (seed, step, purpose, sample).

Results therefore do not depend on the order of calls or on how a batch is split over devices, ranks or
micro-batches, and a resumed run is bitwise identical. Each sample has its own counter-based Philox generator,
keyed by a BLAKE2b digest.
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
    """Random numbers of one training step.

    Args:
        seed: seed of the run.
        step: training step.
        indices: global indices of this stream's samples within the step's batch.
        device: device of the returned tensors; numbers are drawn on the CPU.
        scope: namespace of the purposes, see `fork`.

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
        """Return a stream for the same samples with its own namespace of purposes."""
        return replace(self, scope=self._path(purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Latents:
        """Draw standard normal noise of shape (B, *shape), float32."""
        out = np.empty((len(self.indices), *shape), dtype=np.float32)
        for row, generator in enumerate(self._generators(purpose, self.indices)):
            out[row] = generator.standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def uniform(self, purpose: str) -> Times:
        """Draw one number in [0, 1) per sample, float32."""
        draws = [generator.random(dtype=np.float32) for generator in self._generators(purpose, self.indices)]
        return torch.from_numpy(np.array(draws, dtype=np.float32)).to(self.device)

    def shared_uniform(self, purpose: str) -> float:
        """Draw one number in [0, 1) shared by all samples and ranks of the step."""
        return float(next(self._generators(purpose, ["shared"])).random())

    def shared_integer(self, purpose: str, high: int) -> int:
        """Draw one integer in [0, high) shared by all samples and ranks of the step."""
        if high < 1:
            raise ValueError(f"high must be at least 1, got {high}")
        return min(math.floor(self.shared_uniform(purpose) * high), high - 1)

    def _path(self, purpose: str) -> str:
        # The length prefix keeps the path unambiguous, whatever characters a purpose contains.
        return f"{self.scope}{len(purpose)}:{purpose}/"

    def _generators(self, purpose: str, owners: Sequence[int | str]) -> Iterator[np.random.Generator]:
        """Yield the generator of each owner."""
        # Re-keying one generator is several times cheaper than constructing a new one.
        philox = np.random.Philox(key=0)
        generator, state = np.random.Generator(philox), philox.state
        for owner in owners:
            key = f"{self.seed},{self.step},{owner},{self._path(purpose)}"
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()  # Philox4x64 takes a 128-bit key
            state["state"]["key"] = np.frombuffer(digest, dtype="<u8")
            philox.state = state
            yield generator
