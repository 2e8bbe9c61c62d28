"""Seeds, cache keys and timing of generated pictures."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler

from stepdistill.evaluation import generation as module
from stepdistill.evaluation.generation import (
    Generation,
    counted_evaluations,
    generate,
    latency,
    prompt_seed,
)
from stepdistill.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    return tiny_pipeline("sd")


def test_each_picture_is_that_of_its_own_seed(pipe: DiffusionPipeline) -> None:
    """Also the noise of the steps: an eta of 1 draws it anew in each."""
    noisy = Generation(pipe, steps=2, guidance_scale=1.0, arguments={"eta": 1.0})
    noisy = replace(noisy, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    both = generate(noisy, ["a", "a"], [3, 4])
    for seed, image in zip((3, 4), both, strict=True):
        torch.testing.assert_close(generate(noisy, ["a"], [seed])[0], image, rtol=0, atol=1e-5)
    assert not torch.allclose(both[0], both[1])


def test_a_callable_finds_the_global_generator_seeded() -> None:
    """A sampler may draw from it; the state outside does not change."""

    def sampler(captions: Any, seeds: Any) -> torch.Tensor:
        return torch.rand(len(captions), 3, 2, 2)

    state = torch.get_rng_state()
    first, second, other = (generate(Generation(sampler), ["a"], [seed]) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_pipelines_own_scheduler_is_put_back_as_it_was(pipe: DiffusionPipeline) -> None:
    own, other = pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)
    generate(Generation(pipe, steps=1, guidance_scale=1.0, scheduler=other), ["a"], [0])
    generate(Generation(pipe, steps=1, guidance_scale=1.0), ["a"], [0])
    assert pipe.scheduler is own
    assert "step" not in vars(own)
    assert "step" not in vars(other)


def test_arguments_of_the_call_win() -> None:
    each = Generation(lambda *_: torch.zeros(1), steps=4, guidance_scale=2.0)
    assert each.call_arguments() == {"num_inference_steps": 4, "guidance_scale": 2.0}
    changed = replace(each, guidance_scale=None, arguments={"num_inference_steps": 3, "sigmas": [1.0]})
    assert changed.call_arguments() == {"num_inference_steps": 3, "sigmas": [1.0]}


def test_measurements_have_the_address_of_all_they_follow_from(pipe: DiffusionPipeline) -> None:
    each = Generation(pipe, steps=2, guidance_scale=2.0)
    reference = each.cache_key(torch.float32, "p")
    assert each.cache_key(torch.float32, "p") == replace(each, model="other").cache_key(torch.float32, "p")
    other = copy.copy(pipe)
    unet = copy.deepcopy(pipe.components["unet"])
    with torch.no_grad():
        next(unet.parameters()).add_(0.1)
    other.register_modules(unet=unet)
    lcm = LCMScheduler.from_config(pipe.scheduler.config)
    spaced = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    keys = [
        each.cache_key(torch.bfloat16, "p"),
        each.cache_key(torch.float32, "q"),
        replace(each, steps=3).cache_key(torch.float32, "p"),
        replace(each, guidance_scale=3.0).cache_key(torch.float32, "p"),
        replace(each, arguments={"eta": 1.0}).cache_key(torch.float32, "p"),
        replace(each, scheduler=lcm).cache_key(torch.float32, "p"),
        replace(each, scheduler=spaced).cache_key(torch.float32, "p"),
        replace(each, source=other).cache_key(torch.float32, "p"),
    ]
    assert len({reference, *keys}) == 1 + len(keys)


def test_a_seed_is_of_protocol_caption_and_repeat() -> None:
    seeds = {prompt_seed(p, i, s) for p in range(3) for i in range(3) for s in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rows_are_counted_within_the_block_only(pipe: DiffusionPipeline) -> None:
    each = Generation(pipe, steps=3, guidance_scale=2.0)
    with counted_evaluations(pipe) as rows:
        generate(each, ["a", "b"], [0, 1])
    assert rows == [4, 4, 4]
    generate(each, ["a"], [0])
    assert rows == [4, 4, 4]


def test_latency_is_the_median_without_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 200.0, 201.0, 300.0, 303.0, 400.0, 402.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    each = Generation(lambda captions, seeds: torch.zeros(len(captions), 3, 2, 2))
    assert latency(each, "a", repeats=3) == 2.0
