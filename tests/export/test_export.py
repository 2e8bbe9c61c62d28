"""A whole export, executed in a fresh process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import stepdistill
from stepdistill.denoisers import Denoiser, Roles, load_teacher
from stepdistill.distillers.consistency.lcm import LCM
from stepdistill.distillers.distribution.dmd2 import DMD2
from stepdistill.errors import UserError
from stepdistill.export import ExportError, apply_sampler, export, read_contract
from stepdistill.export import exporter as exporter_module
from stepdistill.export.card import card_blocks
from stepdistill.export.gate import trainer_images
from stepdistill.testing import tiny_pipeline

PROMPTS = ["a fox", 'a "red" cup']


def distilled(teacher, mode="shared", **config):
    distiller = DMD2(teacher, DMD2.Config(**config), roles=Roles(mode=mode, rank=4, alpha=8.0))
    generator = torch.Generator().manual_seed(0)
    for parameter in distiller.student.trainable_parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return distiller


@pytest.fixture(scope="module")
def one_step():
    """A one-step student shared by the tests that export it without the gate."""
    return distilled(load_teacher(tiny_pipeline("sd")), num_steps=1)


@pytest.mark.slow
def test_every_format_of_a_student_with_a_teacher_on_disk(tmp_path, monkeypatch):
    tiny_pipeline("sd").save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    distiller = distilled(load_teacher("base"), num_steps=4)
    before = {name: tensor.clone() for name, tensor in distiller.student.role_state_dict().items()}
    contract = export(
        distiller,
        "out",
        formats=("diffusers", "kohya", "pipeline"),
        name="fox",
        prompts=PROMPTS,
        recipe="method: {name: dmd2}\n",
    )
    out = tmp_path / "out"
    assert read_contract("out") == contract
    assert set(contract.verified) == {"diffusers", "kohya", "pipeline"}
    assert max(check.max_difference for check in contract.verified.values()) < 1e-5
    assert min(check.effect for check in contract.verified.values()) > 1e-2
    names = {"pytorch_lora_weights.safetensors", "fox_kohya.safetensors", "scheduler/scheduler_config.json"}
    assert names | {"README.md", "recipe.yaml", "images/1.png", "model_index.json"} <= set(contract.files)
    assert all(torch.equal(tensor, before[name]) for name, tensor in distiller.student.role_state_dict().items())

    scope = {}
    exec(card_blocks((out / "README.md").read_text())[0], scope)
    shown, gallery = np.array(scope["image"]), np.array(Image.open(out / "images" / "0.png"))
    assert np.abs(shown.astype(int) - gallery.astype(int)).max() <= 1

    stock = tiny_pipeline("sd")
    stock.load_lora_weights(out, weight_name="fox_kohya.safetensors")
    settings = apply_sampler(stock, out)
    torch.manual_seed(1)
    made = stock(PROMPTS[1], **settings, output_type="pt").images[0]
    assert (made - trainer_images(distiller.student, distiller.sampler(), PROMPTS)[1]).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rollout", "num_steps"), [("sd3", "sde", 2), ("sdxl", "ode", 3)])
def test_a_student_with_a_teacher_in_memory(family, rollout, num_steps, tmp_path):
    distiller = distilled(load_teacher(tiny_pipeline(family)), num_steps=num_steps, rollout=rollout)
    contract = export(distiller, tmp_path / "out", prompts=PROMPTS)
    assert set(contract.verified) == {"diffusers", "kohya"}
    assert max(check.max_difference for check in contract.verified.values()) < 1e-5
    assert contract.base_model is None
    assert "path/to/the/base-model" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_a_full_copy_is_a_pipeline_and_may_be_stored_in_half_precision(tmp_path):
    distiller = distilled(load_teacher(tiny_pipeline("sd-v")), mode="full", num_steps=1)
    contract = export(distiller, tmp_path / "out", prompts=PROMPTS, dtype=torch.float16)
    assert contract.formats == ["pipeline"]
    assert contract.verified["pipeline"].statistic == "mean"
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert distiller.student.pipe.text_encoder.dtype == torch.float32


@pytest.mark.slow
def test_the_gate_fails_on_a_lora_at_half_strength(tmp_path, monkeypatch):
    save = exporter_module.save_kohya_lora

    def save_weaker(layers, *where):
        return save({name: replace(layer, up=layer.up / 2) for name, layer in layers.items()}, *where)

    monkeypatch.setattr(exporter_module, "save_kohya_lora", save_weaker)
    distiller = distilled(load_teacher(tiny_pipeline("sd")), num_steps=2)
    with pytest.raises(ExportError, match=r"'fox_kohya.safetensors' does not reproduce .* tolerance"):
        export(distiller, tmp_path / "out", name="fox", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed" / "fox_kohya.safetensors").is_file()


def test_the_card_credits_what_the_options_make_of_the_method(tmp_path):
    config = LCM.Config(num_steps=4, segments=(4,))
    distiller = LCM(load_teacher(tiny_pipeline("sd")), config, roles=Roles(rank=2))
    contract = export(distiller, tmp_path / "out", verify=False)
    assert contract.method == "PCM"
    assert "[PCM](https://arxiv.org/abs/2405.18407)" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_without_the_gate_says_so(one_step, tmp_path):
    contract = export(one_step, tmp_path / "out", prompts=PROMPTS, verify=False)
    assert contract.verified == {}
    assert "**Not verified**" in (tmp_path / "out" / "README.md").read_text()


def test_the_users_random_state_is_left_alone(one_step, tmp_path):
    state = torch.get_rng_state()
    export(one_step, tmp_path / "out", verify=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_format(one_step, tmp_path):
    assert stepdistill.export is export  # importing the folder of this name must not hide the function
    with pytest.raises(UserError, match="unknown export format 'onnx'; choose from diffusers, kohya, pipeline"):
        stepdistill.export(one_step, tmp_path / "out", formats=("onnx",))


def test_a_student_that_is_no_pipeline(tmp_path):
    distiller = distilled(load_teacher(tiny_pipeline("sd")), num_steps=1)
    distiller.student = Denoiser()
    with pytest.raises(UserError, match="Denoiser has no diffusers pipeline"):
        export(distiller, tmp_path / "out")
