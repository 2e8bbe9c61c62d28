"""Load what a user names (a pipeline, an export, a LoRA) as a `Generation`, with a record of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline

from stepdistill.assets import resolve_path
from stepdistill.data.cache import fingerprint
from stepdistill.denoisers.loading import absent_components
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.errors import UserError
from stepdistill.evaluation.document import ModelRecord
from stepdistill.evaluation.drawing import Painter
from stepdistill.evaluation.generation import Generation, weights_of
from stepdistill.export.contract import CONTRACT_NAME, apply_sampler, plain_config, read_contract
from stepdistill.export.use import load_export

EMBEDDED_TEACHERS = ("emoji-sd", "emoji-sd3")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A model to evaluate.

    Attributes:
        pipeline: folder or hub id of a diffusers pipeline, or an export of this project.
        lora: a LoRA for it: file, folder, hub id or export; an export brings its sampler.
        steps: inference steps; default: the export's, or the pipeline's.
        guidance_scale: default as for steps.
        arguments: further arguments of the pipeline's call.
        dtype: of the weights: fp32, bf16 or fp16.
        name: shown in tables; default: the last part of the path.
        kind: `teacher` or `student`.
        method: of the student's training.
    """

    pipeline: str
    lora: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "fp32"
    name: str | None = None
    kind: str = "student"
    method: str | None = None


@dataclass(frozen=True)
class Drawn:
    """A model to evaluate: a painter that draws its pictures (a `Generation`), or a folder of existing pictures."""

    model: ModelRecord
    painter: Painter | None = None
    folder: Path | None = None


def open_source(source: Source, device: torch.device) -> Drawn:
    """Load the pipeline onto the device and describe it.

    Raises:
        UserError: it cannot be loaded, or its call has no such argument.
    """
    if source.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not '{source.dtype}'")
    pipe, call = _load(source)
    dtype = DTYPES[source.dtype]
    if pipe.dtype != dtype:  # exports are loaded in float32
        pipe.to(dtype)
    pipe.to(device)
    given = {"num_inference_steps": source.steps, "guidance_scale": source.guidance_scale}
    call = call | {key: value for key, value in given.items() if value is not None} | dict(source.arguments)
    if source.steps is not None:  # the export's grid has the export's number of steps
        call = {
            key: value for key, value in call.items() if key not in ("timesteps", "sigmas") or key in source.arguments
        }
    return describe(pipe, call, source)


def describe(
    pipe: DiffusionPipeline,
    call: Mapping[str, Any],
    source: Source,
    *,
    scheduler: Any = None,
    sampler: str | None = None,
    autocast: torch.dtype = torch.float32,
) -> Drawn:
    """A loaded pipeline with its record, in which the defaults of the call are filled in.

    Args:
        pipe: the pipeline.
        call: arguments of its call.
        source: where it comes from.
        scheduler: a scheduler in place of the pipeline's own.
        sampler: its name in tables; default: its class.
        autocast: dtype of the autocast region.

    Raises:
        UserError: the pipeline's call has no such argument.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in call if name not in parameters]
    if unknown:
        raise UserError(
            f"{type(pipe).__name__} takes no {', '.join(unknown)}; remove the option that sets it "
            "(--steps sets num_inference_steps, --guidance sets guidance_scale)"
        )
    arguments = dict(call)
    steps = arguments.pop("num_inference_steps", _default(parameters, "num_inference_steps"))
    guidance = arguments.pop("guidance_scale", _default(parameters, "guidance_scale"))
    generation = Generation(pipe, steps, guidance, arguments, scheduler, autocast)
    scheduler = scheduler or cast(Any, pipe).scheduler
    title = Path(source.lora or source.pipeline).name or source.pipeline
    record = ModelRecord(
        name=source.name or f"{title}, {steps_in_words(steps)}",
        source=source.pipeline,
        kind=source.kind,
        lora=source.lora,
        weights=_weights_digest(pipe),
        steps=steps,
        guidance_scale=guidance,
        method=source.method,
        scheduler=type(scheduler).__name__,
        sampler=sampler or type(scheduler).__name__.removesuffix("Scheduler"),
        scheduler_config=_plain(plain_config(scheduler.config)),
        arguments=_plain(arguments),
        dtype=str(pipe.dtype if autocast == torch.float32 else autocast).removeprefix("torch."),
        device=device_name(pipe.device),
    )
    return Drawn(record, generation)


def default_protocol(source: str) -> str | None:
    """The emoji protocol for the embedded teachers and their exported students; None for any other model."""
    folder = Path(source).expanduser()
    contracts = [place for place in (folder, folder / "export") if (place / CONTRACT_NAME).is_file()]
    base = str(read_contract(contracts[0]).base_model) if contracts else source
    return "emoji" if Path(base).name in EMBEDDED_TEACHERS else None


def device_name(device: torch.device) -> str:
    """Name of the GPU, or `cpu`."""
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
        return None  # offloaded weights cannot be read
    return fingerprint(weights.items())[:16]


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-serialisable values; others by their name."""
    simple = (str, int, float, bool, list, tuple, dict, type(None))
    return {
        key: value if isinstance(value, simple) else getattr(value, "__name__", str(value))
        for key, value in record.items()
    }
