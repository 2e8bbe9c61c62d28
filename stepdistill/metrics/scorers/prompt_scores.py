"""Scores of many pictures: kept one by one, with their mean and its standard error, as torchmetrics classes."""

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
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from stepdistill.errors import UserError
from stepdistill.metrics.preprocess import ImagesOrPictures
from stepdistill.metrics.scorers.named_scorers import load_scorer
from stepdistill.metrics.scorers.prompt_scorers import PromptScorer


@dataclass(frozen=True)
class ScoreSummary:
    """Of one scorer over one set of pictures."""

    mean: float
    standard_error: float | None
    """Of the mean, `std / sqrt(n)`; None of fewer than two pictures."""
    n: int

    @classmethod
    def of(cls, scores: Tensor) -> ScoreSummary:
        """Mean and standard error of scores (N,).

        >>> ScoreSummary.of(torch.tensor([1.0, 3.0]))
        ScoreSummary(mean=2.0, standard_error=1.0, n=2)
        """
        n, values = len(scores), scores.double()
        error = float(values.std() / n**0.5) if n > 1 else None
        return cls(float(values.mean()), error, n)


_PER_RANK = 1 << 40
"""Indices that a rank counts on by itself: they never meet those of another rank."""


class PromptScore(Metric):
    """Mean score of pictures for their prompts.

    Every picture's score is kept under its index, so ranks may see overlapping parts and a summary counts each picture once.

    >>> def brightness(images, prompts): return images.mean((1, 2, 3))
    >>> metric = PromptScore(brightness)
    >>> metric.update(torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]), ["night", "day"])
    >>> metric.compute(), metric.summary().standard_error
    (tensor(0.5000, dtype=torch.float64), 0.5)

    Args:
        scorer: a scorer, its name in `SCORERS`, or any function of images and prompts.
        options: of a named scorer, such as `weights`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    indices: list[Tensor]

    def __init__(self, scorer: PromptScorer | str | Callable[..., Any], **options: Any) -> None:
        super().__init__()
        if isinstance(scorer, PromptScorer) and options:
            raise ValueError(
                f"{scorer.name} is made already and takes no options, such as {next(iter(options))}"
            )
        self.scorer = scorer if isinstance(scorer, PromptScorer) else load_scorer(scorer, **options)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(
        self, images: ImagesOrPictures, prompts: Sequence[str], *, indices: Sequence[int] | None = None
    ) -> None:
        """Take in pictures, a prompt for each, and their numbers in the whole set (default: counted on, rank by rank)."""
        if indices is None:
            start = sum(map(len, self.indices)) + _rank() * _PER_RANK
            indices = range(start, start + len(prompts))
        if len(indices) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(indices)} indices")
        scores = self.scorer(images, prompts).detach().to(self.device, torch.float32)
        self.scores.append(scores)
        self.indices.append(torch.tensor(list(indices), dtype=torch.long, device=self.device))

    def compute(self) -> Tensor:
        """The mean, a float64 scalar."""
        return self._ordered()[1].double().mean()

    def per_image(self) -> tuple[Tensor, Tensor]:
        """Indices in order and the score of each, gathered from all ranks."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._ordered()

    def summary(self) -> ScoreSummary:
        """Mean, standard error and count, over all ranks."""
        return ScoreSummary.of(self.per_image()[1])

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """By index; of an index seen twice the first score."""
        if len(self.scores) == 0:
            raise ValueError(f"{self.scorer.name}: no picture was taken in")
        indices, scores = dim_zero_cat(self.indices), dim_zero_cat(self.scores)
        order = indices.argsort(stable=True)
        indices, scores = indices[order], scores[order]
        is_first = torch.ones_like(indices, dtype=torch.bool)
        is_first[1:] = indices[1:] != indices[:-1]
        return indices[is_first], scores[is_first]


class HPSv2(PromptScore):
    """HPSv2 of the version that is named: 100 times the cosine. Numbers of the two versions are never compared."""

    def __init__(self, *, version: Literal["v2.0", "v2.1"], **options: Any) -> None:
        super().__init__(f"hps/{version}", **options)


class PickScore(PromptScore):
    """PickScore; `logit` is the model card's form (about 20), `cosine` the one of about 0.2."""

    def __init__(self, *, form: Literal["logit", "cosine"] = "logit", **options: Any) -> None:
        super().__init__(f"pickscore/{form}", **options)


class ImageReward(PromptScore):
    """ImageReward-v1.0."""

    def __init__(self, **options: Any) -> None:
        super().__init__("image_reward", **options)


class AestheticScore(PromptScore):
    """The LAION aesthetic score; prompts are not read."""

    def __init__(self, **options: Any) -> None:
        super().__init__("aesthetic", **options)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def grouped(scores: Tensor, size: int = 80) -> tuple[float, float]:
    """Mean and standard deviation (over N) of the means of consecutive groups: how the HPSv2 benchmark reports a style.

    Its styles have 800 prompts, so ten groups of 80. A last group may be smaller, and counts as much.

    >>> grouped(torch.tensor([1.0, 3.0, 5.0, 7.0]), size=2)
    (4.0, 2.0)
    """
    means = torch.stack([part.mean() for part in scores.double().split(size)])
    return float(means.mean()), float(means.std(correction=0))


def hps_benchmark(styles: Mapping[str, Tensor]) -> dict[str, tuple[float, float | None]]:
    """The HPSv2 benchmark's table (https://arxiv.org/abs/2306.09341): each style by `grouped`, and `average` over all pictures.

    Args:
        styles: anime, concept-art, paintings and photo, each with the scores of its prompts in the benchmark's order.
    """
    every = torch.cat(list(styles.values())).double()
    table: dict[str, tuple[float, float | None]] = {"average": (float(every.mean()), None)}
    return {style: grouped(scores) for style, scores in styles.items()} | table


def write_scores(
    path: str | Path,
    prompts: Sequence[str],
    columns: Mapping[str, Tensor],
    descriptions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """A parquet file with one row per picture: `index`, `prompt`, and a column of scores under each scorer's name.

    Args:
        path: the file.
        prompts: of all pictures, in order.
        columns: scores (N,) by name.
        descriptions: of the scorers, kept in the file's metadata.
    """
    table = {"index": pa.array(range(len(prompts)), pa.int64()), "prompt": pa.array(prompts, pa.string())}
    for name, scores in columns.items():
        if len(scores) != len(prompts):
            raise ValueError(f"{name}: {len(scores)} scores of {len(prompts)} pictures")
        table[name] = pa.array(scores.float().cpu().numpy())
    metadata = {"scorers": json.dumps(list(map(dict, descriptions)))}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path)


def read_scores(path: str | Path) -> tuple[list[str], dict[str, Tensor], list[dict[str, Any]]]:
    """Prompts, columns and descriptions that `write_scores` wrote.

    Raises:
        UserError: it is no such file.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is no parquet file of scores: {error}") from error
    names = [name for name in table.column_names if name not in ("index", "prompt")]
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in names}
    metadata = table.schema.metadata or {}
    return table["prompt"].to_pylist(), columns, json.loads(metadata.get(b"scorers", b"[]"))
