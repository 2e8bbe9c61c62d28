"""HPSv2 (https://arxiv.org/abs/2306.09341) with its benchmark's table, and HPSv3 (https://arxiv.org/abs/2508.03789)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.networks.clip_checkpoints import Backend, label_of, load_clip
from stepdistill.metrics.networks.weights import Location
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.clip_score import ClipScorer
from stepdistill.metrics.scorers.external import CommandScorer


def hps_scorer(
    version: Literal["v2.0", "v2.1"],
    *,
    weights: Location = None,
    tokenizer: Location = None,
    backend: Backend = "transformers",
    antialias: bool = True,
) -> ClipScorer:
    """Load HPSv2: 100 times the cosine, as in the benchmark's tables; `hpsv2.score` returns a hundredth of it.

    Args:
        version: numbers of v2.0 and v2.1 are not comparable.
        weights: the published file, or another model in its place; see `load_clip`.
        tokenizer: folder of the tokenizer.
        backend: `transformers` or `open_clip`.
        antialias: False resizes as torchvision before 0.17, which computed the benchmark's first tables.
    """
    model = f"hps-{version}"
    features = load_clip(model, weights=weights, tokenizer=tokenizer, backend=backend)
    label = f"hps/{version}" if antialias else f"hps/{version}-aliased"
    return ClipScorer(
        features,
        name=label_of(label, model, features),
        scale=100.0,
        is_unescaped=True,
        preprocess=Preprocess(features.image_size, resize="tensor", antialias=antialias),
    )


def hps_benchmark(styles: Mapping[str, Tensor]) -> dict[str, tuple[float, float | None]]:
    """Compute the HPSv2 benchmark's table: each style by `grouped`, and `average` over all pictures.

    Args:
        styles: scores of anime, concept-art, paintings and photo, in the order of the benchmark's prompts.
    """
    every = torch.cat(list(styles.values())).double()
    table: dict[str, tuple[float, float | None]] = {name: grouped(scores) for name, scores in styles.items()}
    return table | {"average": (float(every.mean()), None)}


def grouped(scores: Tensor, size: int = 80) -> tuple[float, float]:
    """Mean and standard deviation (over N) of the means of consecutive groups, as the benchmark reports a style.

    A style has 800 prompts, hence ten groups of 80. A smaller last group has the same weight.

    >>> grouped(torch.tensor([1.0, 3.0, 5.0, 7.0]), size=2)
    (4.0, 2.0)
    """
    means = torch.stack([part.mean() for part in scores.double().split(size)])
    return float(means.mean()), float(means.std(correction=0))


def hpsv3_scorer(*, python: str | Path | None = None, command: str | Sequence[str] | None = None) -> CommandScorer:
    """Create HPSv3, the mean of the reward predicted by a 7B model, run in an environment of its own.

    Args:
        python: interpreter of an environment with `pip install hpsv3`; it runs `hpsv3_bridge.py`.
        command: instead, any command that follows the protocol of `scorers/external.py`.

    Raises:
        UserError: neither is given.
    """
    if command is None and python is None:
        raise UserError(
            "hps/v3 runs in its own environment: pip install hpsv3 there, and give python=/path/to/its/bin/python"
        )
    bridge = Path(__file__).with_name("hpsv3_bridge.py")
    return CommandScorer(command or [str(python), str(bridge)], name="hps/v3")
