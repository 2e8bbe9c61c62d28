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


def test_weights_that_change_within_a_block_are_cast_again() -> None:
    """Autocast's cache would run an adapter or an average that was just swapped in with the weights of before."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    accelerator = build_accelerator(TrainConfig(device="cpu", mixed_precision="bf16"))
    with accelerator.autocast():
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        after = layer(x)
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after - before, torch.full_like(after, 4.0), rtol=0, atol=0.1)
