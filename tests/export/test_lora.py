"""LoRA files keep their strength in stock diffusers, whatever alpha was."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from safetensors import safe_open

from stepdistill.denoisers import Roles, load_teacher
from stepdistill.errors import UserError
from stepdistill.export.contract import DIFFUSERS_NAME
from stepdistill.export.lora import (
    LoraLayer,
    adapter_metadata,
    file_header,
    lora_layers,
    save_diffusers_lora,
    save_kohya_lora,
)
from stepdistill.testing import tiny_pipeline

FAMILIES = ("sd", "sdxl", "sd3")


@lru_cache
def trained_student(family):
    """A student shared by all tests: writing its LoRA does not modify it."""
    student = load_teacher(tiny_pipeline(family)).role("student", Roles(rank=4, alpha=8.0))
    generator = torch.Generator().manual_seed(0)
    for parameter in student.trainable_parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def output(denoiser):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, *denoiser.latent_shape(), generator=generator)
    with torch.no_grad():
        return denoiser.forward(x_t, torch.full((2,), 0.5), denoiser.encode(["a fox", "a cup"])).x0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_with_alpha_unlike_rank_reloads_at_full_strength(family, tmp_path):
    student = trained_student(family)
    component = student.network_name
    layers = lora_layers(student.network, student.adapter)
    save_diffusers_lora(layers, component, tmp_path / DIFFUSERS_NAME, {})
    save_kohya_lora(layers, component, tmp_path / "fox_kohya.safetensors", {})
    expected, untrained = output(student), output(load_teacher(tiny_pipeline(family)))
    assert (expected - untrained).abs().max() > 1e-2
    for name in (DIFFUSERS_NAME, "fox_kohya.safetensors"):
        stock = tiny_pipeline(family)
        fresh = load_teacher(stock)
        stock.load_lora_weights(tmp_path, weight_name=name)
        assert (output(fresh) - expected).abs().max() < 1e-6, name


def test_convolutions_are_adapted_and_written(tmp_path):
    student = trained_student("sd")
    layers = lora_layers(student.network, student.adapter)
    convolutions = [name for name, layer in layers.items() if layer.down.ndim == 4]
    assert any(name.endswith("conv1") for name in convolutions)
    assert any("downsamplers.0.conv" in name for name in convolutions)
    save_kohya_lora(layers, "unet", tmp_path / "fox", {})
    with safe_open(tmp_path / "fox", "pt") as file:
        for name in convolutions:
            key = f"lora_unet_{name.replace('.', '_')}"
            assert file.get_tensor(f"{key}.lora_down.weight").ndim == 4
            assert file.get_tensor(f"{key}.alpha").item() == 4.0


def test_alpha_is_the_rank_wherever_it_is_written(tmp_path):
    student = trained_student("sd")
    layers = lora_layers(student.network, student.adapter)
    save_diffusers_lora(layers, "unet", tmp_path / "plain", {})
    with safe_open(tmp_path / "plain", "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 4
    save_kohya_lora(layers, "unet", tmp_path / "fox", {})
    with safe_open(tmp_path / "fox", "pt") as file:
        assert file.metadata()["ss_network_alpha"] == file.metadata()["ss_network_dim"] == "4"
        alphas = {file.get_tensor(key).item() for key in list(file.keys()) if key.endswith(".alpha")}
    assert alphas == {4.0}


def test_a_transformer_keeps_the_keys_that_comfyui_maps(tmp_path):
    student = trained_student("sd3")
    layers = lora_layers(student.network, student.adapter)
    save_kohya_lora(layers, "transformer", tmp_path / "fox", {})
    with safe_open(tmp_path / "fox", "pt") as file:
        keys = set(file.keys())
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in keys
    assert all(key.startswith("transformer.") and "lora_" in key for key in keys)


def test_layers_of_other_ranks_are_named():
    def layer(rank):
        return LoraLayer(torch.zeros(rank, 3), torch.zeros(3, rank))

    config = adapter_metadata({"a": layer(4), "b": layer(4), "c": layer(2)}, "unet")
    assert config["unet.r"] == 4
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {"c": 2}


def test_half_precision_files(tmp_path):
    student = trained_student("sd")
    layers = lora_layers(student.network, student.adapter, torch.float16)
    assert {layer.up.dtype for layer in layers.values()} == {torch.float16}


def test_headers_that_model_managers_read():
    about = {"name": "fast", "licence": "mit", "date": "2026-01-01", "usage": "4 steps", "base": "me/base"}
    header = file_header(architecture=("sd_v1", "stable-diffusion-v1/lora"), **about)
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.title"] == header["ss_output_name"] == "fast"
    unknown = file_header(architecture=("", ""), **about)
    assert "modelspec.architecture" not in unknown


def test_a_network_without_the_adapter():
    with pytest.raises(UserError, match="no LoRA adapter 'student'"):
        lora_layers(tiny_pipeline("sd").unet, "student")
