"""What is kept of a set of images once they are scored, and how a row of `results.json` follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepdistill.evaluation.embedded.scorers import (
    Answers,
    background_error,
    background_imbalance,
    coverage,
    is_right,
)
from stepdistill.metrics.distances import frechet_distance_of_features, kernel_distance


@dataclass(frozen=True)
class Measurements:
    """Features and scores of N images, one row per image, in the order of the captions."""

    features: Tensor
    """What the distances are taken of (N, d)."""
    clip_scores: Tensor
    glyphs: Tensor
    backgrounds: Tensor
    colours: Tensor
    pictures: Tensor
    """The first few images as uint8 (P, 3, H, W), for grids."""
    nfe: float | None = None
    """Network evaluations per image, counted while generating."""
    seconds: float | None = None
    """Wall time per image while generating in batches."""

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def empty(cls, num_features: int) -> Measurements:
        """No image yet."""
        whole, none = torch.zeros(0, dtype=torch.long), torch.zeros(0)
        pictures = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        return cls(torch.zeros(0, num_features), none, whole, whole, torch.zeros(0, 3), pictures)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], **numbers: float | None) -> Measurements:
        """The inverse of `tensors`."""
        return cls(**{name: tensors[name] for name in _TENSORS}, **numbers)  # pyright: ignore[reportArgumentType]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: getattr(self, name) for name in _TENSORS}

    def first(self, n: int) -> Measurements:
        """The first n images."""
        kept = {name: tensor[:n] for name, tensor in self.tensors().items()}
        return Measurements.of(kept, nfe=self.nfe, seconds=self.seconds)

    @classmethod
    def cat(cls, parts: Sequence[Measurements], *, num_pictures: int = 16) -> Measurements:
        """All parts in order; counts and times are averaged by size."""
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
        tensors["pictures"] = tensors["pictures"][:num_pictures]
        return cls.of(tensors, nfe=_average(parts, "nfe"), seconds=_average(parts, "seconds"))

    def save(self, path: Path) -> None:
        """Write a safetensors file; the counts are its metadata."""
        numbers = {
            name: repr(getattr(self, name)) for name in ("nfe", "seconds") if getattr(self, name) is not None
        }
        temporary = path.with_suffix(".partial")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.tensors().items()},
            temporary,
            metadata=numbers,
        )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Measurements:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            numbers = {name: float(value) for name, value in (file.metadata() or {}).items()}
            return cls.of({name: file.get_tensor(name) for name in _TENSORS}, **numbers)


_TENSORS = ("features", "clip_scores", "glyphs", "backgrounds", "colours", "pictures")


def _average(parts: Sequence[Measurements], name: str) -> float | None:
    values = [(getattr(part, name), len(part)) for part in parts]
    if any(value is None for value, _ in values):
        return None
    return sum(value * n for value, n in values) / sum(n for _, n in values)


@dataclass(frozen=True)
class Row:
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
    """Frechet distance of each stock sampler that was tried, on the search's subset."""

    @classmethod
    def read(cls, record: dict[str, Any]) -> Row:
        """A row from JSON; keys of other versions are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})


@dataclass(frozen=True)
class Results:
    """The rows, the protocol they were taken under, and pictures of each row on the same noise."""

    protocol: dict[str, Any]
    rows: list[Row]
    pictures: dict[str, Tensor]
    captions: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document of `results.json`."""
        return {"schema": 1, "protocol": self.protocol, "rows": [asdict(row) for row in self.rows]}

    def row(self, name: str) -> Row:
        """The row of a generation by the name it was given."""
        return next(row for row in self.rows if row.name == name)


def distances(measured: Measurements, reference: Measurements) -> dict[str, float]:
    """Frechet and kernel distance of generated images to the reference."""
    return {
        "frechet_distance": frechet_distance_of_features(measured.features, reference.features),
        "kid": kernel_distance(measured.features, reference.features),
    }


def caption_scores(
    measured: Measurements, answers: Sequence[Answers], background_colours: Tensor
) -> dict[str, float]:
    """CLIP score, prompt accuracy and background error, means over images with one set of answers each; background imbalance."""
    right = _per_image(lambda i, a: is_right(measured.glyphs[i], measured.backgrounds[i], a), answers)
    errors = _per_image(lambda i, a: background_error(measured.colours[i], background_colours, a), answers)
    scores = {
        "clip_score": float(measured.clip_scores.double().mean()),
        "prompt_accuracy": float(right.double().mean()),
        "background_error": float(errors.double().mean()),
    }
    imbalance = background_imbalance(measured.backgrounds, answers)
    return scores if imbalance is None else {**scores, "background_imbalance": imbalance}


def _per_image(score: Callable[[slice, Answers], Tensor], answers: Sequence[Answers]) -> Tensor:
    return torch.cat([score(slice(i, i + 1), one) for i, one in enumerate(answers)])


def mean_coverage(measured: Measurements, answers: Sequence[Answers], num_seeds: int) -> float | None:
    """Coverage averaged over captions; `measured` holds `num_seeds` images of each caption in turn."""
    if not answers:
        return None
    groups = measured.glyphs.view(len(answers), num_seeds)
    return sum(coverage(glyphs, one) for glyphs, one in zip(groups, answers, strict=True)) / len(answers)
