"""An exponential moving average of the student's trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Average parameters after each update of the student; float32, one foreach call.

    Args:
        parameters: the averaged parameters.
        decay: 0 keeps the last value, without a copy of float32 parameters. The n-th update uses at most
            (1 + n) / (10 + n), so that the average of a short run is not dominated by its initial weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.num_updates = 0
        current = [parameter.detach().float() for parameter in self.parameters]
        self.average = [value.clone() for value in current] if decay > 0 else current

    @torch.no_grad()
    def update(self) -> None:
        """Add the present values to the average."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = [parameter.detach().float() for parameter in self.parameters]
        get_ema_multi_avg_fn(decay)(self.average, current, self.num_updates)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Set the parameters to the average within the block."""
        backup = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(backup)

    def write_to_parameters(self) -> None:
        """Set the parameters to the average permanently."""
        self._write(self.average)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of updates, as tensors."""
        tensors = {str(number): value for number, value in enumerate(self.average)}
        return {**tensors, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state_dict`."""
        self.num_updates = int(state["num_updates"])
        for number, value in enumerate(self.average):
            value.copy_(state[str(number)])
