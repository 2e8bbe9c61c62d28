"""The records an output folder keeps of itself: what draws its pictures, and the document of its numbers."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepdistill.errors import UserError
from stepdistill.evaluation.document import RESULTS_NAME, CostRecord, ModelRecord, Number, ResultRow, RunResults
from stepdistill.evaluation.picture_store import PictureRecord, write_text
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Protocol, record_hash

VERSIONED = (
    "stepdistill", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow", "pyarrow",
)  # fmt: skip


def run_document(
    protocol: Protocol,
    model: ModelRecord,
    records: Sequence[PictureRecord],
    numbers: Mapping[str, Number],
    cost: CostRecord,
) -> RunResults:
    """The document of a scored folder."""
    prompts = [record for record in records if record.sample == 0]
    return RunResults(
        protocol=protocol.to_json(),
        prompts={"digest": prompts_digest(records), "n": len(prompts), "first": [each.prompt for each in prompts[:3]]},
        pictures=pictures_record(records),
        seeds={
            "protocol_seed": protocol.seed,
            "rule": "the first 63 bits of blake2b-64('SEED/PROMPT/SAMPLE')",
            "first": [record.seed for record in records[:3]],
        },
        model=model,
        metrics=dict(numbers),
        cost=cost,
        versions=installed_versions(),
        rows=[asdict(ResultRow.of(model, numbers, cost, n=len(records)))],
    )


def earlier_numbers(out: Path, records: Sequence[PictureRecord]) -> dict[str, Number]:
    """Numbers an earlier call measured on these very pictures."""
    path = out / RESULTS_NAME
    if not path.is_file():
        return {}
    earlier = RunResults.read(path)
    is_same = earlier.pictures == pictures_record(records) and earlier.prompts["digest"] == prompts_digest(records)
    return earlier.metrics if is_same else {}


def prompts_digest(records: Iterable[PictureRecord]) -> str:
    """Digest of the manifest's prompts."""
    return PromptSet.of([record.prompt for record in records if record.sample == 0]).digest


def pictures_record(records: Sequence[PictureRecord]) -> dict[str, Any]:
    """Digest and number of the pictures."""
    return {"digest": record_hash({"pictures": [record.digest for record in records]}), "n": len(records)}


def identity(protocol: Protocol, model: ModelRecord, file_format: str) -> dict[str, Any]:
    """Everything the pictures depend on, apart from the prompts. Weights identify a model wherever it is stored."""
    words = {"name", "kind", "method", "device", "sampler", "sampler_search"}
    paths = set() if model.weights is None else {"source", "lora"}
    record = {
        "seed": protocol.seed,
        "samples_per_prompt": protocol.samples_per_prompt,
        "rounding": protocol.rounding,
        "file_format": file_format,
        **model.model_dump(exclude=words | paths),
    }
    return json.loads(json.dumps(record))


def claim(out: Path, identity: Mapping[str, Any], group: ProcessGroup, *, overwrite: bool = False) -> None:
    """Write to `run.json` what draws in this folder, or compare with what it says.

    Args:
        out: the output folder.
        identity: what the pictures depend on.
        group: the processes that share the folder.
        overwrite: whether pictures of another model are deleted.

    Raises:
        UserError: the folder has pictures of another model or protocol.
    """
    path = out / "run.json"
    if group.is_main:
        if overwrite and path.is_file() and _changes(path, identity):
            shutil.rmtree(out)
        if not path.is_file():
            try:
                write_text(path, json.dumps(identity, indent=1) + "\n")
            except OSError as error:
                raise UserError(f"cannot write to '{out}': {error.strerror or error}; give another --out") from error
    group.barrier()
    if changed := _changes(path, identity):
        raise UserError(f"'{out}' has pictures of another run ({', '.join(changed)} changed); give another --out")


def _changes(path: Path, identity: Mapping[str, Any]) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return sorted(key for key, value in identity.items() if found.get(key) != value)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
