"""Intermediate activations of a network by forward hooks: of a call of its own that ends early, or captured in another's."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _LastTap(Exception):  # noqa: N818 - a signal, not an error
    """Raised by the hook that completes the collection, to leave the rest of the network unrun."""


def tap(
    network: nn.Module, layers: Sequence[str], run: Callable[[], object], select: Callable[[Any], Tensor]
) -> list[Tensor]:
    """Outputs of the named submodules during `run()`, in the order of `layers`.

    The network is left by an exception as soon as all of them have fired, so nothing behind the last tap is
    computed. Gradients flow: the collected tensors keep their graph.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    >>> [tuple(f.shape) for f in tap(network, ["1", "0"], lambda: network(torch.zeros(7, 2)), lambda out: out)]
    [(7, 4), (7, 3)]
    """
    with capture(network, layers, select, stop=True) as features:
        try:
            run()
        except _LastTap as signal:
            # A block under gradient checkpointing is left from inside its context; clearing the frames closes it now.
            traceback.clear_frames(signal.__traceback__)
    return features


@contextmanager
def capture(
    network: nn.Module, layers: Sequence[str], select: Callable[[Any], Tensor], *, stop: bool = False
) -> Iterator[list[Tensor]]:
    """Capture the outputs of the named submodules in the one call of the network that the block makes; the list is filled when it ends.

    With `stop` the call ends in an exception as soon as all have fired.

    Raises:
        ValueError: a named submodule was not run.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> with capture(network, ["0"], lambda out: out) as features:
    ...     out = network(torch.zeros(7, 2))
    >>> tuple(out.shape), [tuple(f.shape) for f in features]
    ((7, 4), [(7, 3)])
    """
    taken: dict[str, Tensor] = {}
    count = len(set(layers)) if stop else None
    handles = [
        network.get_submodule(name).register_forward_hook(_collector(taken, name, count, select))
        for name in layers
    ]
    features: list[Tensor] = []
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in taken]:
        raise ValueError(f"these feature layers were not run in a forward pass: {missing}")
    features.extend(taken[name] for name in layers)


def _collector(taken: dict[str, Tensor], name: str, count: int | None, select: Callable[[Any], Tensor]):
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        taken[name] = select(output)
        if len(taken) == count:
            raise _LastTap

    return hook
