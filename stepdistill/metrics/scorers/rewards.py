"""Rewards by name, as recipes write them: every scorer of `stepdistill.metrics`, or any function of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import ValidationError

from stepdistill.critics.config import RewardConfig
from stepdistill.critics.reward import Reward
from stepdistill.errors import UserError
from stepdistill.metrics.scorers.named_scorers import load_scorer
from stepdistill.metrics.scorers.prompt_scorers import CallableScorer, NetworkScorer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_reward(reward: str | Mapping[str, Any] | RewardConfig) -> Reward:
    """A reward by the name of a scorer, by a recipe's `{name: ..., weights: ...}`, or by `package.module:function`.

    The scorers that are networks are differentiable in the images and follow them to their device; a command of the user's
    can only rank. Values are in the scorer's own units: `clip/...` are 100 times the cosine, `emoji_clip` is the cosine.

    Raises:
        UserError: there is no such reward, it has no such option, or its weights are missing.
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
