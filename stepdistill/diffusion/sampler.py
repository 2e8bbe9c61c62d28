"""The few-step sampler of a student: its time grid and the kind of step between two network calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SamplerKind = Literal["sde", "ode"]


def steps_in_words(number: int) -> str:
    """Format a step count.

    >>> steps_in_words(1), steps_in_words(4)
    ('1 step', '4 steps')
    """
    return f"{number} step" if number == 1 else f"{number} steps"


@dataclass(frozen=True)
class StudentSampler:
    """Few-step sampler of a student.

    Args:
        times: times of the network calls, descending in (0, 1].
        kind: "sde" adds fresh noise to the predicted x0 at every step; "ode" reuses the predicted noise.

    >>> StudentSampler((1.0, 0.5), "sde").num_steps
    2
    """

    times: tuple[float, ...]
    kind: SamplerKind

    def __post_init__(self) -> None:
        pairs = zip(self.times, self.times[1:], strict=False)
        if not self.times or not (self.times[-1] > 0 and self.times[0] <= 1) or any(a <= b for a, b in pairs):
            raise ValueError(f"the times of a sampler must descend within (0, 1], got {self.times}")
        if self.kind not in ("sde", "ode"):
            raise ValueError(f"the kind of a sampler must be 'sde' or 'ode', got {self.kind!r}")

    @property
    def num_steps(self) -> int:
        """Number of student network calls per sample."""
        return len(self.times)
