"""Run an export as its model card does: stock diffusers with the contract's scheduler and call arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepdistill.assets import resolve_path
from stepdistill.denoisers.loading import absent_components
from stepdistill.errors import UserError
from stepdistill.export.contract import CONTRACT_NAME, apply_sampler, read_contract

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_export(source: str | Path, *, base: str | None = None) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return a stock pipeline that runs an export, and its call arguments other than the prompt.

    Args:
        source: an export folder, or a run folder that contains one in `export/`.
        base: base model of a LoRA; default: the contract's.

    Raises:
        UserError: there is no export, or its base model cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    folder = Path(source)
    if not (folder / CONTRACT_NAME).is_file() and (folder / "export" / CONTRACT_NAME).is_file():
        folder = folder / "export"
    contract = read_contract(folder)
    is_folder = "pipeline" in contract.formats
    name = str(folder) if is_folder else str(resolve_path(base or contract.base_model or ""))
    try:
        config: Any = DiffusionPipeline.load_config(name)
        absent = absent_components(config)
        pipe = DiffusionPipeline.from_pretrained(name, dtype=torch.float32, **absent)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the base model '{name}'; pass its path with --base") from error
    for adapter in dict.fromkeys(contract.step_adapters):
        pipe.load_lora_weights(str(folder), weight_name=f"{adapter}.safetensors", adapter_name=adapter)
    if not is_folder and not contract.step_adapters:
        pipe.load_lora_weights(str(folder), weight_name=contract.lora_name)
    if torch.cuda.is_available():
        pipe.to("cuda")
    return pipe, apply_sampler(pipe, contract)


def sample_images(
    pipe: Any, call: dict[str, Any], prompts: Sequence[str], *, out: Path, seed: int = 0
) -> Iterator[Path]:
    """Sample an image per prompt, each with its own seed, to `out/00.png`, `out/01.png`, ..."""
    out.mkdir(parents=True, exist_ok=True)
    pipe.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(prompts):
        torch.manual_seed(seed + number)  # some schedulers draw step noise from the global generator
        path = out / f"{number:02d}.png"
        pipe(prompt, **call).images[0].save(path)
        yield path
