"""How a student is meant to be run: the grid of times and what happens between two network calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SamplerKind = Literal["sde", "ode"]


def steps_in_words(number: int) -> str:
    """A number of steps as it is written.

    >>> steps_in_words(1), steps_in_words(4)
    ('1 step', '4 steps')
    """
    return f"{number} step" if number == 1 else f"{number} steps"


@dataclass(frozen=True)
class StudentSampler:
    """A few-step sampler of a student.

    Args:
        times: where the network is called, descending in (0, 1]; the first one is the start.
        kind: "sde" estimates x0 and adds fresh noise for the next time; "ode" keeps the estimated noise.

    >>> StudentSampler((1.0, 0.5), "sde").num_steps
    2
    """

    times: tuple[float, ...]
    kind: SamplerKind

    def __post_init__(self) -> None:
        pairs = zip(self.times, self.times[1:], strict=False)
        if not self.times or not (self.times[-1] > 0 and self.times[0] <= 1) or any(a <= b for a, b in pairs):
            raise ValueError(f"the times of a sampler descend within (0, 1], got {self.times}")
        if self.kind not in ("sde", "ode"):
            raise ValueError(f"the kind of a sampler is 'sde' or 'ode', got {self.kind!r}")

    @property
    def num_steps(self) -> int:
        """Student network calls in one sample."""
        return len(self.times)
