"""The one convention of guidance: uncond + scale (cond - uncond)."""

from __future__ import annotations

import pytest
import torch

from stepdistill.conditioning import Conditioning
from stepdistill.guidance import Guidance, RandomScale, guide

EMPTY = Conditioning({"tokens": torch.zeros(1, 2)})


def test_the_ends_of_the_scale():
    cond, uncond = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)


def test_one_scale_per_sample():
    cond, uncond = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mixed = guide(cond, uncond, torch.tensor([2.0, 5.0]))
    assert torch.equal(mixed[0], guide(cond[:1], uncond[:1], 2.0)[0])
    assert torch.equal(mixed[1], guide(cond[1:], uncond[1:], 5.0)[0])


def test_only_the_number_one_is_off():
    assert Guidance(1.0, EMPTY).is_off
    assert not Guidance(1.5, EMPTY).is_off
    assert not Guidance(torch.ones(3), EMPTY).is_off


@pytest.mark.parametrize("scale", [4.0, torch.tensor([4.0, 4.0, 4.0])])
def test_the_interval_is_closed_and_one_outside(scale):
    guidance = Guidance(scale, EMPTY, interval=(0.25, 0.75))
    assert guidance.scale_at(torch.tensor([0.25, 0.5, 0.8])).tolist() == [4.0, 4.0, 1.0]
    assert Guidance(scale, EMPTY).scale_at(torch.tensor([0.0, 0.5, 1.0])).tolist() == [4.0] * 3


def test_random_scale_is_a_quantile_map():
    scales = RandomScale(3.0, 7.0)(torch.linspace(0, 1, 5))
    assert scales.tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
