"""The sampler contract is read back as written, and sets up a stock pipeline."""

from __future__ import annotations

import pytest

from stepdistill.denoisers import load_teacher
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.errors import UserError
from stepdistill.export.contract import (
    CONTRACT_NAME,
    SamplerContract,
    Verification,
    apply_sampler,
    read_contract,
    write_contract,
)
from stepdistill.export.exporter import plain_config
from stepdistill.testing import tiny_pipeline


def contract_of(family, kind, num_steps=4):
    teacher = load_teacher(tiny_pipeline(family))
    sampler = StudentSampler(teacher.few_step_times(num_steps, kind), kind)
    scheduler = teacher.few_step(sampler).scheduler
    call = teacher.call_arguments(sampler)
    return SamplerContract(
        schema=1,
        name="fox",
        method="DMD2",
        base_model="me/base",
        pipeline=type(teacher.pipe).__name__,
        component=teacher.network_name,
        scheduler=type(scheduler).__name__,
        scheduler_config=plain_config(scheduler.config),
        steps=num_steps,
        sigmas=call.get("sigmas"),
        kind=kind,
        call=call,
        times=list(sampler.times),
        formats=["diffusers"],
        versions={"diffusers": "0"},
    )


def test_round_trip(tmp_path):
    check = Verification(max_difference=1e-7, mean_difference=1e-8, tolerance=1e-3, statistic="max", effect=0.5)
    contract = contract_of("sd", "sde").model_copy(update={"verified": {"diffusers": check}})
    write_contract(contract, tmp_path)
    assert read_contract(tmp_path) == contract
    assert '"schema": 1' in (tmp_path / CONTRACT_NAME).read_text()


@pytest.mark.parametrize(
    ("family", "kind", "name"),
    [
        ("sd", "sde", "LCMScheduler"),
        ("sd-v", "ode", "DDIMScheduler"),
        ("sdxl", "sde", "LCMScheduler"),
        ("sd3", "sde", "FlowMatchEulerDiscreteScheduler"),
        ("sd3", "ode", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_apply_sampler_runs_the_grid_of_the_student(family, kind, name, tmp_path):
    contract = contract_of(family, kind)
    write_contract(contract, tmp_path)
    pipe = tiny_pipeline(family)
    settings = apply_sampler(pipe, tmp_path)
    assert type(pipe.scheduler).__name__ == name
    pipe("a fox", **settings, output_type="latent")
    if family == "sd3":
        assert pipe.scheduler.sigmas[:-1].tolist() == pytest.approx(contract.times, abs=1e-6)
    else:
        assert pipe.scheduler.timesteps.tolist() == [round(999 * t) for t in contract.times]


def test_apply_sampler_names_the_wrong_family():
    with pytest.raises(UserError, match="StableDiffusionPipeline; a StableDiffusion3Pipeline has no unet"):
        apply_sampler(tiny_pipeline("sd3"), contract_of("sd", "sde"))


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(UserError, match="is not an export"):
        read_contract(tmp_path)
    (tmp_path / CONTRACT_NAME).write_text("{}")
    with pytest.raises(UserError, match="export again"):
        read_contract(tmp_path)


def test_a_difference_that_is_no_number_does_not_pass():
    bad = float("nan")
    check = Verification(max_difference=bad, mean_difference=bad, tolerance=1e-3, statistic="max", effect=1.0)
    assert not check.passed
