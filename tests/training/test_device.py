"""Where a process trains and at which precision."""

from __future__ import annotations

import pytest
import torch

from stepdistill.training.device import chosen_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, "no"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "no"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    """An emulated bf16 is tens of times slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert chosen_precision("auto", CPU) == precision
    assert chosen_precision("bf16", CPU) == "bf16"
