"""Seeds, identity and network evaluations of generated pictures."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler

from stepdistill.evaluation.generation import Generation, counted_evaluations, generate, prompt_seed
from stepdistill.evaluation.protocols import protocol_named, record_hash
from stepdistill.evaluation.run_record import identity
from stepdistill.evaluation.sources import Source, describe
from stepdistill.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    return tiny_pipeline("sd")


def test_each_picture_is_that_of_its_own_seed(pipe: DiffusionPipeline) -> None:
    """The noise between steps included: an eta of 1 draws it at every step."""
    noisy = Generation(pipe, steps=2, guidance_scale=1.0, arguments={"eta": 1.0})
    noisy = replace(noisy, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    both = generate(noisy, ["a", "a"], [3, 4])
    for seed, image in zip((3, 4), both, strict=True):
        torch.testing.assert_close(generate(noisy, ["a"], [seed])[0], image, rtol=0, atol=1e-5)
    assert not torch.allclose(both[0], both[1])


class DrawsItself(DDIMScheduler):
    """A scheduler that takes no generator, and draws from the global one."""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        return super().step(model_output, timestep, sample + torch.randn_like(sample), return_dict=return_dict)


def test_the_global_generator_is_that_of_the_first_seed_and_left_alone(pipe: DiffusionPipeline) -> None:
    noisy = Generation(pipe, steps=2, guidance_scale=1.0)
    noisy = replace(noisy, scheduler=DrawsItself.from_config(pipe.scheduler.config))
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), generate(noisy, ["a"], [3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(generate(noisy, ["a"], [3]), first)
    assert not torch.equal(generate(noisy, ["a"], [4]), first)


def test_the_pipelines_own_scheduler_is_put_back_as_it_was(pipe: DiffusionPipeline) -> None:
    own, other = pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)
    generate(Generation(pipe, steps=1, guidance_scale=1.0, scheduler=other), ["a"], [0])
    generate(Generation(pipe, steps=1, guidance_scale=1.0), ["a"], [0])
    assert pipe.scheduler is own
    assert "step" not in vars(own)
    assert "step" not in vars(other)


def test_arguments_of_the_call_win(pipe: DiffusionPipeline) -> None:
    each = Generation(pipe, steps=4, guidance_scale=2.0)
    assert each.call_arguments() == {"num_inference_steps": 4, "guidance_scale": 2.0}
    changed = replace(each, guidance_scale=None, arguments={"num_inference_steps": 3, "sigmas": [1.0]})
    assert changed.call_arguments() == {"num_inference_steps": 3, "sigmas": [1.0]}


def test_the_identity_of_pictures_is_all_they_depend_on(pipe: DiffusionPipeline) -> None:
    protocol, call = protocol_named("partiprompts"), {"num_inference_steps": 2, "guidance_scale": 2.0}

    def record(pipe: DiffusionPipeline = pipe, **changes: Any) -> str:
        settings = {key: changes.pop(key) for key in ("scheduler", "autocast") if key in changes}
        words = {key: changes.pop(key) for key in ("name", "kind") if key in changes}
        found = describe(pipe, {**call, **changes}, Source("here", **words), **settings)
        return record_hash(identity(protocol, found.model, "png"))

    reference = record()
    assert record(name="other", kind="teacher") == reference
    other = copy.copy(pipe)
    unet = copy.deepcopy(pipe.components["unet"])
    with torch.no_grad():
        next(unet.parameters()).add_(0.1)
    other.register_modules(unet=unet)
    hashes = [
        record(autocast=torch.bfloat16),
        record(num_inference_steps=3),
        record(guidance_scale=3.0),
        record(eta=1.0),
        record(scheduler=LCMScheduler.from_config(pipe.scheduler.config)),
        record(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")),
        record(other),
        record_hash(identity(replace(protocol, seed=1), describe(pipe, call, Source("here")).model, "png")),
    ]
    assert len({reference, *hashes}) == 1 + len(hashes)


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
