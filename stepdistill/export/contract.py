"""The sampler contract `stepdistill.json`: how to run the exported student, in machine-readable form.

A few-step student only works on its training grid, which stock defaults miss: a flow pipeline called with four
steps spends the last one at t = 0.009. `apply_sampler` sets the scheduler and returns the call arguments.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepdistill.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONTRACT_NAME = "stepdistill.json"
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


class Verification(BaseModel):
    """Result of the reload gate for one exported format.

    Attributes:
        max_difference: maximum absolute difference from the trainer's images in [0, 1].
        mean_difference: mean absolute difference.
        tolerance: upper bound of the statistic.
        statistic: the difference that `tolerance` bounds.
        effect: maximum difference between the student's images and its teacher's with the same sampler.
    """

    model_config = ConfigDict(frozen=True)

    max_difference: float
    mean_difference: float
    tolerance: float
    statistic: Literal["max", "mean"]
    effect: float

    @property
    def passed(self) -> bool:
        """Whether the bound holds; NaN fails."""
        return (self.max_difference if self.statistic == "max" else self.mean_difference) <= self.tolerance


class SamplerContract(BaseModel):
    """Contents of `stepdistill.json`.

    Attributes:
        scheduler: class name in diffusers.
        scheduler_config: same as `scheduler/scheduler_config.json`.
        steps: network calls per image.
        timesteps: training indices of the grid; None for flow models.
        sigmas: `sigmas` of the pipeline call, before the scheduler's shift; None for VP models.
        guidance_scale: of the pipeline call; 1.0 is off.
        kind: `sde` adds fresh noise between steps, `ode` reuses the predicted noise.
        call: keyword arguments of the pipeline call.
        step_adapters: LoRA of each step (`<name>.safetensors`) for a student of several experts; else empty.
        times: the student's grid, t in [0, 1] with 1 = noise.
        verified: results of the reload gate by format; empty if it was skipped.
        files: size and SHA-256 of each file.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(default=1, alias="schema")
    name: str
    method: str
    base_model: str | None
    pipeline: str
    component: str
    scheduler: str
    scheduler_config: dict[str, Any]
    steps: int
    timesteps: list[int] | None = None
    sigmas: list[float] | None = None
    guidance_scale: float = 1.0
    kind: Literal["sde", "ode"]
    call: dict[str, Any]
    step_adapters: list[str] = []
    times: list[float]
    dtype: str = "float32"
    formats: list[str]
    versions: dict[str, str]
    recipe_hash: str | None = None
    verified: dict[str, Verification] = {}
    files: dict[str, dict[str, Any]] = {}

    @property
    def kohya_name(self) -> str:
        """File name of the LoRA for ComfyUI."""
        return f"{self.name}_kohya.safetensors"

    @property
    def lora_name(self) -> str | None:
        """File name of the LoRA to load with diffusers; None for a pipeline or for several experts."""
        if self.step_adapters:
            return None
        names = {"diffusers": DIFFUSERS_NAME, "kohya": self.kohya_name}
        return next((name for kind, name in names.items() if kind in self.formats), None)


def write_contract(contract: SamplerContract, folder: Path) -> Path:
    """Write `stepdistill.json` to the folder."""
    path = folder / CONTRACT_NAME
    path.write_text(json.dumps(contract.model_dump(by_alias=True), indent=2) + "\n")
    return path


def read_contract(folder: str | Path) -> SamplerContract:
    """Read the contract of an export folder.

    Raises:
        UserError: the folder has no contract, or it is invalid.
    """
    path = Path(folder) / CONTRACT_NAME
    try:
        return SamplerContract.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"'{folder}' is not an export: it has no {CONTRACT_NAME}") from None
    except (OSError, ValidationError) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}; export again") from None


def apply_sampler(pipeline: DiffusionPipeline, source: str | Path | SamplerContract) -> dict[str, Any]:
    """Set the few-step scheduler of an export on a stock pipeline and return its call arguments.

    ```python
    pipe.load_lora_weights("out", weight_name="pytorch_lora_weights.safetensors")
    image = pipe("woman astronaut", **apply_sampler(pipe, "out")).images[0]
    ```

    Raises:
        UserError: the export belongs to a different pipeline family.
    """
    import diffusers

    contract = source if isinstance(source, SamplerContract) else read_contract(source)
    if contract.component not in pipeline.components:
        raise UserError(
            f"the export '{contract.name}' is for a {contract.pipeline}; "
            f"a {type(pipeline).__name__} has no {contract.component}"
        )
    pipeline.scheduler = getattr(diffusers, contract.scheduler).from_config(contract.scheduler_config)
    if not contract.step_adapters:
        return dict(contract.call)
    return {**contract.call, "callback_on_step_end": switch_adapters(pipeline, contract.step_adapters)}


def switch_adapters(pipeline: Any, step_adapters: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Activate the adapter of the first step and return the callback that activates each next one, cyclically.

    The adapters must be loaded under these names.
    """

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.set_adapters(step_adapters[(step + 1) % len(step_adapters)])
        return tensors

    pipeline.set_adapters(step_adapters[0])
    return switch


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config without private entries (leading underscore)."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that load the export."""
    names = ("stepdistill", "diffusers", "transformers", "peft", "torch", "safetensors")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of all files below the folder, except the contract itself."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CONTRACT_NAME:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 24):
                    digest.update(chunk)
            name = path.relative_to(folder).as_posix()
            digests[name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return digests
