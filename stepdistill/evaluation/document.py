"""`results.json` of a scored run: schema, reading and writing.

Version 1. `rows` is the view that every results.json of the project has (one row for each model); `metrics` is the whole of it, each number
with its standard error, count, variant and the hash of what it was taken under.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepdistill.errors import UserError
from stepdistill.evaluation.pages.tables import RESULTS_NAME
from stepdistill.evaluation.picture_store import write_text


class Part(BaseModel):
    """Mean over the prompts of one category."""

    model_config = ConfigDict(frozen=True)

    value: float
    standard_error: float | None = None
    n: int


class Number(BaseModel):
    """One measured number.

    Attributes:
        value: as published tables show it, scale included.
        standard_error: over prompts for means, by jackknife for Frechet distances; None where it was not estimated.
        n: pictures behind it.
        variant: what the metric's name stands for.
        protocol: hash of everything it was taken under; numbers of different hashes do not compare.
        protocol_name: the protocol's name, for people.
        title: as shown.
        better: 1 where higher is better, -1 where lower is, 0 where neither.
        reference: digest of the real pictures or statistics, where the metric has any.
        by_category: the same for each category of the prompts.
    """

    model_config = ConfigDict(frozen=True)

    value: float | None
    standard_error: float | None = None
    n: int
    variant: str
    protocol: str
    protocol_name: str = ""
    title: str
    better: int = 0
    reference: str | None = None
    by_category: dict[str, Part] = {}


class ModelRecord(BaseModel):
    """What drew the pictures.

    Attributes:
        name: as shown in tables.
        source: path or hub id of the pipeline, or the folder of pictures that were there.
        lora: path or hub id of a LoRA.
        weights: hash of all weights as they were used; None for pictures that were there.
        arguments: what the pipeline was called with, `steps` and `guidance_scale` included.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    kind: str = "student"
    lora: str | None = None
    weights: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    scheduler_config: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    dtype: str | None = None
    device: str | None = None


class CostRecord(BaseModel):
    """What one picture costs, by the rules in `rules`.

    Attributes:
        nfe: rows of the network's calls for one picture; guided steps count twice.
        latency_s: median seconds of one picture at batch 1, everything included.
        latency_network_s: the same without text encoder and decoder.
        images_per_s: at `rules.throughput_batch`.
        peak_memory_mib: of the device while drawing one picture; on a CPU of the whole process since its start.
    """

    model_config = ConfigDict(frozen=True)

    nfe: float | None = None
    latency_s: float | None = None
    latency_network_s: float | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    images_per_s: float | None = None
    peak_memory_mib: float | None = None
    device: str | None = None
    rules: dict[str, Any] = {}


class RunResults(BaseModel):
    """The document.

    Attributes:
        schema_version: of this document; other versions are refused.
        schema_of_rows: of `rows`, written as `schema`.
        seeds: the protocol's seed, the rule that makes each picture's own, and the first few.
        prompts: their digest, number and the first few.
        pictures: digest and number of the pictures.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: int = 1
    schema_of_rows: int = Field(default=1, alias="schema")
    protocol: dict[str, Any]
    prompts: dict[str, Any]
    pictures: dict[str, Any]
    seeds: dict[str, Any]
    model: ModelRecord
    metrics: dict[str, Number]
    cost: CostRecord = CostRecord()
    versions: dict[str, str]
    rows: list[dict[str, Any]] = []

    def write(self, folder: Path) -> Path:
        """Write `results.json` at once or not at all; a number that is not finite is null."""
        path = folder / RESULTS_NAME
        document = _finite(self.model_dump(by_alias=True))
        write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """Read a document, or the one in a folder.

        Raises:
            UserError: there is none, or it is of another version.
        """
        file = path / RESULTS_NAME if path.is_dir() else path
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"there is no {RESULTS_NAME} at '{path}'; run `stepdistill evaluate` first"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"'{file}' is not a {RESULTS_NAME}: {error}") from None
        if content.get("schema_version") != 1:
            raise UserError(
                f"'{file}' is not a scored run of version 1; make it with `stepdistill evaluate --pipeline ... --out ...`"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"'{file}' cannot be read: {str(error).splitlines()[0]}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
