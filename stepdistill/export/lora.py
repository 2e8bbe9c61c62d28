"""LoRA files that keep their strength in every loader.

Loaders disagree on where to find the scale alpha / rank: diffusers reads peft metadata or `.alpha` tensors,
ComfyUI only `.alpha`, and both default to 1.0. Therefore the scale is folded into the up matrix, and alpha equals
the rank wherever it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stepdistill.errors import UserError


@dataclass(frozen=True)
class LoraLayer:
    """The update `up @ down` of one layer, scale included.

    Attributes:
        down: (rank, in) or, for a convolution, (rank, in, kernel, kernel).
        up: (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]


def lora_layers(network: nn.Module, adapter: str, dtype: torch.dtype = torch.float32) -> dict[str, LoraLayer]:
    """Return the adapter's layers by module name, with their current scaling and rank.

    Raises:
        UserError: the network has no such adapter, or the LoRA has more than two matrices per layer.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    layers = {}
    for name, module in network.named_modules():
        if not isinstance(module, PeftLayer) or adapter not in module.lora_A:
            continue
        if adapter in module.lora_magnitude_vector or module.lora_bias.get(adapter, False):
            raise UserError(
                f"'{name}' has a DoRA or a biased LoRA, which kohya files cannot represent; train a plain LoRA"
            )
        down, up = (side[adapter].get_parameter("weight").detach().cpu() for side in (module.lora_A, module.lora_B))
        # W' = W + s B A with s = alpha / r: fold s into B, in float32 before rounding to `dtype`.
        baked = up.float() * module.scaling[adapter]
        layers[name] = LoraLayer(down=down.to(dtype).contiguous(), up=baked.to(dtype).contiguous())
    if not layers:
        raise UserError(f"the student has no LoRA adapter '{adapter}'; set export.formats=[pipeline]")
    return layers


def diffusers_tensors(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Tensor]:
    """Return tensors under the keys of diffusers' `load_lora_weights`.

    All layers use one key style: diffusers picks the conversion by the first key and drops what does not match.

    >>> layer = LoraLayer(down=torch.zeros(2, 4), up=torch.zeros(4, 2))
    >>> list(diffusers_tensors({"mid_block.attn1.to_q": layer}, "unet"))
    ['unet.mid_block.attn1.to_q.lora_A.weight', 'unet.mid_block.attn1.to_q.lora_B.weight']
    """
    tensors = {}
    for name, layer in layers.items():  # A projects down, (r, in); B projects up, (out, r)
        tensors[f"{component}.{name}.lora_A.weight"] = layer.down
        tensors[f"{component}.{name}.lora_B.weight"] = layer.up
    return tensors


def kohya_tensors(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Tensor]:
    """Return tensors under keys that ComfyUI, A1111, Forge and stock diffusers all load.

    A U-Net uses kohya's keys over diffusers' module names. A transformer keeps the diffusers keys, which ComfyUI
    maps: kohya's own keys would need the original code's fused qkv, and diffusers rejects `.alpha` there. A
    missing alpha means scale 1.0, which is what the up matrix holds.

    >>> layer = LoraLayer(down=torch.zeros(2, 4), up=torch.zeros(4, 2))
    >>> list(kohya_tensors({"mid.to_q": layer}, "unet"))
    ['lora_unet_mid_to_q.lora_down.weight', 'lora_unet_mid_to_q.lora_up.weight', 'lora_unet_mid_to_q.alpha']
    """
    if component != "unet":
        return diffusers_tensors(layers, component)
    tensors = {}
    for name, layer in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = layer.down
        tensors[f"{key}.lora_up.weight"] = layer.up
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.rank))  # alpha / rank = 1
    return tensors


def adapter_metadata(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Any]:
    """Return the peft config for diffusers' `lora_adapter_metadata`, with alpha equal to the rank of every layer."""
    # `r` is the most common rank; layers of a different rank go to the patterns.
    # alpha_pattern mirrors rank_pattern, so alpha / r = 1 in every layer.
    ranks = {name: layer.rank for name, layer in layers.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != common}
    config = {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}
    config |= {"target_modules": sorted(layers), "use_dora": False, "lora_bias": False, "use_rslora": False}
    return {f"{component}.{key}": value for key, value in config.items()}


def save_diffusers_lora(
    layers: Mapping[str, LoraLayer], component: str, path: Path, header: Mapping[str, str]
) -> None:
    """Write the LoRA file for diffusers."""
    metadata = json.dumps(adapter_metadata(layers, component), indent=2, sort_keys=True)
    save_file(
        diffusers_tensors(layers, component), path, {"format": "pt", **header, "lora_adapter_metadata": metadata}
    )


def save_kohya_lora(layers: Mapping[str, LoraLayer], component: str, path: Path, header: Mapping[str, str]) -> None:
    """Write the LoRA file for ComfyUI, A1111 and Forge."""
    ranks = [layer.rank for layer in layers.values()]
    common = str(max(set(ranks), key=ranks.count))
    network = {"ss_network_module": "networks.lora", "ss_network_dim": common, "ss_network_alpha": common}
    save_file(kohya_tensors(layers, component), path, {"format": "pt", **header, **network})


def file_header(
    *, name: str, base: str, architecture: tuple[str, str], licence: str, date: str, usage: str
) -> dict[str, str]:
    """Return the header entries that model managers show (`modelspec.*`, `ss_*`), omitting unknown values.

    Args:
        architecture: see `PipelineDenoiser.architecture`.

    >>> about = {"name": "fast", "base": "me/base", "licence": "", "date": "2026-01-01", "usage": "4 steps"}
    >>> header = file_header(architecture=("sd_v1", "stable-diffusion-v1/lora"), **about)
    >>> header["modelspec.architecture"], "modelspec.license" in header
    ('stable-diffusion-v1/lora', False)
    """
    kohya_version, modelspec = architecture
    entries = {
        "ss_output_name": name,
        "ss_sd_model_name": base,
        "ss_base_model_version": kohya_version,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": modelspec,
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": date,
        "modelspec.license": licence,
        "modelspec.usage_hint": usage,
    }
    return {key: value for key, value in entries.items() if value}
