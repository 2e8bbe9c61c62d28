"""Cost of training: network passes, time and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stepdistill.denoisers.base import Denoiser


class CostMeter:
    """Count forward passes of single samples through a run's networks (two for a guided sample), seconds and peak memory.

    Only work within `counted` counts. Backward passes do not count, and a call that stops at a tapped layer counts in full. The peak
    is the highest over all resumes.

    Args:
        networks: teacher and roles. Other modules (heads) are ignored, and a network shared by roles is counted once.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.num_passes, self.seconds, self.peak_memory_mib = 0, 0.0, 0.0
        self._is_counting = False
        denoisers = [each for each in networks if isinstance(each, Denoiser)]
        for network in {id(each): each for each in map(network_of, denoisers)}.values():
            network.register_forward_pre_hook(self._count, with_kwargs=True)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count passes and time within the block."""
        started, self._is_counting = time.perf_counter(), True
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.peak_memory_mib = max(self.peak_memory_mib, peak_memory_mib())
            self._is_counting = False

    def state(self) -> dict[str, float]:
        """Return the counters, for a checkpoint."""
        return {"num_passes": self.num_passes, "seconds": self.seconds, "peak_memory_mib": self.peak_memory_mib}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Load the result of `state`."""
        self.num_passes, self.seconds = int(state["num_passes"]), float(state["seconds"])
        self.peak_memory_mib = float(state.get("peak_memory_mib", 0.0))

    def record(self) -> dict[str, float]:
        """Return the content of `cost.json`."""
        return {
            "network_passes": self.num_passes,
            "train_seconds": round(self.seconds, 1),
            "peak_memory_mib": round(self.peak_memory_mib),
        }

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_counting:
            first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            self.num_passes += len(first)


def network_of(denoiser: Denoiser) -> nn.Module:
    """Return the module called for a pass: a denoiser's network, or a closed-form denoiser itself."""
    network = denoiser._modules.get("network")
    return denoiser if network is None else network


def peak_memory_mib() -> float:
    """Return this process's peak memory: of the GPU if one is in use, else the resident set."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
