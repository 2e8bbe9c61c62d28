"""An exponential moving average of the student's trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Averages parameters after each of the student's updates; float32, one foreach call.

    Args:
        parameters: what to average.
        decay: 0 keeps the last value, without a copy of float32 parameters. Early on the decay is (1 + n) / (10 + n),
            so that a short run is not its own start.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.num_updates = 0
        current = [parameter.detach().float() for parameter in self.parameters]
        self.average = [value.clone() for value in current] if decay > 0 else current

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' present values into the average."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = [parameter.detach().float() for parameter in self.parameters]
        get_ema_multi_avg_fn(decay)(self.average, current, self.num_updates)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the parameters hold the average."""
        backup = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(backup)

    def write_to_parameters(self) -> None:
        """Replace the parameters by their average for good."""
        self._write(self.average)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The average and its counter, as tensors."""
        tensors = {str(number): value for number, value in enumerate(self.average)}
        return {**tensors, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self.num_updates = int(state["num_updates"])
        for number, value in enumerate(self.average):
            value.copy_(state[str(number)])
