"""`--assert "fid<=20"`: bounds on numbers, for regression tests."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepdistill.errors import BoundBrokenError, UserError

COMPARISONS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_SYNTAX = re.compile(r"\s*(?P<name>[\w.:/-]+?)\s*(?P<comparison><=|>=|==|!=|<|>)\s*(?P<bound>[^\s<>=!]+)\s*")


@dataclass(frozen=True)
class Bound:
    """`NAME COMPARISON NUMBER`."""

    name: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Parse a bound.

        Raises:
            UserError: it is not NAME COMPARISON NUMBER.

        >>> Bound.parse("fid <= 19.5")
        Bound(name='fid', comparison='<=', bound=19.5)
        """
        match = _SYNTAX.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            return cls(match["name"], match["comparison"], float(match["bound"]))
        except ValueError:
            raise UserError(
                f"--assert '{text}' is not NAME COMPARISON NUMBER with one of {' '.join(COMPARISONS)}, such as 'fid<=20'"
            ) from None

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a value satisfies the bound; NaN never does."""
        return value == value and COMPARISONS[self.comparison](value, self.bound)


def check_bounds(bounds: Sequence[Bound], values: Mapping[str, float | None]) -> None:
    """Check every bound.

    Raises:
        UserError: a bound names a number that was not measured.
        BoundBrokenError: some are broken; the message names each value and its bound.
    """
    missing = [bound.name for bound in bounds if values.get(bound.name) is None]
    if missing:
        measured = ", ".join(name for name, value in values.items() if value is not None)
        raise UserError(f"--assert: {', '.join(missing)} was not measured; measured: {measured or 'nothing'}")
    broken = [(bound, value) for bound in bounds if not bound.holds(value := values[bound.name] or 0.0)]
    if broken:
        lines = [f"{bound.name} is {value:.6g}, the bound is {bound}" for bound, value in broken]
        raise BoundBrokenError("; ".join(lines))
