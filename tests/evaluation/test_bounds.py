"""A bound holds where its comparison does, up to equality."""

from __future__ import annotations

import math

import pytest

from stepdistill.errors import UserError
from stepdistill.evaluation.gates import Bound, BoundBrokenError, check_bounds


@pytest.mark.parametrize(
    ("comparison", "below", "equal", "above"),
    [
        ("<=", True, True, False),
        ("<", True, False, False),
        (">=", False, True, True),
        (">", False, False, True),
        ("==", False, True, False),
        ("!=", True, False, True),
    ],
)
def test_each_comparison_below_at_and_above_the_bound(comparison: str, below: bool, equal: bool, above: bool) -> None:
    bound = Bound.parse(f"x{comparison}2")
    assert [bound.holds(value) for value in (1.0, 2.0, 3.0)] == [below, equal, above]
    assert not bound.holds(math.nan)


def test_all_broken_bounds_are_named_and_a_missing_one_is_a_mistake() -> None:
    bounds = [Bound.parse("a<1"), Bound.parse("b>1"), Bound.parse("c==0")]
    check_bounds(bounds, {"a": 0.0, "b": 2.0, "c": 0.0})
    with pytest.raises(BoundBrokenError, match=r"^a is 1, the bound is a<1; b is 1, the bound is b>1$"):
        check_bounds(bounds, {"a": 1.0, "b": 1.0, "c": 0.0})
    with pytest.raises(UserError, match="b, c was not measured; measured: a"):
        check_bounds(bounds, {"a": 0.0, "b": None})
