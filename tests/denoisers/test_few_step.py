"""A student's rollout equals what stock diffusers does with the pipeline and the call it is given."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete, scheduling_lcm

from stepdistill.denoisers import Roles, load_teacher
from stepdistill.denoisers.loading import absent_components
from stepdistill.diffusion.rollout import sample
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.schedules.families import VPSchedule
from stepdistill.errors import UserError
from stepdistill.testing.tiny import tiny_pipeline

PROMPTS = ["a cat", "dog on blue"]


class Tape:
    """Fresh noise in a fixed order, for our rollout and for a scheduler's own generator alike."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def normal(self, purpose, shape):
        return torch.randn(len(PROMPTS), *shape, generator=self.generator)


@pytest.fixture
def stock_noise(monkeypatch):
    tape = Tape()
    for scheduler in (scheduling_lcm, scheduling_flow_match_euler_discrete):
        monkeypatch.setattr(scheduler, "randn_tensor", lambda shape, **_: tape.normal("", shape[1:]))


@pytest.fixture(scope="session", params=["shared", "full"])
def student(request, name, trained):
    """A trained student shared by all rollouts, which do not modify it."""
    teacher = load_teacher(tiny_pipeline(name))
    return trained(teacher.role("student", Roles(mode=request.param, rank=4)))


def custom_times(teacher):
    """A grid no scheduler picks by itself; on the training grid for VP."""
    return (999 / 999, 700 / 999, 333 / 999) if isinstance(teacher.schedule, VPSchedule) else (1.0, 0.7, 0.2)


def late_times(teacher):
    """A grid that begins below 1, where its first step gets pure noise all the same."""
    return tuple(teacher.nearest_time(t) for t in (0.8, 0.4))


@pytest.mark.parametrize("grid", [1, 2, 3, 4, custom_times, late_times])
@pytest.mark.parametrize("kind", ["sde", "ode"])
def test_rollout_equals_the_stock_pipeline(student, stock_noise, kind, grid):
    times = student.few_step_times(grid, kind) if isinstance(grid, int) else grid(student)
    sampler = StudentSampler(times, kind)
    noise = torch.randn(2, *student.latent_shape(), generator=torch.Generator().manual_seed(0))
    ours = sample(student, sampler, noise, student.encode(PROMPTS), Tape())
    pipe, arguments = student.pipeline(sampler), student.call_arguments(sampler)
    assert json.loads(json.dumps(arguments)) == arguments
    theirs = pipe(PROMPTS, latents=noise.clone(), output_type="latent", **arguments).images
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(ours.abs().max()), rtol=0)


@torch.no_grad()
def test_the_pipeline_is_independent_of_training(teacher, state, trained):
    student = trained(teacher.role("student", Roles(rank=4)))
    fake_score = trained(teacher.role("fake_score", Roles(rank=4)))
    sampler = StudentSampler(teacher.few_step_times(2, "sde"), "sde")
    scheduler, before = teacher.pipe.scheduler, [role(*state).eps for role in (teacher, student, fake_score)]
    fake_score.activate()
    pipe = student.pipeline(sampler)
    network = getattr(pipe, teacher.network_name)
    assert not any("lora" in name for name in network.state_dict())
    for parameter in network.parameters():
        parameter.zero_()
    after = [role(*state).eps for role in (teacher, student, fake_score)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert teacher.pipe.scheduler is scheduler
    assert getattr(teacher.pipe, teacher.network_name) is teacher.network


def test_the_saved_folder_reloads(teacher, trained, tmp_path):
    student = trained(teacher.role("student", Roles(rank=4)))
    sampler = StudentSampler(teacher.few_step_times(2, "ode"), "ode")
    pipe = student.pipeline(sampler)
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path, **absent_components(pipe.config))
    again.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *teacher.latent_shape())
    one, other = (
        p("a cat", latents=noise.clone(), output_type="pt", **student.call_arguments(sampler)).images
        for p in (pipe, again)
    )
    # Not bitwise: some matrix kernels round by where a weight lies in memory.
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert type(again.scheduler) is type(pipe.scheduler)


def test_vp_grids_are_those_of_the_schedulers():
    teacher = load_teacher(tiny_pipeline("sd"))
    index = [round(t * 999) for t in teacher.few_step_times(4, "sde")]
    assert index == [999, 749, 499, 249]
    for kind, name in (("sde", "LCMScheduler"), ("ode", "DDIMScheduler")):
        few_step = teacher.few_step(StudentSampler(teacher.few_step_times(4, kind), kind))
        assert type(few_step.scheduler).__name__ == name
        assert few_step.arguments == {"num_inference_steps": 4}


def test_flow_sigmas_are_unshifted():
    teacher = load_teacher(tiny_pipeline("sd3"))
    times = teacher.few_step_times(4, "sde")
    assert times == pytest.approx((1.0, 0.9, 0.75, 0.5))
    sampler = StudentSampler(times, "sde")
    assert teacher.call_arguments(sampler)["sigmas"] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    scheduler = teacher.few_step(sampler).scheduler
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert scheduler.timesteps.tolist() == pytest.approx([1000.0, 900.0, 750.0, 500.0])


def test_a_grid_off_the_training_indices_is_refused():
    teacher = load_teacher(tiny_pipeline("sd"))
    with pytest.raises(UserError, match="whole training indices"):
        teacher.pipeline(StudentSampler((1.0, 0.4321), "sde"))
