"""Where a process trains and at which precision."""

from __future__ import annotations

import pytest
import torch

from stepdistill.training.device import build_accelerator, chosen_precision
from stepdistill.training.recipe import TrainConfig

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


def test_a_forward_without_gradient_does_not_cost_the_next_one_its_own() -> None:
    """Autocast's cache would give the second forward the cast weight of the first, which has no graph."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    accelerator = build_accelerator(TrainConfig(device="cpu", mixed_precision="bf16"))
    with accelerator.autocast():
        with torch.no_grad():
            layer(x)
        out = layer(x)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert layer.weight.grad is not None
