"""Export a student to files that stock diffusers and ComfyUI load, verified by reloading them.

An export folder contains `pytorch_lora_weights.safetensors` and `<name>_kohya.safetensors`, or a full pipeline;
`scheduler/`, `stepdistill.json` (the sampler contract), the model card `README.md` and `images/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepdistill.errors import ExportError
from stepdistill.export.contract import SamplerContract, apply_sampler, read_contract
from stepdistill.export.exporter import DEFAULT_PROMPTS, Exporter, Format

if TYPE_CHECKING:
    from stepdistill.distillers.base import Distiller

__all__ = ["ExportError", "SamplerContract", "apply_sampler", "export", "read_contract"]


def export(
    distiller: Distiller,
    folder: str | Path,
    *,
    formats: Sequence[Format] = ("diffusers", "kohya"),
    name: str | None = None,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    recipe: str | None = None,
    results: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    licence: str | None = None,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
    verify: bool = True,
) -> SamplerContract:
    """Write the distiller's student to a folder, reload it in a fresh process, and compare the images.

    Args:
        distiller: exports its student's current weights; within `Trainer.student_average()`, their average.
        folder: target folder; files of an earlier export are replaced, and only on success.
        formats: `diffusers` and `kohya` write LoRA files, `pipeline` a full pipeline. A full-copy student has no
            LoRA and always becomes a pipeline.
        name: model name; default: base model, method and steps.
        prompts: prompts of the reload gate, the card's code and its gallery.
        recipe: the resolved recipe as YAML, stored beside the weights.
        results: a `results.json` document for the card.
        base_model: hub id or folder of the teacher, if other than where it was loaded from.
        licence: licence of the base model; default: the one in a local base model's card.
        dtype: dtype of the written weights; default: float32 for LoRA, the teacher's for a pipeline.
        size: height and width of the images; default: the training resolution.
        verify: False skips the reload gate, which the card then states.

    Raises:
        ExportError: the reloaded export does not reproduce the trainer's images.
        UserError: the student cannot be exported, or the folder cannot be written.
    """
    return Exporter(
        distiller,
        Path(folder),
        formats=tuple(formats),
        name=name,
        prompts=tuple(prompts) or DEFAULT_PROMPTS,
        recipe=recipe,
        results=results,
        base_model=base_model,
        licence=licence,
        dtype=dtype,
        size=size,
        verify=verify,
    ).run()
