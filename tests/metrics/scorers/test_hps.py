"""HPSv2 from its published file, its benchmark, and HPSv3 in an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_reference as reference
import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import load_scorer
from stepdistill.metrics.networks.clip_checkpoints import CLIP_CHECKPOINTS
from stepdistill.metrics.networks.weights import sha256
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.hps import grouped, hps_benchmark, hpsv3_scorer

SIDE = reference.PATCH * reference.GRID
PROMPTS = ["ab", "c & d"]


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_of_the_published_file(
    weights: Path, publish: Any, cosines: Any, images: torch.Tensor, antialias: bool
) -> None:
    publish("hps-v2.1", weights)
    scorer = load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words", antialias=antialias)
    expected = 100 * cosines(Preprocess(SIDE, resize="tensor", antialias=antialias), PROMPTS)
    assert torch.allclose(scorer(images, ["ab", "c &amp; d"]), expected, atol=1e-3)
    assert scorer.name == ("hps/v2.1" if antialias else "hps/v2.1-aliased")
    assert scorer.description()["model"] == f"hps-v2.1@{sha256(weights)[:8]}"
    assert scorer.description()["transform"]["antialias"] == antialias


def test_the_two_versions_are_not_interchangeable(weights: Path) -> None:
    """Under the published name the checksum decides: v2.0's file is refused as v2.1, and so is any other."""
    with pytest.raises(UserError, match=r"not the published HPS_v2\.1_compressed\.pt"):
        load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words")
    checksums = {published.file.sha256 for published in CLIP_CHECKPOINTS.values()}
    assert len(checksums) == len(CLIP_CHECKPOINTS)


def test_the_benchmarks_table_groups_by_eighty() -> None:
    rng = np.random.default_rng(0)
    styles = {name: rng.normal(27, 2, 800) for name in ("anime", "photo")}
    table = hps_benchmark({name: torch.from_numpy(values) for name, values in styles.items()})
    for name, values in styles.items():
        means = values.reshape(10, 80).mean(1)
        assert table[name] == pytest.approx((means.mean(), means.std()), rel=1e-12)
    assert table["average"][0] == pytest.approx(np.concatenate(list(styles.values())).mean(), rel=1e-12)
    assert table["average"][1] is None
    assert grouped(torch.arange(100.0))[0] == pytest.approx((39.5 + 89.5) / 2)


def test_hpsv3_runs_in_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the environment: the interface of hpsv3 1.0.0 in 12 pictures, more than a batch of the bridge."""
    (tmp_path / "hpsv3.py").write_text(
        "class Pair(list):\n    pass\n"
        "class HPSv3RewardInferencer:\n"
        "    def __init__(self, config_path=None, checkpoint_path=None, device='cuda', differentiable=False):\n"
        "        assert device == 'cpu'\n"
        "    def reward(self, image_paths, prompts):\n"
        "        assert all(path.endswith('.png') for path in image_paths) and len(prompts) <= 8\n"
        "        return [Pair([float(prompt), 99.0]) for prompt in prompts]\n"
    )
    (tmp_path / "torch.py").write_text(
        "import contextlib\nno_grad = contextlib.nullcontext\n"
        "class cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    images = torch.zeros(12, 3, 2, 2)
    scores = hpsv3_scorer(python=sys.executable)(images, [str(number) for number in range(12)])
    assert scores.tolist() == list(map(float, range(12)))
    assert hpsv3_scorer(python="/env/bin/python").name == "hps/v3"


def test_hpsv3_needs_its_environment() -> None:
    with pytest.raises(UserError, match=r"python=/path/to"):
        hpsv3_scorer()
