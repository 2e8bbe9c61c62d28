"""Rewards by their name in a recipe: every scorer of `stepdistill.metrics`, or a user's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import ValidationError

from stepdistill.critics.config import RewardConfig
from stepdistill.critics.reward import Reward
from stepdistill.errors import UserError
from stepdistill.metrics.scorers.base import CallableScorer, NetworkScorer
from stepdistill.metrics.scorers.loading import load_scorer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_reward(reward: str | Mapping[str, Any] | RewardConfig) -> Reward:
    """Load a reward by a scorer's name, a recipe's `{name: ..., weights: ...}`, or `package.module:function`.

    Network scorers are differentiable in the images and move to their device; a command can only rank. Values are in the
    scorer's units: `clip/...` is 100 times the cosine, `emoji_clip` the cosine.

    Raises:
        UserError: the reward or one of its options is unknown, or its weights are missing.
    """
    try:
        config = RewardConfig.model_validate(reward)
        scorer = load_scorer(config.name, **config.options())
    except UserError as error:
        raise UserError(f"method.reward: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"method.reward.{where}: {problem['msg'].lower()}") from error
    if isinstance(scorer, NetworkScorer):
        return scorer.to(_DTYPES[config.dtype]).reward
    return cast(Reward, scorer.function if isinstance(scorer, CallableScorer) else scorer)
