"""More than one process: the only file that knows.

Every process holds the whole backbone and trains on its share of each step's samples. Gradients of the player at turn are averaged in
one flat bucket after the backward pass. Wrapping the networks in DistributedDataParallel instead would arm its hooks in forwards that
must not synchronise (rollouts, frozen judges) and does not see the second stage of the backward; a LoRA's gradient is small, so
nothing is lost by sending it at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes.

    A gradient that some processes lack is zero there. One that all of them lack stays missing: with a zero in its place, Adam's
    momentum would move parameters that this step did not train, such as those of another phase's expert.
    """
    if not is_distributed():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    is_held = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    flat = torch.cat(
        [gradient.flatten().float() for gradient in gradients] + [is_held.to(gradients[0].device)]
    )
    dist.all_reduce(flat)
    # Read from the device only where something is missing here; what is held here is held somewhere.
    counts = is_held if bool(is_held.all()) else flat[-len(parameters) :].cpu()
    flat /= dist.get_world_size()
    offset = 0
    for parameter, gradient, count in zip(parameters, gradients, counts.tolist(), strict=True):
        if count > 0:
            mean = flat[offset : offset + gradient.numel()].view_as(gradient)
            parameter.grad = gradient.copy_(mean)
        offset += gradient.numel()


def share_of(size: int, rank: int, world: int) -> range:
    """The sample numbers of a step that belong to one process.

    >>> [list(share_of(4, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3]]
    """
    per_process = size // world
    return range(rank * per_process, (rank + 1) * per_process)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process."""
    if not is_distributed():
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def barrier() -> None:
    """Wait for the other processes."""
    if is_distributed():
        dist.barrier()
