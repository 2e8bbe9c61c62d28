"""The one convention of guidance: uncond + scale (cond - uncond)."""

from __future__ import annotations

import pytest
import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, RandomScale, guide, rescaled
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.testing.prompts import ComponentPrompts
from stepdistill.testing.toys import MLPDenoiser

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


@pytest.mark.parametrize(("part", "size"), [(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)])
def test_rescaling_takes_a_part_of_the_size_back_sample_by_sample(part, size):
    cond = torch.randn(4, 3, 2, 2)
    growth = torch.tensor([3.0, 3.0, 3.0, 3.0])[:, None, None, None]
    brought_back = rescaled(growth * cond, cond, part)
    torch.testing.assert_close(brought_back, size * cond)


def test_a_rescaled_call_has_the_plain_size_the_guided_direction_and_estimates_that_agree():
    torch.manual_seed(0)
    toy = MLPDenoiser((8,), FlowSchedule(), prompts=ComponentPrompts(torch.full((2,), 0.5)))
    x_t, t = torch.randn(16, 8), torch.full((16,), 0.8)
    cond, uncond = toy.encode(["0"]).expand(16), toy.uncond(16)
    plain = toy(x_t, t, cond)
    guided = toy(x_t, t, cond, guidance=Guidance(5.0, uncond))
    brought_back = toy(x_t, t, cond, guidance=Guidance(5.0, uncond, rescale=1.0))
    torch.testing.assert_close(brought_back.x0.std(1), plain.x0.std(1))
    cosine = torch.cosine_similarity(brought_back.x0, guided.x0)
    torch.testing.assert_close(cosine, torch.ones(16))
    torch.testing.assert_close(toy.schedule.add_noise(brought_back.x0, brought_back.eps, t), x_t)
    off = toy(x_t, t, cond, guidance=Guidance(5.0, uncond, rescale=0.0))
    assert torch.equal(off.x0, guided.x0)
