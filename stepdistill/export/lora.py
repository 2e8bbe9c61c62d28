"""The student's LoRA as files that keep their strength wherever they are loaded.

Readers disagree about where a LoRA's scale alpha / rank is written: diffusers reads peft metadata or `.alpha`
tensors, ComfyUI only `.alpha`, and both take 1.0 when nothing is there. So the scale is multiplied into the
up matrix, and alpha equals the rank in every place it can be written.
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
    """One layer's update `up @ down`, its scale multiplied in.

    Attributes:
        down: (rank, in) or, for a convolution, (rank, in, kernel, kernel).
        up: (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]


def lora_layers(network: nn.Module, adapter: str, dtype: torch.dtype = torch.float32) -> dict[str, LoraLayer]:
    """The adapter's layers by module name, as `network` runs them now: live scaling, rank patterns and all.

    Raises:
        UserError: the network has no such adapter, or it is a kind of LoRA that is more than two matrices.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    layers = {}
    for name, module in network.named_modules():
        if not isinstance(module, PeftLayer) or adapter not in module.lora_A:
            continue
        if adapter in module.lora_magnitude_vector or module.lora_bias.get(adapter, False):
            raise UserError(
                f"'{name}' has a DoRA or biased LoRA, which kohya files cannot hold; train a plain LoRA"
            )
        down, up = (
            side[adapter].get_parameter("weight").detach().cpu() for side in (module.lora_A, module.lora_B)
        )
        baked = up.float() * module.scaling[adapter]
        layers[name] = LoraLayer(down=down.to(dtype).contiguous(), up=baked.to(dtype).contiguous())
    if not layers:
        raise UserError(f"the student has no LoRA adapter '{adapter}'; export it with formats: [pipeline]")
    return layers


def diffusers_tensors(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Tensor]:
    """Tensors under the keys that `load_lora_weights` reads.

    One key style for all layers: a file that mixes `.lora.down` with `.lora_A` is converted by its first key,
    and the rest is lost.

    >>> layer = LoraLayer(down=torch.zeros(2, 4), up=torch.zeros(4, 2))
    >>> list(diffusers_tensors({"mid_block.attn1.to_q": layer}, "unet"))
    ['unet.mid_block.attn1.to_q.lora_A.weight', 'unet.mid_block.attn1.to_q.lora_B.weight']
    """
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{component}.{name}.lora_A.weight"] = layer.down
        tensors[f"{component}.{name}.lora_B.weight"] = layer.up
    return tensors


def kohya_tensors(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Tensor]:
    """Tensors under the keys that ComfyUI, A1111 and Forge map, and that stock diffusers loads too.

    A UNet gets kohya's keys over diffusers' module names. A transformer keeps its diffusers keys: ComfyUI
    maps those, kohya's own keys would need the fused qkv of the original code, and diffusers takes no
    `.alpha` there. A missing alpha means scale 1.0, as baked.

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
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.rank))
    return tensors


def adapter_metadata(layers: Mapping[str, LoraLayer], component: str) -> dict[str, Any]:
    """The peft configuration as diffusers' `lora_adapter_metadata`: alpha is the rank of every layer."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != common}
    config = {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}
    config |= {"target_modules": sorted(layers), "use_dora": False, "lora_bias": False, "use_rslora": False}
    return {f"{component}.{key}": value for key, value in config.items()}


def save_diffusers_lora(
    layers: Mapping[str, LoraLayer], component: str, path: Path, header: Mapping[str, str]
) -> None:
    """Write the file for `load_lora_weights`."""
    metadata = json.dumps(adapter_metadata(layers, component), indent=2, sort_keys=True)
    save_file(
        diffusers_tensors(layers, component),
        path,
        {"format": "pt", **header, "lora_adapter_metadata": metadata},
    )


def save_kohya_lora(
    layers: Mapping[str, LoraLayer], component: str, path: Path, header: Mapping[str, str]
) -> None:
    """Write the file for ComfyUI, A1111 and Forge."""
    ranks = [layer.rank for layer in layers.values()]
    common = str(max(set(ranks), key=ranks.count))
    network = {"ss_network_module": "networks.lora", "ss_network_dim": common, "ss_network_alpha": common}
    save_file(kohya_tensors(layers, component), path, {"format": "pt", **header, **network})


def file_header(
    *, name: str, base: str, pipeline: str, text_width: int, licence: str, date: str, usage: str
) -> dict[str, str]:
    """Header entries that model managers show: `modelspec.*` and `ss_*`. What is not known is left out.

    The architecture is named when the pipeline class and the width of its text embedding are those of a
    published model.

    >>> about = {"name": "fast", "base": "me/base", "licence": "", "date": "2026-01-01", "usage": "4 steps"}
    >>> header = file_header(pipeline="StableDiffusionXLPipeline", text_width=2048, **about)
    >>> header["modelspec.architecture"], "modelspec.license" in header
    ('stable-diffusion-xl-v1-base/lora', False)
    """
    version, architecture = _ARCHITECTURES.get((pipeline, text_width), ("", ""))
    entries = {
        "ss_output_name": name,
        "ss_sd_model_name": base,
        "ss_base_model_version": version,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": date,
        "modelspec.license": licence,
        "modelspec.usage_hint": usage,
    }
    return {key: value for key, value in entries.items() if value}


_ARCHITECTURES = {
    ("StableDiffusionPipeline", 768): ("sd_v1", "stable-diffusion-v1/lora"),
    ("StableDiffusionPipeline", 1024): ("sd_v2", "stable-diffusion-v2-512/lora"),
    ("StableDiffusionXLPipeline", 2048): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ("StableDiffusion3Pipeline", 4096): ("sd3", "stable-diffusion-3/lora"),
}
