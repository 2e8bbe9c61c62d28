"""`results.json`: its schema, version 1.

`rows` is in every results.json of the project, one row per model. The document of one scored folder has `metrics` too: each
number with its standard error, count, variant and the hash of what it depends on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepdistill.errors import UserError
from stepdistill.evaluation.picture_store import write_text

RESULTS_NAME = "results.json"


class Part(BaseModel):
    """Mean over the prompts of a category."""

    model_config = ConfigDict(frozen=True)

    value: float
    standard_error: float | None = None
    n: int


class Number(BaseModel):
    """One measured number.

    Attributes:
        value: on the scale of published tables.
        standard_error: over prompts for means, by jackknife for Frechet distances; None if not estimated.
        n: number of pictures.
        variant: what the metric's name stands for.
        protocol: hash of everything the number depends on; only equal hashes are comparable.
        protocol_name: the protocol's name.
        title: as shown.
        better: 1 higher is better, -1 lower is better, 0 neither.
        reference: digest of the reference, if the metric has one.
        by_category: the mean for each category of prompts.
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
    """The model that drew the pictures.

    Attributes:
        name: shown in tables.
        source: path or hub id of the pipeline, or the folder of existing pictures.
        kind: `student`, `teacher` or `floor` (real pictures in place of a model's).
        method: of the student's training.
        lora: path or hub id of a LoRA.
        weights: hash of all weights; None for existing pictures.
        sampler: the sampler's name in tables; default: the scheduler's.
        sampler_search: Frechet distance of each stock sampler that was tried.
        arguments: further arguments of the pipeline's call.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    kind: str = "student"
    method: str | None = None
    lora: str | None = None
    weights: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    scheduler_config: dict[str, Any] = {}
    sampler: str | None = None
    sampler_search: dict[str, float] | None = None
    arguments: dict[str, Any] = {}
    dtype: str | None = None
    device: str | None = None


class CostRecord(BaseModel):
    """The cost of one picture, measured as `rules` say.

    Attributes:
        nfe: network evaluations; guided steps count twice.
        latency_s: median seconds at batch 1, from prompt to pixels.
        latency_network_s: without text encoder and decoder.
        images_per_s: at `rules.throughput_batch`.
        peak_memory_mib: of the GPU while drawing one picture; on a CPU, of the whole process since its start.
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


ROW_KEYS = {
    "fid": "frechet_distance",
    "fid_to_teacher": "frechet_distance_to_teacher",
    **{
        name: name
        for name in ("frechet_distance", "frechet_distance_to_teacher", "kid", "prompt_accuracy",
                     "background_error", "background_imbalance")
    },
    "clip": "clip_score",
    "caption_coverage": "coverage",
}  # fmt: skip
"""Columns of a row by the metric they show; of several metrics, the last that was measured."""


@dataclass(frozen=True)
class ResultRow:
    """One row of `results.json`. What was not measured is None, written as null."""

    model: str
    method: str | None = None
    steps: int | None = None
    nfe: float | None = None
    frechet_distance: float | None = None
    frechet_distance_to_teacher: float | None = None
    kid: float | None = None
    clip_score: float | None = None
    prompt_accuracy: float | None = None
    coverage: float | None = None
    background_error: float | None = None
    background_imbalance: float | None = None
    guidance_scale: float | None = None
    latency_s: float | None = None
    n: int | None = None
    name: str | None = None
    sampler: str | None = None
    images_per_s: float | None = None
    dtype: str | None = None
    device: str | None = None
    sampler_search: dict[str, float] | None = None

    @classmethod
    def of(cls, model: ModelRecord, numbers: Mapping[str, Number], cost: CostRecord, *, n: int) -> ResultRow:
        """The row of a model's numbers."""

        measured: dict[str, Any] = {key: numbers[name].value for name, key in ROW_KEYS.items() if name in numbers}
        costs = cost.model_dump(include={"nfe", "latency_s", "images_per_s"})
        facts = {"method", "steps", "guidance_scale", "name", "dtype", "device", "sampler", "sampler_search"}
        return cls(model=model.kind, n=n, **model.model_dump(include=facts), **costs, **measured)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> ResultRow:
        """A row from JSON; unknown keys are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})


class RunResults(BaseModel):
    """The document of one scored folder.

    Attributes:
        schema_version: of this document; other versions are rejected.
        schema_of_rows: of `rows`, written as `schema`.
        seeds: the protocol's seed, the rule for each picture's seed, and the first few.
        prompts: digest, number and the first few.
        pictures: digest and number.
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

    @property
    def row(self) -> ResultRow:
        """The model's row."""
        return ResultRow.read(self.rows[0])

    def write(self, folder: Path) -> Path:
        """Write `results.json` atomically; numbers that are not finite become null."""
        return write_document(self.model_dump(by_alias=True), folder)

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """Read a document, or that of a folder.

        Raises:
            UserError: it is missing, or has another version.
        """
        file = path / RESULTS_NAME if path.is_dir() else path
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"there is no {RESULTS_NAME} in '{path}'; run `stepdistill evaluate` first") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"'{file}' is not valid JSON: {error}") from None
        if content.get("schema_version") != 1:
            raise UserError(
                f"'{file}' is not the document of one scored folder; write one with `stepdistill evaluate --pipeline ... --out ...`, "
                "or give a folder below RUN/evaluation"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"'{file}' cannot be read: {str(error).splitlines()[0]}") from None


def write_document(document: Mapping[str, Any], folder: Path) -> Path:
    """Write a `results.json` atomically; numbers that are not finite become null."""
    path = folder / RESULTS_NAME
    write_text(path, json.dumps(_finite(dict(document)), indent=1, allow_nan=False) + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
