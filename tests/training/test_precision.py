"""The plain attention is taken exactly where it is the faster one: short, differentiated, bf16, on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stepdistill.training import precision
from stepdistill.training.precision import SHORT, PlainAttentionWhereShort, attention_kernels


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The backends that were asked for, call by call."""
    asked: list[object] = []
    stock = precision.sdpa_kernel
    monkeypatch.setattr(precision, "sdpa_kernel", lambda backend: asked.append(backend) or stock(backend))
    return asked


def attend(tokens: int, *, needs_grad: bool = True, by_name: bool = False) -> torch.Tensor:
    query = torch.randn(1, 2, tokens, 4, requires_grad=needs_grad)
    key, value = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    with PlainAttentionWhereShort():
        if by_name:
            return scaled_dot_product_attention(query, value=value, key=key)
        return scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("by_name", [False, True])
def test_short_sequences_that_are_differentiated_are_plain(plain: list[object], by_name: bool) -> None:
    attend(SHORT, by_name=by_name)
    assert plain == [precision.SDPBackend.MATH]


def test_long_ones_and_those_without_a_gradient_are_as_they_were(plain: list[object]) -> None:
    attend(SHORT + 1)
    attend(4, needs_grad=False)
    with torch.no_grad():
        attend(4)
    assert plain == []


def test_the_keys_gradient_counts_too(plain: list[object]) -> None:
    with PlainAttentionWhereShort():
        scaled_dot_product_attention(
            torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4)
        )
    assert len(plain) == 1


@pytest.mark.parametrize(
    ("device", "mixed_precision", "gradient_checkpointing", "expected"),
    [
        ("cpu", "bf16", False, True),
        ("cpu", "no", False, False),
        ("cpu", "bf16", True, False),
        ("cuda", "bf16", False, False),
    ],
)
def test_only_a_cpu_in_bf16_without_recomputation_needs_it(
    device: str, mixed_precision: str, gradient_checkpointing: bool, expected: bool
) -> None:
    found = attention_kernels(torch.device(device), mixed_precision, gradient_checkpointing=gradient_checkpointing)
    assert isinstance(found, PlainAttentionWhereShort) == expected
