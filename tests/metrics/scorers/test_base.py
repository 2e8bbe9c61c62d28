"""Functions as scorers, and prompt counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stepdistill.metrics.scorers.base import CallableScorer


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_any_function_scores(form: Any) -> None:
    scorer = CallableScorer(lambda images, prompts: form([float(len(p)) for p in prompts]), name="length")
    assert scorer(torch.zeros(2, 3, 4, 4), ["ab", "c d"]).tolist() == [2.0, 3.0]
    assert scorer.description() == {"name": "length"}


def test_a_function_with_one_number_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(\) for 2 images"):
        CallableScorer(lambda images, prompts: images.mean(), name="mean")(torch.zeros(2, 3, 4, 4), ["ab", "c d"])
