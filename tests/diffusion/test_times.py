import diffusers
import pytest
import torch

from stepdistill.diffusion.schedules.families import FlowSchedule, schedule_from_scheduler
from stepdistill.diffusion.times import Grid, LogNormalSigma, ShiftedUniform, Uniform, few_step_indices, shift_time

VP = schedule_from_scheduler(diffusers.DDPMScheduler())
LAWS = {
    "uniform": Uniform(0.02, 0.98),
    "shifted": ShiftedUniform(shift=3.0),
    "log_normal_sigma": LogNormalSigma(-1.2, 1.2, FlowSchedule()),
    "log_normal_sigma_vp": LogNormalSigma(-1.2, 1.2, VP),
    "grid": Grid((0.25, 0.5, 0.75, 1.0)),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_a_rising_map_into_the_unit_interval(law):
    u = torch.linspace(0, 1 - 1e-7, 1001, dtype=torch.float64)
    t = LAWS[law](u)
    assert t.shape == u.shape
    assert t.isfinite().all()
    assert (t.diff() >= 0).all()
    assert t.min() >= 0
    assert t.max() <= 1


@pytest.mark.parametrize("schedule", [FlowSchedule(), VP])
def test_log_normal_sigma_has_the_moments_of_log_sigma(schedule):
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = LogNormalSigma(0.3, 0.4, schedule)(u)
    log_sigma = -schedule.log_snr(t) / 2
    assert log_sigma.mean().item() == pytest.approx(0.3, abs=1e-3)
    assert log_sigma.std().item() == pytest.approx(0.4, abs=1e-2)


def test_grid_entries_are_equally_likely():
    t = Grid((1.0, 0.5, 0.25))(torch.arange(300) / 300)
    assert [(t == value).sum().item() for value in (1.0, 0.5, 0.25)] == [100, 100, 100]


def test_shift_is_what_the_flow_scheduler_does_and_shifts_compose():
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(shift_time(shift_time(t, 2.0), 3.0), shift_time(t, 6.0))
    torch.testing.assert_close(shift_time(t, 1.0), t)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(shift_time(torch.tensor([1.0, 0.75, 0.5, 0.25]), 5.0), scheduler.sigmas[:-1])


@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("num_train_timesteps", [1000, 250])
def test_few_step_indices_are_those_of_the_stock_schedulers(num_train_timesteps, num_steps):
    lcm = diffusers.LCMScheduler(num_train_timesteps, original_inference_steps=num_steps)
    lcm.set_timesteps(num_steps)
    assert few_step_indices(num_train_timesteps, num_steps, "sde") == lcm.timesteps.tolist()
    ddim = diffusers.DDIMScheduler(num_train_timesteps, timestep_spacing="trailing")
    ddim.set_timesteps(num_steps)
    assert few_step_indices(num_train_timesteps, num_steps, "ode") == ddim.timesteps.tolist()


def test_few_step_indices_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="num_steps"):
        few_step_indices(1000, 0, "sde")
    with pytest.raises(ValueError, match="kind"):
        few_step_indices(1000, 4, "euler")  # type: ignore[arg-type]
