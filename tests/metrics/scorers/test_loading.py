"""Scorers by name: options, suggestions, commands and functions."""

from __future__ import annotations

import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import load_scorer
from stepdistill.metrics.scorers.external import CommandScorer
from stepdistill.metrics.scorers.loading import ALIASES, SCORERS


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"hps/v2\.0 has no option 'wights'; it has weights, tokenizer"):
        load_scorer("hpsv2", wights="x")
    with pytest.raises(UserError, match="emoji_clip has no option 'weights'; it has none"):
        load_scorer("emoji_clip", weights="x")
    with pytest.raises(UserError, match="is a function and has no option 'weights'"):
        load_scorer("torch:numel", weights="x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picscore", "did you mean 'pickscore'"),
        ("hps", r"use one of .*hps/v2\.1"),
        ("no_such_module:f", "cannot be imported"),
        ("torch:no_such_thing", "cannot be imported"),
    ],
)
def test_unknown_names_say_what_to_write(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(name)


def test_commands_and_functions_have_names() -> None:
    scorer = load_scorer("my-judge", command=["judge"])
    assert isinstance(scorer, CommandScorer)
    assert scorer.name == "my-judge"
    assert load_scorer("torch:numel").name == "torch:numel"
    assert load_scorer(torch.numel).name.endswith("numel")
    assert isinstance(load_scorer("hpsv3", command="judge --v3"), CommandScorer)
    assert set(ALIASES.values()) <= set(SCORERS)
