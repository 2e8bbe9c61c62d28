"""Export a student as files that stock diffusers and ComfyUI load, and prove that they do.

An export folder holds `pytorch_lora_weights.safetensors` and `<name>_kohya.safetensors`, or a whole pipeline;
`scheduler/`, `stepdistill.json` (the sampler contract), the model card `README.md` and `images/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepdistill.export.contract import SamplerContract, apply_sampler, read_contract
from stepdistill.export.exporter import DEFAULT_PROMPTS, Exporter, Format
from stepdistill.export.gate import ExportError

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
    """Write the distiller's student to a folder, load it in a fresh process, and compare the images.

    Args:
        distiller: its student is exported as it is now; inside `Trainer.student_average()` that is the
            average.
        folder: what an earlier export left there is replaced, and only when all went well.
        formats: `diffusers` and `kohya` are LoRA files, `pipeline` is a whole pipeline. A student that is a
            full copy has no LoRA, so it is always a whole pipeline.
        name: of the model; default: base model, method and steps.
        prompts: for the gate, the card's code and its gallery.
        recipe: the resolved recipe as YAML; it is put beside the weights.
        results: a `results.json` document for the card.
        base_model: name of the teacher, where it differs from where it was loaded from.
        licence: of the base model; default: what a local base model's card says.
        dtype: of the written weights; default: float32 for LoRA, the teacher's for a pipeline.
        size: height and width of the images, if not those the network was trained at.
        verify: False skips the gate; the card then says so.

    Raises:
        ExportError: the export does not give the trainer's images.
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
