"""From a folder, a hub id or a diffusers pipeline to a frozen teacher."""

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
"""Pipeline class name -> denoiser class, or where to import it from (diffusers takes seconds to import)."""


def load_teacher(
    path_or_pipeline: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prompt_arguments: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The frozen denoiser of a pipeline folder, a hub id or a pipeline object (which is frozen in place).

    Args:
        path_or_pipeline: what to load; `assets/...` names that are not on disk are the embedded ones.
        dtype: of the network and the text encoders; default float32, or as the pipeline object is.
        device: where to put it; default: the CPU, or where the pipeline object is.
        prompt_arguments: see `PipelineDenoiser`.
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
    """The components that a model_index.json lists as null, as keyword arguments of `from_pretrained`.

    diffusers 0.42 does not load a `StableDiffusion3Pipeline` without T5 unless it is told so again.

    >>> absent_components({"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"], "text_encoder_3": [None, None]})
    {'text_encoder_3': None}
    """
    lists = {name: value for name, value in config.items() if isinstance(value, (list, tuple))}
    return {name: None for name, value in lists.items() if not any(value)}


def family_of(pipeline_class: str) -> type[Any]:
    """The denoiser class for a pipeline class."""
    if pipeline_class not in FAMILIES:
        raise UserError(
            f"pipelines of class {pipeline_class} are not supported; supported: {', '.join(sorted(FAMILIES))}. "
            "denoisers/example.py shows how a family is added"
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
            f"the weights of '{name}' cannot be read ({_first_line(error)}); download or export the pipeline again, "
            "as safetensors"
        ) from error


def _checked_source(name: str) -> str:
    path = resolve_path(name)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            if (path / "pytorch_lora_weights.safetensors").is_file():
                raise UserError(
                    f"'{name}' holds a LoRA and no pipeline; `stepdistill export RUN export.formats=[pipeline]` makes one of "
                    "a run's student, docs/recipes.md shows how to make one of any LoRA"
                )
            raise UserError(
                f"'{name}' holds no model_index.json; give the folder of a whole diffusers pipeline, as written by "
                "pipeline.save_pretrained"
            )
        return str(path)
    if path.is_file():
        raise UserError(
            f"'{name}' is a file; give the folder of a diffusers pipeline, with its model_index.json"
        )
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~", "assets/"))
    if not looks_like_hub_id:
        raise UserError(
            f"there is no folder '{name}'; give the path of a diffusers pipeline, or a hub id owner/name"
        )
    return name


def _refuse_foreign_adapters(name: str, component: nn.Module) -> None:
    if adapted_layers(component):
        raise UserError(
            f"the pipeline's {name} carries an unfused LoRA; call pipe.fuse_lora() and pipe.unload_lora_weights() before"
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
