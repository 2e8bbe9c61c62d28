"""Per-image scores: mean, standard error, order, ranks, parquet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import CLIPScore, HPSv2, PickScore, PromptScore
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.scorers.clip_score import ClipScorer
from stepdistill.metrics.scorers.prompt_score import ScoreSummary, read_scores, write_scores

VALUES = torch.rand(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


def by_prompt(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return VALUES[[int(prompt) for prompt in prompts]]


def fill(metric: PromptScore, indices: list[int], batch: int) -> PromptScore:
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        metric.update(torch.zeros(len(part), 3, 2, 2), [str(i) for i in part], indices=part)
    return metric


def test_mean_and_standard_error() -> None:
    metric = fill(PromptScore(by_prompt), list(range(11)), 4)
    numbers = VALUES.double().numpy()
    assert math.isclose(float(metric.compute()), numbers.mean(), rel_tol=1e-12)
    summary = metric.summary()
    assert math.isclose(summary.mean, numbers.mean(), rel_tol=1e-12)
    assert summary.standard_error is not None
    assert math.isclose(summary.standard_error, numbers.std(ddof=1) / math.sqrt(11), rel_tol=1e-12)
    assert summary.n == 11
    assert ScoreSummary.of(VALUES[:1]).standard_error is None


def test_batches_order_and_repeats_do_not_matter() -> None:
    shuffled = [7, 2, 10, 0, 4, 4, 1, 9, 3, 5, 8, 6, 0]
    metric = fill(PromptScore(by_prompt), shuffled, 3)
    indices, scores = metric.per_image()
    assert indices.tolist() == list(range(11))
    assert torch.equal(scores, VALUES)
    assert torch.equal(metric.compute(), fill(PromptScore(by_prompt), list(range(11)), 11).compute())


def test_indices_count_on_and_reset_starts_over() -> None:
    metric = PromptScore(by_prompt)
    for prompts in (["3", "4"], ["5"]):
        metric.update(torch.zeros(len(prompts), 3, 2, 2), prompts)
    assert metric.per_image()[0].tolist() == [0, 1, 2]
    metric.reset()
    with pytest.raises(ValueError, match="no scores yet"):
        metric.per_image()
    with pytest.raises(ValueError, match="1 prompts but 2 indices"):
        metric.update(torch.zeros(1, 3, 2, 2), ["1"], indices=[0, 1])


def test_two_ranks_that_count_for_themselves_do_not_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = PromptScore(by_prompt), PromptScore(by_prompt)
    first.update(torch.zeros(2, 3, 2, 2), ["0", "1"])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    second.update(torch.zeros(2, 3, 2, 2), ["2", "3"])
    assert not set(first.indices[0].tolist()) & set(second.indices[0].tolist())


def test_a_scorer_that_is_made_takes_no_options(clip: ClipFeatures) -> None:
    with pytest.raises(ValueError, match="takes no options, such as weights"):
        PromptScore(ClipScorer(clip, name="x"), weights="y")


def test_clip_score_is_the_mean_cosine(clip: ClipFeatures) -> None:
    images, captions = torch.rand(5, 3, 16, 16), ["a", "red dog", "x", "cat on a mat", "zz"]
    image, text = clip(images), clip.texts(captions)
    cosines = (image * text).sum(1) / image.norm(dim=1) / text.norm(dim=1)
    metric = CLIPScore(clip)
    metric.update(images[:2], captions[:2])
    metric.update(images[2:], captions[2:])
    assert math.isclose(float(metric.compute()), float(100 * cosines.mean()), rel_tol=1e-5)
    with pytest.raises(ValueError, match="3 images but 2 prompts"):
        metric.update(images[:3], captions[:2])


def test_classes_by_name(clip_folder: Path) -> None:
    assert HPSv2(version="v2.1", weights=clip_folder).scorer.name.startswith("hps/v2.1:mine@")
    assert PickScore(form="cosine", weights=clip_folder).scorer.name.startswith("pickscore/cosine:mine@")


def test_two_ranks_give_the_result_of_one() -> None:
    """torchmetrics' own reduction, with a gather that knows both ranks; three pictures were seen by both."""
    ranks = [fill(PromptScore(by_prompt), list(range(7)), 3), fill(PromptScore(by_prompt), list(range(4, 11)), 2)]
    shares = [{name: torch.cat(getattr(rank, name)) for name in ("scores", "indices")} for rank in ranks]

    def gather(state: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        return [share["scores" if state.is_floating_point() else "indices"] for share in shares]

    for rank in ranks:
        rank.dist_sync_fn, rank.distributed_available_fn = gather, lambda: True
        assert math.isclose(float(rank.compute()), float(VALUES.double().mean()), rel_tol=1e-12)
        indices, scores = rank.per_image()
        assert indices.tolist() == list(range(11))
        assert torch.equal(scores, VALUES)
        assert rank.summary().n == 11
        assert len(torch.cat(rank.indices)) == 7  # its own share is kept


def test_parquet_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    columns = {"hps/v2.1": VALUES, "aesthetic": VALUES * 2}
    prompts = [f"prompt {i} é" for i in range(11)]
    write_scores(file, prompts, columns, [{"name": "hps/v2.1", "scale": 100.0}])
    found_prompts, found, described = read_scores(file)
    assert found_prompts == prompts
    assert all(torch.equal(found[name], values) for name, values in columns.items())
    assert described == [{"name": "hps/v2.1", "scale": 100.0}]
    with pytest.raises(ValueError, match="11 scores but 10 prompts"):
        write_scores(file, prompts[:10], columns)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_scores(tmp_path / "text.parquet")
