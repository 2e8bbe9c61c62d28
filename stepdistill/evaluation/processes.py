"""Several processes that share one output folder: who draws and scores what, and where all wait for each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Work = TypeVar("Work")
LONGEST_WAIT = timedelta(days=2)
"""The slowest process may be this far behind the fastest."""


@dataclass(frozen=True)
class Crew:
    """This process among those that `torchrun` or `accelerate launch` started; alone without them.

    They exchange nothing but files: the output folder has to be one that all of them see.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Crew:
        """Read the launcher's environment, and meet the others."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def share(self, work: Sequence[Work]) -> Sequence[Work]:
        """Every `size`-th piece of the work: no piece is padded or done twice.

        >>> list(Crew(1, 2).share(range(5)))
        [1, 3]
        """
        return work[self.rank :: self.size]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()
