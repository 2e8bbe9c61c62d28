"""A process group that shares the work of one output folder."""

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
"""Timeout of a barrier: processes may finish their shares hours apart."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those that `torchrun` or `accelerate launch` started; a single process by default.

    Processes exchange nothing but files, so all of them must see the output folder.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """Read the launcher's environment and initialise the gloo backend if there are several processes."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that only one process may write."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def share(self, work: Sequence[Work]) -> Sequence[Work]:
        """Every `size`-th item of the work, so that nothing is padded or done twice.

        >>> list(ProcessGroup(1, 2).share(range(5)))
        [1, 3]
        """
        return work[self.rank :: self.size]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()
