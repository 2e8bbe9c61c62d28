"""From what a user names (a pipeline, an export, a LoRA) to a `Generation` and a record of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from stepdistill.assets import resolve_path
from stepdistill.data.cache import fingerprint
from stepdistill.denoisers.loading import absent_components
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.errors import UserError
from stepdistill.evaluation.document import ModelRecord
from stepdistill.evaluation.generation import Generation, weights_of
from stepdistill.export.contract import CONTRACT_NAME, apply_sampler, plain_config, read_contract
from stepdistill.export.use import load_export

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Source:
    """What is to draw.

    Attributes:
        pipeline: folder or hub id of a diffusers pipeline, or an export of this project.
        lora: a LoRA for it: file, folder, hub id or export; an export brings its sampler.
        steps: of the call; default: the export's, or the pipeline's own default.
        guidance_scale: the same.
        arguments: further arguments of the pipeline's call.
        dtype: of the weights: fp32, bf16 or fp16.
        name: as shown in tables; default: the last part of the path.
        kind: `teacher` or `student`, for colours and the slider.
    """

    pipeline: str
    lora: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "fp32"
    name: str | None = None
    kind: str = "student"


def open_source(source: Source, device: torch.device) -> tuple[Generation, ModelRecord]:
    """Load the pipeline, put it on the device, and record what it is.

    Raises:
        UserError: it cannot be loaded, or an argument is not one of its call.
    """
    if source.dtype not in DTYPES:
        raise UserError(f"--dtype is one of {', '.join(DTYPES)}, not '{source.dtype}'")
    pipe, call = _load(source)
    dtype = DTYPES[source.dtype]
    if pipe.dtype != dtype:  # An export is loaded in float32; a pipeline already as asked.
        pipe.to(dtype)
    pipe.to(device)
    given = {"num_inference_steps": source.steps, "guidance_scale": source.guidance_scale}
    call = call | {key: value for key, value in given.items() if value is not None} | dict(source.arguments)
    if source.steps is not None:  # An export's own grid is for its own number of steps.
        call = {
            key: value
            for key, value in call.items()
            if key not in ("timesteps", "sigmas") or key in source.arguments
        }
    return describe(pipe, call, source)


def describe(
    pipe: DiffusionPipeline, call: Mapping[str, Any], source: Source
) -> tuple[Generation, ModelRecord]:
    """A generation of a loaded pipeline, and its record with the defaults of its call filled in."""
    parameters = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in call if name not in parameters]
    if unknown:
        raise UserError(
            f"a {type(pipe).__name__} is not called with {', '.join(unknown)}; leave out what set it "
            "(--steps sets num_inference_steps, --guidance guidance_scale)"
        )
    arguments = dict(call)
    steps = arguments.pop("num_inference_steps", _default(parameters, "num_inference_steps"))
    guidance = arguments.pop("guidance_scale", _default(parameters, "guidance_scale"))
    generation = Generation(pipe, source.kind, steps=steps, guidance_scale=guidance, arguments=arguments)
    scheduler: Any = pipe.scheduler
    title = Path(source.lora or source.pipeline).name or source.pipeline
    record = ModelRecord(
        name=source.name or f"{title}, {steps_in_words(steps)}",
        source=source.pipeline,
        kind=source.kind,
        lora=source.lora,
        weights=_weights_digest(pipe),
        steps=steps,
        guidance_scale=guidance,
        scheduler=type(scheduler).__name__,
        scheduler_config=_plain(plain_config(scheduler.config)),
        arguments=_plain(arguments),
        dtype=source.dtype,
        device=device_name(pipe.device),
    )
    return generation, record


def device_name(device: torch.device) -> str:
    """Name of the processor, as a reader of timings needs it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _load(source: Source) -> tuple[DiffusionPipeline, dict[str, Any]]:
    folder = Path(source.pipeline).expanduser()
    if any((place / CONTRACT_NAME).is_file() for place in (folder, folder / "export")):
        return load_export(folder)
    pipe, call = _load_pipeline(source), {}
    if source.lora is None:
        return pipe, call
    local = Path(source.lora).expanduser()
    if (local / CONTRACT_NAME).is_file():
        contract = read_contract(local)
        for adapter in dict.fromkeys(contract.step_adapters):
            pipe.load_lora_weights(str(local), weight_name=f"{adapter}.safetensors", adapter_name=adapter)
        if not contract.step_adapters:
            pipe.load_lora_weights(str(local), weight_name=contract.lora_name)
        return pipe, apply_sampler(pipe, contract)
    try:
        name = {"weight_name": local.name} if local.is_file() else {}
        pipe.load_lora_weights(str(local.parent if local.is_file() else local), **name)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"the LoRA '{source.lora}' cannot be loaded: {str(error).splitlines()[0]}") from error
    return pipe, call


def _load_pipeline(source: Source) -> DiffusionPipeline:
    name = str(resolve_path(source.pipeline))
    try:
        config: Any = DiffusionPipeline.load_config(name)
        return DiffusionPipeline.from_pretrained(
            name, torch_dtype=DTYPES[source.dtype], use_safetensors=True, **absent_components(config)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the pipeline '{source.pipeline}' cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}; "
            "give the folder of a diffusers pipeline, or a hub id owner/name"
        ) from error


def _default(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    if name not in parameters:
        return None
    default = parameters[name].default
    return None if default is inspect.Parameter.empty else default


def _weights_digest(pipe: DiffusionPipeline) -> str | None:
    weights = weights_of(pipe)
    if any(tensor.is_meta for tensor in weights.values()):
        return None  # Offloaded weights are not here to be read.
    return fingerprint(weights.items())[:16]


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold; anything else by its name."""
    simple = (str, int, float, bool, list, tuple, dict, type(None))
    return {
        key: value if isinstance(value, simple) else getattr(value, "__name__", str(value))
        for key, value in record.items()
    }
