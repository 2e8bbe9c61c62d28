"""What every family of stock pipelines must do, on the real classes with random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from stepdistill.denoisers import Roles, load_teacher
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, guide
from stepdistill.diffusion.prediction import from_x0_eps
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.schedules.families import VPSchedule
from stepdistill.diffusion.solver import teacher_trajectory
from stepdistill.testing.tiny import tiny_pipeline

PROMPTS = ["a cat", "dog on blue"]


@torch.no_grad()
def test_shapes_and_estimates_agree(frozen, frozen_state):
    x_t, t, cond = frozen_state
    out = frozen(x_t, t, cond)
    assert out.x0.shape == out.eps.shape == x_t.shape
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (frozen.schedule.alpha, frozen.schedule.sigma))
    torch.testing.assert_close(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-5, rtol=1e-5)
    raw = frozen.forward_network(x_t, t, cond)
    again = from_x0_eps(frozen.prediction, out.x0, out.eps, frozen.schedule.alpha(t), frozen.schedule.sigma(t))
    torch.testing.assert_close(again, raw, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_output_depends_on_prompt_and_time(frozen, frozen_state):
    x_t, t, cond = frozen_state
    out = frozen(x_t, t, cond).eps
    assert not torch.allclose(out, frozen(x_t, t, frozen.uncond(3)).eps, atol=1e-4)
    assert not torch.allclose(out, frozen(x_t, t * 0.9, cond).eps, atol=1e-4)


@torch.no_grad()
def test_guidance_is_one_batched_call(frozen, frozen_state):
    x_t, t, cond = frozen_state
    calls = []
    handle = frozen.network.register_forward_hook(lambda *_: calls.append(1))
    guided = frozen(x_t, t, cond, Guidance(3.0, frozen.uncond(1)))
    assert len(calls) == 1
    off = frozen(x_t, t, cond, Guidance(1.0, frozen.uncond(1)))
    handle.remove()
    plain, empty = frozen(x_t, t, cond), frozen(x_t, t, frozen.uncond(3))
    torch.testing.assert_close(guided.x0, guide(plain.x0, empty.x0, 3.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided.eps, guide(plain.eps, empty.eps, 3.0), atol=1e-5, rtol=1e-4)
    assert torch.equal(off.eps, plain.eps)


@torch.no_grad()
def test_four_steps_equal_the_stock_pipeline(teacher):
    noise = torch.randn(2, *teacher.latent_shape(), generator=torch.Generator().manual_seed(0))
    guidance = Guidance(3.0, teacher.uncond(1))
    times = teacher.few_step_times(4, "ode")
    solver = "ddim" if isinstance(teacher.schedule, VPSchedule) else "euler"
    ours = teacher_trajectory(teacher, noise, teacher.encode(PROMPTS), times, guidance, solver=solver).x0
    pipe = teacher.pipe
    arguments = teacher.call_arguments(StudentSampler(times, "ode")) | {"guidance_scale": 3.0}
    if isinstance(teacher.schedule, VPSchedule):
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
        )
    theirs = pipe(PROMPTS, latents=noise.clone(), output_type="latent", **arguments).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_uncond_is_the_pipelines_own():
    teacher = load_teacher(tiny_pipeline("sdxl"))
    empty, named = teacher.uncond(2), teacher.encode(PROMPTS)
    assert empty["tokens"].abs().max() == 0
    assert empty["pooled"].abs().max() == 0
    assert torch.equal(empty["time_ids"], named["time_ids"])
    assert named["time_ids"][0].tolist() == [16, 16, 0, 0, 16, 16]
    assert teacher.encode(PROMPTS, height=32, width=24)["time_ids"][0].tolist() == [32, 24, 0, 0, 32, 24]


@torch.no_grad()
def test_latents_and_images(frozen):
    assert frozen.latent_shape() == (4, 8, 8)
    assert frozen.latent_shape(32, 16) == (4, 16, 8)
    images = torch.rand(2, 3, 16, 16)
    latents = frozen.encode_images(images)
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(latents, frozen.encode_images(images))
    assert not torch.equal(latents, frozen.encode_images(images, torch.Generator().manual_seed(0)))
    pipe = frozen.pipe
    raw = latents / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0.0)
    expected = pipe.image_processor.postprocess(pipe.vae.decode(raw, return_dict=False)[0], output_type="pt")
    torch.testing.assert_close(frozen.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_features_are_image_activations(family, frozen, frozen_state):
    x_t, t, cond = frozen_state
    (feature,) = frozen.features(x_t, t, cond)
    assert feature.shape == (3, *family.feature)
    calls = []
    last = frozen.network.get_submodule(family.last_layer)
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    frozen.features(x_t, t, cond)
    assert not calls, "the network ran past the last tap"
    frozen(x_t, t, cond)
    assert calls
    handle.remove()
    assert not frozen.network._forward_hooks


@pytest.mark.parametrize("layers", [("transformer_blocks.3", "transformer_blocks.0"), ("transformer_blocks.1",)])
def test_joint_blocks_tap_the_image_stream(layers):
    teacher = load_teacher(tiny_pipeline("sd3"))
    x_t, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), teacher.encode(PROMPTS)
    features = teacher.features(x_t, t, cond, layers)
    assert [f.shape for f in features] == [(2, 16, 16)] * len(layers)


def test_features_give_the_same_gradient_with_checkpointing(teacher, state):
    x_t, t, cond = state

    def gradient():
        x = x_t.clone().requires_grad_(True)
        sum(f.square().sum() for f in teacher.features(x, t, cond)).backward()
        return x.grad

    plain = gradient()
    assert plain.abs().max() > 0
    teacher.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain, atol=1e-6, rtol=1e-5)
    out = teacher(x_t.clone().requires_grad_(True), t, cond).x0
    out.sum().backward()  # the interrupted pass has left no autograd context behind


def test_unknown_feature_layer_is_refused(frozen, frozen_state):
    with pytest.raises(AttributeError, match="nowhere"):
        frozen.features(*frozen_state, layers=["nowhere"])


@torch.no_grad()
def test_half_precision_network(teacher):
    teacher.pipe.to(torch.bfloat16)
    half = load_teacher(teacher.pipe)
    x_t, cond = torch.randn(2, 4, 8, 8), half.encode(PROMPTS)
    out = half(x_t, torch.tensor([0.5, 1.0]), cond, Guidance(2.0, half.uncond(1)))
    assert out.x0.dtype == out.eps.dtype == torch.float32
    assert half.decode(out.x0).dtype == torch.float32
    assert half.pipe.vae.dtype == torch.bfloat16
    sampler = StudentSampler(half.few_step_times(2, "ode"), "ode")
    assert len(half.pipeline(sampler)(PROMPTS, **half.call_arguments(sampler)).images) == 2


def test_the_pipeline_is_not_registered(frozen):
    names = {name for name, _ in frozen.named_modules() if "." not in name and name}
    assert names == {"network"}
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.trainable_parameters() == []


def test_time_is_exact_on_the_training_grid():
    teacher = load_teacher(tiny_pipeline("sd"))
    index = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(teacher.model_time(index / 999), index)
    between = teacher.model_time(torch.tensor([100.5 / 999]))
    torch.testing.assert_close(between, torch.tensor([100.5]))
    flow = load_teacher(tiny_pipeline("sd3"))
    assert flow.model_time(torch.tensor([1.0, 0.5])).tolist() == [1000.0, 500.0]


def test_one_row_of_conditioning_serves_the_batch(frozen, frozen_state):
    x_t, t, cond = frozen_state
    with torch.no_grad():
        one = frozen(x_t, t, cond[:1])
        three = frozen(x_t, t, Conditioning.cat([cond[:1]] * 3))
    assert torch.equal(one.x0, three.x0)


def test_encoders_are_placed_apart_from_the_network(teacher):
    away, here = torch.device("meta"), torch.device("cpu")
    student = teacher.role("student", Roles(rank=2))
    teacher.place_encoders(text=away, images=here)
    parts = student.pipe.components
    encoders = [name for name, part in parts.items() if name.startswith("text_encoder") and part is not None]
    assert {parts[name].device for name in encoders} == {away}
    assert teacher.text_device == away
    assert teacher.vae.device == teacher.device == here
    teacher.place_encoders(text=away, images=away)
    assert teacher.vae.device == away
