"""Mean scores of images for their prompts as torchmetrics metrics: every image's score is kept, with its standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from stepdistill.errors import UserError
from stepdistill.metrics.accumulators import Accumulator
from stepdistill.metrics.networks.clip import ClipNetwork
from stepdistill.metrics.preprocess import ImagesOrPictures
from stepdistill.metrics.scorers.base import PromptScorer
from stepdistill.metrics.scorers.clip_score import ClipScorer
from stepdistill.metrics.scorers.loading import load_scorer


@dataclass(frozen=True)
class ScoreSummary:
    """Scores of one scorer over one set of images."""

    mean: float
    standard_error: float | None
    """`std / sqrt(n)`; None for a single image."""
    n: int

    @classmethod
    def of(cls, scores: Tensor) -> ScoreSummary:
        """Summarise scores (N,).

        >>> ScoreSummary.of(torch.tensor([1.0, 3.0]))
        ScoreSummary(mean=2.0, standard_error=1.0, n=2)
        """
        n, values = len(scores), scores.double()
        error = float(values.std() / n**0.5) if n > 1 else None
        return cls(float(values.mean()), error, n)


# First default index of rank r is r times this, so that ranks never share one.
_INDICES_PER_RANK = 1 << 40


class PromptScore(Accumulator):
    """Mean score of images for their prompts.

    Every score is kept under its image's index, so ranks may see overlapping parts: each index counts once.

    >>> def brightness(images, prompts): return images.mean((1, 2, 3))
    >>> metric = PromptScore(brightness)
    >>> metric.update(torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]), ["night", "day"])
    >>> metric.compute(), metric.summary().standard_error
    (tensor(0.5000, dtype=torch.float64), 0.5)

    Args:
        scorer: a scorer, its name in `SCORERS`, or any function of images and prompts.
        options: options of a named scorer, such as `weights`.
    """

    higher_is_better = True
    scores: list[Tensor]
    indices: list[Tensor]

    def __init__(self, scorer: PromptScorer | str | Callable[..., Any], **options: Any) -> None:
        super().__init__()
        if isinstance(scorer, PromptScorer) and options:
            raise ValueError(f"{scorer.name} is already loaded and takes no options, such as {next(iter(options))}")
        self.scorer = scorer if isinstance(scorer, PromptScorer) else load_scorer(scorer, **options)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(
        self, images: ImagesOrPictures, prompts: Sequence[str], *, indices: Sequence[int] | None = None
    ) -> None:
        """Add images and their prompts. `indices` number them in the whole set; by default each rank counts its own."""
        if indices is None:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            start = sum(map(len, self.indices)) + rank * _INDICES_PER_RANK
            indices = range(start, start + len(prompts))
        if len(indices) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(indices)} indices")
        scores = self.scorer(images, prompts).detach().to(self.device, torch.float32)
        self.scores.append(scores)
        self.indices.append(torch.tensor(list(indices), dtype=torch.long, device=self.device))

    def compute(self) -> Tensor:
        """Return the mean, a float64 scalar."""
        return self._ordered()[1].double().mean()

    def per_image(self) -> tuple[Tensor, Tensor]:
        """Return the sorted indices and the score of each, gathered from all ranks."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._ordered()

    def summary(self) -> ScoreSummary:
        """Return mean, standard error and count over all ranks."""
        return ScoreSummary.of(self.per_image()[1])

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """Sorted indices and scores; a repeated index keeps its first score."""
        if len(self.scores) == 0:
            raise ValueError(f"{self.scorer.name}: no scores yet, call update first")
        indices, scores = dim_zero_cat(self.indices), dim_zero_cat(self.scores)
        order = indices.argsort(stable=True)
        indices, scores = indices[order], scores[order]
        is_first = torch.ones_like(indices, dtype=torch.bool)
        is_first[1:] = indices[1:] != indices[:-1]
        return indices[is_first], scores[is_first]


class CLIPScore(PromptScore):
    """100 times the cosine between image and caption in one CLIP model, with the model's own preprocessing."""

    def __init__(self, features: ClipNetwork) -> None:
        super().__init__(ClipScorer(features, name=f"clip/{features.name}"))


class HPSv2(PromptScore):
    """HPSv2: 100 times the cosine. Numbers of the two versions are not comparable."""

    def __init__(self, *, version: Literal["v2.0", "v2.1"], **options: Any) -> None:
        super().__init__(f"hps/{version}", **options)


class PickScore(PromptScore):
    """PickScore; `logit` is the model card's form (about 20), `cosine` that of PSO (about 0.2)."""

    def __init__(self, *, form: Literal["logit", "cosine"] = "logit", **options: Any) -> None:
        super().__init__(f"pickscore/{form}", **options)


class ImageReward(PromptScore):
    """ImageReward-v1.0."""

    def __init__(self, **options: Any) -> None:
        super().__init__("image_reward", **options)


class AestheticScore(PromptScore):
    """The LAION aesthetic score; prompts are ignored."""

    def __init__(self, **options: Any) -> None:
        super().__init__("aesthetic", **options)


def write_scores(
    path: str | Path,
    prompts: Sequence[str],
    columns: Mapping[str, Tensor],
    descriptions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a parquet file with one row per image: `index`, `prompt`, and one column per scorer.

    Args:
        path: the file.
        prompts: prompts of all images, in order.
        columns: scores (N,) by the scorer's name.
        descriptions: `description()` of each scorer, stored in the file's metadata.
    """
    table = {"index": pa.array(range(len(prompts)), pa.int64()), "prompt": pa.array(prompts, pa.string())}
    for name, scores in columns.items():
        if len(scores) != len(prompts):
            raise ValueError(f"{name}: {len(scores)} scores but {len(prompts)} prompts")
        table[name] = pa.array(scores.float().cpu().numpy())
    metadata = {"scorers": json.dumps(list(map(dict, descriptions)))}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path)


def read_scores(path: str | Path) -> tuple[list[str], dict[str, Tensor], list[dict[str, Any]]]:
    """Read prompts, columns and descriptions from a file written by `write_scores`.

    Raises:
        UserError: the file is not parquet.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as parquet scores: {error}") from error
    names = [name for name in table.column_names if name not in ("index", "prompt")]
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in names}
    metadata = table.schema.metadata or {}
    return table["prompt"].to_pylist(), columns, json.loads(metadata.get(b"scorers", b"[]"))
