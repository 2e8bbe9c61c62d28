"""Load a frozen teacher from a folder, a hub id or a diffusers pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stepdistill.assets import resolve_path
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import adapted_layers, is_shared
from stepdistill.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAMILIES: dict[str, str | type[Denoiser]] = {
    "StableDiffusionPipeline": "stepdistill.denoisers.stable_diffusion:StableDiffusionDenoiser",
    "StableDiffusionXLPipeline": "stepdistill.denoisers.sdxl:SDXLDenoiser",
    "StableDiffusion3Pipeline": "stepdistill.denoisers.sd3:SD3Denoiser",
}
"""Pipeline class name -> denoiser class or its import path (importing diffusers takes seconds)."""


def load_teacher(
    path_or_pipeline: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prompt_arguments: Mapping[str, Any] | None = None,
) -> Denoiser:
    """Return the frozen denoiser of a pipeline.

    Args:
        path_or_pipeline: folder, hub id, or pipeline object, which is frozen in place. `assets/...` paths that do
            not exist resolve to the embedded assets.
        dtype: of the network and the text encoders; default: float32, or the pipeline object's.
        device: default: the CPU, or the pipeline object's.
        prompt_arguments: see `PipelineDenoiser`.

    Raises:
        UserError: there is no such pipeline, it cannot be read, or its family is not supported.
    """
    if isinstance(path_or_pipeline, (str, Path)):
        pipeline = _load_pipeline(str(path_or_pipeline), dtype)
    else:
        pipeline = path_or_pipeline
    family = family_of(type(pipeline).__name__)
    if device is not None or dtype is not None:
        pipeline.to(*(x for x in (device, dtype) if x is not None))
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module) and not is_shared(component):
            _refuse_foreign_adapters(name, component)
            component.requires_grad_(False).eval()
    return family(pipeline, **({"prompt_arguments": prompt_arguments} if prompt_arguments else {}))


def absent_components(config: Mapping[str, Any]) -> dict[str, None]:
    """Return the null components of a model_index.json as keyword arguments of `from_pretrained`.

    diffusers 0.42 loads a `StableDiffusion3Pipeline` without T5 only if None is passed explicitly.

    >>> absent_components({"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"], "text_encoder_3": [None, None]})
    {'text_encoder_3': None}
    """
    lists = {name: value for name, value in config.items() if isinstance(value, (list, tuple))}
    return {name: None for name, value in lists.items() if not any(value)}


def family_of(pipeline_class: str) -> type[Any]:
    """Return the denoiser class of a pipeline class.

    Raises:
        UserError: the pipeline class is not supported.
    """
    if pipeline_class not in FAMILIES:
        raise UserError(
            f"{pipeline_class} is not supported; use one of {', '.join(sorted(FAMILIES))}, or add a family as in "
            "denoisers/example.py"
        )
    target = FAMILIES[pipeline_class]
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _load_pipeline(name: str, dtype: torch.dtype | None) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    source = _checked_source(name)
    try:
        config: Any = DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{name}' is neither a pipeline folder here nor a readable hub id: {_first_line(error)}"
        ) from error
    family_of(str(config.get("_class_name")))
    try:
        return DiffusionPipeline.from_pretrained(
            source, dtype=dtype or torch.float32, use_safetensors=True, **absent_components(config)
        )
    except (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(
            f"cannot read the weights of '{name}' ({_first_line(error)}); download or export the pipeline again as "
            "safetensors"
        ) from error


def _checked_source(name: str) -> str:
    path = resolve_path(name)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            if (path / "pytorch_lora_weights.safetensors").is_file():
                raise UserError(
                    f"'{name}' holds a LoRA, not a pipeline; export a run's student with `stepdistill export RUN "
                    "export.formats=[pipeline]`, or convert any LoRA as in docs/recipes.md"
                )
            raise UserError(
                f"'{name}' has no model_index.json; pass a diffusers pipeline folder as written by save_pretrained"
            )
        return str(path)
    if path.is_file():
        raise UserError(f"'{name}' is a file; pass the folder of a diffusers pipeline, with its model_index.json")
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~", "assets/"))
    if not looks_like_hub_id:
        raise UserError(f"there is no folder '{name}'; pass the path of a diffusers pipeline, or a hub id owner/name")
    return name


def _refuse_foreign_adapters(name: str, component: nn.Module) -> None:
    if adapted_layers(component):
        raise UserError(
            f"the pipeline's {name} has an unfused LoRA; call pipe.fuse_lora() and pipe.unload_lora_weights() first"
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
