"""Experts by name, and which of them runs at which step."""

from __future__ import annotations

from typing import Any

import pytest

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.errors import UserError
from stepdistill.export.experts import expert_names, step_adapters

SAMPLER = StudentSampler((1.0, 0.75, 0.5, 0.25), "sde")


def experts(*, adapters: bool = True) -> dict[str, Denoiser]:
    """The second one takes over at 0.5."""
    first, second = Denoiser(), Denoiser()
    first.successor = (0.5, second)
    for number, each in enumerate((first, second)):
        each.adapter = f"student_{number}" if adapters else None
    return {"a": first, "b": second}


def test_experts_are_counted_from_one_in_the_order_they_run() -> None:
    class Method:
        def students(self) -> dict[str, Denoiser]:
            return experts()

    method: Any = Method()
    assert list(expert_names(method)) == ["phase_1", "phase_2"]


def test_each_step_has_the_expert_of_its_time() -> None:
    assert step_adapters(experts(), SAMPLER) == ["a", "a", "b", "b"]


def test_one_network_needs_no_switching() -> None:
    assert step_adapters({"phase_1": Denoiser()}, SAMPLER) == []


def test_full_copies_cannot_be_switched() -> None:
    with pytest.raises(UserError, match=r"train with roles\.mode=shared"):
        step_adapters(experts(adapters=False), SAMPLER)
    mixed = experts()
    mixed["b"].adapter = None
    with pytest.raises(UserError, match=r"train with roles\.mode=shared"):
        step_adapters(mixed, SAMPLER)
