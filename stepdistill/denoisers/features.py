"""Intermediate activations by forward hooks: from a pass that stops early, or captured during another call."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _LastTap(Exception):  # noqa: N818 - a signal, not an error
    """Raised by the last hook to stop the forward pass."""


def tap(
    network: nn.Module, layers: Sequence[str], run: Callable[[], object], select: Callable[[Any], Tensor]
) -> list[Tensor]:
    """Return the outputs of the named submodules during `run()`, in the order of `layers`.

    The forward pass stops once all of them are collected. The tensors keep their graph.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    >>> [tuple(f.shape) for f in tap(network, ["1", "0"], lambda: network(torch.zeros(7, 2)), lambda out: out)]
    [(7, 4), (7, 3)]
    """
    with capture(network, layers, select, stop=True) as features:
        try:
            run()
        except _LastTap as signal:
            # Clearing the frames closes the context of a gradient-checkpointed block that the exception left.
            traceback.clear_frames(signal.__traceback__)
    return features


@contextmanager
def capture(
    network: nn.Module, layers: Sequence[str], select: Callable[[Any], Tensor], *, stop: bool = False
) -> Iterator[list[Tensor]]:
    """Collect the outputs of the named submodules during one network call; the list is filled on exit.

    Args:
        stop: end the forward pass with an exception once all outputs are collected.

    Raises:
        ValueError: a named submodule did not run.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> with capture(network, ["0"], lambda out: out) as features:
    ...     out = network(torch.zeros(7, 2))
    >>> tuple(out.shape), [tuple(f.shape) for f in features]
    ((7, 4), [(7, 3)])
    """
    outputs: dict[str, Tensor] = {}
    count = len(set(layers)) if stop else None
    handles = [
        network.get_submodule(name).register_forward_hook(_collector(outputs, name, count, select)) for name in layers
    ]
    features: list[Tensor] = []
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in outputs]:
        raise ValueError(f"these feature layers did not run in the forward pass: {missing}")
    features.extend(outputs[name] for name in layers)


def _collector(outputs: dict[str, Tensor], name: str, count: int | None, select: Callable[[Any], Tensor]):
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        outputs[name] = select(output)
        if len(outputs) == count:
            raise _LastTap

    return hook
