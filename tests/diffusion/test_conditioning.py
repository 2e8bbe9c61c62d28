"""Named tensors that travel together."""

from __future__ import annotations

import pytest
import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.sampler import StudentSampler


@pytest.fixture
def cond():
    return Conditioning({"tokens": torch.arange(12.0).reshape(3, 4), "label": torch.tensor([7, 8, 9])})


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0]), slice(1, 3), 1])
def test_rows_of_every_tensor(cond, rows):
    taken = cond[rows]
    wanted = torch.arange(3)[[rows] if isinstance(rows, int) else rows]
    assert taken["label"].tolist() == (wanted + 7).tolist()
    assert torch.equal(taken["tokens"], cond["tokens"][wanted])


def test_names_iterate(cond):
    assert list(cond) == ["tokens", "label"]
    assert len(cond) == 3


def test_dtype_leaves_integers_alone(cond):
    half = cond.to(dtype=torch.float16)
    assert (half["tokens"].dtype, half["label"].dtype) == (torch.float16, torch.int64)
    assert cond.to("cpu")["tokens"].dtype == torch.float32


def test_expand_repeats_one_row_without_a_copy(cond):
    wide = cond[:1].expand(5)
    assert len(wide) == 5
    assert wide["tokens"].stride(0) == 0
    assert len(cond.expand(3)) == 3
    with pytest.raises(ValueError, match="single row"):
        cond.expand(4)


def test_cat_keeps_the_order_and_asks_for_the_same_names(cond):
    joined = Conditioning.cat([cond[1:], cond[:1]])
    assert joined["label"].tolist() == [8, 9, 7]
    with pytest.raises(ValueError, match="different names"):
        Conditioning.cat([cond, Conditioning({"tokens": torch.zeros(1, 4)})])


@pytest.mark.parametrize("tensors", [{}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_one_batch_size_is_needed(tensors):
    with pytest.raises(ValueError, match="batch size"):
        Conditioning(tensors)


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.25, 0.5), (1.2, 0.5), (1.0, 0.0)])
def test_a_sampler_descends_within_the_unit_interval(times):
    with pytest.raises(ValueError, match="descend"):
        StudentSampler(times, "sde")


def test_a_sampler_has_a_kind():
    with pytest.raises(ValueError, match="kind"):
        StudentSampler((1.0,), "euler")
