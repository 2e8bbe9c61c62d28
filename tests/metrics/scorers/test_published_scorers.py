"""The published weights: values that their authors print, and relations that must hold. Fetches about 20 GB.

`STEPDISTILL_NETWORK_TESTS=1 python -m pytest tests/metrics/scorers/test_published_scorers.py`
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from stepdistill.metrics.networks.weights import WeightFile
from stepdistill.metrics.scorers.clip_score import CLIP_VARIANTS
from stepdistill.metrics.scorers.loading import load_scorer

pytestmark = pytest.mark.network

PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
OTHER = "a portrait of a bearded man in a red suit, studio light"
ADDRESS = "https://raw.githubusercontent.com/THUDM/ImageReward/main/assets/images"
HASHES = {
    "1.webp": "a5fcd126763da8b3fe2a9e620fc1ba03d215d20de36c77bf6770a540a9bc972d",
    "2.webp": "dc13919a49a37987d19c8be3ba0c1ef2941570f820f90fb66ac91a9a9db24082",
    "3.webp": "ee859bac167e6a04cbcde63454757b6fc7d9b8704429c15725ca8c4accf176e3",
    "4.webp": "84faf59d59d9ca7ab298c9acb957d727365ae104768ac1a1ec55ab96be68aaf9",
}
PRINTED = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
"""ImageReward's README, "Example Use": rewards of the four pictures for the prompt."""


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """The four example pictures of ImageReward's repository, best first."""
    files: list[Path] = [
        WeightFile(f"image-reward-{name}", digest, url=f"{ADDRESS}/{name}").locate() for name, digest in HASHES.items()
    ]
    return [Image.open(file).convert("RGB") for file in files]


def test_image_reward_gives_the_printed_rewards(pictures: list[Image.Image]) -> None:
    scores = load_scorer("image_reward")(pictures, [PROMPT] * 4)
    assert scores.tolist() == pytest.approx(PRINTED, abs=0.02)


@pytest.mark.parametrize("name", [*CLIP_VARIANTS, "hps/v2.0", "hps/v2.1", "pickscore/logit", "image_reward"])  # fmt: skip
def test_the_right_prompt_scores_above_another(pictures: list[Image.Image], name: str) -> None:
    scorer = load_scorer(name)
    assert scorer(pictures[:1], [PROMPT]) > scorer(pictures[:1], [OTHER])


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_hps_lies_where_its_benchmark_lies(pictures: list[Image.Image], version: str) -> None:
    """The benchmark's tables run from 14 to 33; the best of the four is liked more than the worst."""
    scores = load_scorer(f"hps/{version}")(pictures, [PROMPT] * 4)
    assert 10 < scores.min() < scores.max() < 40
    assert scores[0] > scores[3]


def test_pickscores_two_forms_differ_by_the_models_own_factor(pictures: list[Image.Image]) -> None:
    logit, cosine = (load_scorer(f"pickscore/{form}")(pictures, [PROMPT] * 4) for form in ("logit", "cosine"))
    assert torch.allclose(logit / cosine, (logit / cosine)[:1].expand(4), rtol=1e-4)
    assert 50 < float(logit[0] / cosine[0]) < 150


def test_the_aesthetic_score_is_on_its_scale(pictures: list[Image.Image]) -> None:
    scores = load_scorer("aesthetic")(pictures, [""] * 4)
    assert 1 < scores.min() < scores.max() < 10
