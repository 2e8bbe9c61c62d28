"""Load scorers by the name that their numbers carry. `docs/prompt_metrics.md` lists what each is comparable with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from stepdistill.errors import UserError
from stepdistill.metrics.scorers.aesthetic import aesthetic_scorer
from stepdistill.metrics.scorers.base import CallableScorer, PromptScorer
from stepdistill.metrics.scorers.clip_score import CLIP_VARIANTS, clip_scorer, emoji_clip_scorer
from stepdistill.metrics.scorers.external import CommandScorer
from stepdistill.metrics.scorers.hps import hps_scorer, hpsv3_scorer
from stepdistill.metrics.scorers.image_reward import image_reward_scorer
from stepdistill.metrics.scorers.pickscore import pick_scorer

SCORERS: Mapping[str, Callable[..., PromptScorer]] = {
    "emoji_clip": emoji_clip_scorer,
    **{name: partial(clip_scorer, name) for name in CLIP_VARIANTS},
    "hps/v2.0": partial(hps_scorer, "v2.0"),
    "hps/v2.1": partial(hps_scorer, "v2.1"),
    "hps/v3": hpsv3_scorer,
    "pickscore/logit": partial(pick_scorer, "logit"),
    "pickscore/cosine": partial(pick_scorer, "cosine"),
    "image_reward": image_reward_scorer,
    "aesthetic": aesthetic_scorer,
}
"""Constructors by name; their keyword arguments are the scorer's options."""

ALIASES = {
    "pickscore": "pickscore/logit",
    "hpsv2": "hps/v2.0",
    "hpsv2.1": "hps/v2.1",
    "hpsv3": "hps/v3",
    "imagereward": "image_reward",
}


def load_scorer(scorer: str | Callable[..., Any], **options: Any) -> PromptScorer:
    """Load a scorer of `SCORERS`, a function (also as `package.module:function`), or a command.

    Args:
        scorer: the name, or the function itself. With `command=...`, any name for the numbers.
        options: options of the scorer, such as `weights`, `tokenizer` or `command`; None means the default.

    Raises:
        UserError: the scorer or one of its options is unknown.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if callable(scorer):
        label = f"{scorer.__module__}:{getattr(scorer, '__qualname__', 'function')}"
        return CallableScorer(scorer, name=label)
    name = ALIASES.get(scorer, scorer)
    if name in SCORERS:
        _refuse_unknown(name, options)
        return SCORERS[name](**options)
    if options.keys() == {"command"}:
        return CommandScorer(options["command"], name=name)
    function = named_function(name)
    if options:
        raise UserError(f"'{name}' is a function and has no option '{next(iter(options))}'")
    return CallableScorer(function, name=name)


def named_function(name: str) -> Callable[..., Any]:
    """Import `package.module:name`.

    Raises:
        UserError: the name has no such form, or cannot be imported.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        near = difflib.get_close_matches(name, [*SCORERS, *ALIASES], n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"unknown scorer '{name}'{hint}; use one of {', '.join(SCORERS)}, or package.module:function with "
            "function(images, prompts) that returns one number per image"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the scorer '{name}' cannot be imported: {error}") from error


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(SCORERS[name]).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for key in options:
        if key not in known:
            raise UserError(f"{name} has no option '{key}'; it has {', '.join(known) or 'none'}")
