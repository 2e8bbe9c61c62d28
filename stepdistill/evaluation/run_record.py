"""What a scored run writes of itself: what draws in a folder, and the document of its numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepdistill.errors import UserError
from stepdistill.evaluation.document import CostRecord, ModelRecord, Number, RunResults
from stepdistill.evaluation.embedded.measurements import Row
from stepdistill.evaluation.pages.tables import RESULTS_NAME
from stepdistill.evaluation.picture_store import PictureRecord, write_text
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Benchmark, record_hash

VERSIONED = (
    "stepdistill", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow", "pyarrow",
)  # fmt: skip


def run_document(
    protocol: Benchmark,
    model: ModelRecord,
    records: Sequence[PictureRecord],
    numbers: dict[str, Number],
    cost: CostRecord,
) -> RunResults:
    """The whole of `results.json`."""
    prompts = [record for record in records if record.sample == 0]
    return RunResults(
        protocol=protocol.to_json(),
        prompts={
            "digest": prompts_digest(records),
            "n": len(prompts),
            "first": [each.prompt for each in prompts[:3]],
        },
        pictures=pictures_record(records),
        seeds={
            "protocol_seed": protocol.seed,
            "rule": "the first 63 bits of blake2b-64('SEED/PROMPT/SAMPLE')",
            "first": [record.seed for record in records[:3]],
        },
        model=model,
        metrics=numbers,
        cost=cost,
        versions=installed_versions(),
        rows=[contract_row(model, numbers, cost, len(records))],
    )


def earlier_numbers(out: Path, records: Sequence[PictureRecord]) -> dict[str, Number]:
    """What an earlier call measured on the very pictures that are here now."""
    path = out / RESULTS_NAME
    if not path.is_file():
        return {}
    earlier = RunResults.read(path)
    is_same = earlier.pictures == pictures_record(records) and earlier.prompts["digest"] == prompts_digest(
        records
    )
    return earlier.metrics if is_same else {}


def prompts_digest(records: Iterable[PictureRecord]) -> str:
    """Of the prompts in the manifest, which are there even for adopted pictures."""
    return PromptSet.of([record.prompt for record in records if record.sample == 0]).digest


def pictures_record(records: Sequence[PictureRecord]) -> dict[str, Any]:
    """Digest and number of the pictures."""
    return {"digest": record_hash({"pictures": [record.digest for record in records]}), "n": len(records)}


def claim(out: Path, identity: dict[str, Any], crew: Crew) -> None:
    """Note in `run.json` what draws here.

    Raises:
        UserError: something else does.
    """
    path = out / "run.json"
    identity = json.loads(json.dumps(identity))
    if crew.is_first and not path.is_file():
        try:
            write_text(path, json.dumps(identity, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write to '{out}': {error.strerror or error}; give another --out"
            ) from error
    crew.wait()
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if changed:
        raise UserError(
            f"'{out}' holds pictures of another run ({', '.join(changed)} differ); give another --out"
        )


def contract_row(model: ModelRecord, numbers: dict[str, Number], cost: CostRecord, n: int) -> dict[str, Any]:
    """The row that every results.json of the project has; what was not measured is null."""

    def value(*names: str) -> float | None:
        return next((numbers[name].value for name in names if name in numbers), None)

    row = Row(
        model=model.kind,
        steps=model.steps,
        nfe=cost.nfe,
        frechet_distance=value("frechet_distance", "fid"),
        frechet_distance_to_teacher=value("frechet_distance_to_teacher", "fid_to_teacher"),
        kid=value("kid"),
        clip_score=value("clip"),
        prompt_accuracy=value("prompt_accuracy"),
        background_error=value("background_error"),
        guidance_scale=model.guidance_scale,
        latency_s=cost.latency_s,
        n=n,
        name=model.name,
        sampler=model.scheduler,
        images_per_s=cost.images_per_s,
        dtype=model.dtype,
        device=model.device,
    )
    return vars(row).copy()


def installed_versions() -> dict[str, str]:
    """Versions of Python and of what takes part in the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
