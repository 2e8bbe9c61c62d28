"""Ranks, scales, dtypes and headers of the written LoRA files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import nn

from stepdistill.errors import UserError
from stepdistill.export.lora import LoraLayer, lora_layers, save_diffusers_lora, save_kohya_lora


class Network(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)


def adapted(**options: object) -> nn.Module:
    """The network with an adapter `student` of rank 2 and scale 3 / 2, whose up matrices are not zero."""
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["first", "second"]} | options
    network = inject_adapter_in_model(LoraConfig(**settings), Network(), adapter_name="student")
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network


def test_the_scale_is_in_the_up_matrix() -> None:
    network = adapted()
    layer = lora_layers(network, "student")["first"]
    module = network.get_submodule("first")
    x = torch.randn(4, 3)
    update = module(x) - module.base_layer(x)
    torch.testing.assert_close(x @ (layer.up @ layer.down).T, update)
    torch.testing.assert_close(layer.up, 1.5 * module.lora_B["student"].weight)


def test_half_precision_is_rounded_once_after_scaling() -> None:
    """The scale 1.1 of a rounded matrix is another number than the rounded product."""
    network = adapted(r=2, lora_alpha=2.2)
    layer = lora_layers(network, "student", torch.bfloat16)["first"]
    up = network.get_submodule("first").lora_B["student"].weight
    assert torch.equal(layer.up, (up * 1.1).bfloat16())
    assert layer.down.dtype == layer.up.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_more_than_two_matrices_are_refused(options: dict[str, bool]) -> None:
    with pytest.raises(UserError, match="'first' has a DoRA or a biased LoRA"):
        lora_layers(adapted(**options), "student")


def layers_of(**ranks: int) -> dict[str, LoraLayer]:
    return {name: LoraLayer(torch.zeros(rank, 3), torch.zeros(3, rank)) for name, rank in ranks.items()}


def test_headers_name_the_rank_of_most_layers(tmp_path: Path) -> None:
    layers = layers_of(a=4, b=8, c=8)
    save_kohya_lora(layers, "unet", tmp_path / "kohya", {"modelspec.title": "fox"})
    with safe_open(tmp_path / "kohya", "pt") as file:
        header = file.metadata()
        alphas = {name: file.get_tensor(f"lora_unet_{name}.alpha").item() for name in layers}
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("8", "8")
    assert header["modelspec.title"] == "fox"
    assert alphas == {"a": 4.0, "b": 8.0, "c": 8.0}


def test_the_diffusers_file_says_alpha_is_rank_layer_by_layer(tmp_path: Path) -> None:
    save_diffusers_lora(layers_of(a=4, b=8, c=8), "unet", tmp_path / "file", {"modelspec.title": "fox"})
    with safe_open(tmp_path / "file", "pt") as file:
        header = file.metadata()
    config = json.loads(header["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (8, 8)
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {"a": 4}
    assert header["modelspec.title"] == "fox"
