"""Which samples each step draws, and what the cached embeddings depend on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

import stepdistill as sd
from stepdistill.data.source import TrainingData, encode_prompts, prepare_data, rows_of
from stepdistill.data.trajectories import TeacherPairs
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.testing import GaussianTeacher, tiny_pipeline

COUNT = 12


def numbered(count: int = COUNT) -> TrainingData:
    """Prompts, images and pairs whose values are their row numbers."""
    rows = torch.arange(float(count))[:, None]
    cond = Conditioning({"row": rows})
    return TrainingData(
        tuple(map(str, range(count))), cond, cond[:1], (1,), rows, cond, TeacherPairs(noise=rows, x0=rows)
    )


def drawn(kind: str, *, seed: int = 0, num_steps: int = 6, size: int = 4) -> list[list[int]]:
    """The rows of each step."""
    found = []
    for step in range(num_steps):
        batch = numbered().batch(seed=seed, step=step, indices=range(size), size=size)
        assert batch.latents is not None
        assert batch.pairs is not None
        values = {"prompts": batch.cond["row"], "images": batch.latents, "pairs": batch.pairs.noise}[kind]
        found.append([int(value) for value in values.flatten()])
    return found


@pytest.mark.parametrize("kind", ["prompts", "images", "pairs"])
def test_every_epoch_is_another_permutation_of_all_rows(kind: str) -> None:
    steps = drawn(kind)
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("kind", ["prompts", "images", "pairs"])
def test_the_order_is_that_of_the_seed(kind: str) -> None:
    assert drawn(kind, seed=1) == drawn(kind, seed=1) != drawn(kind, seed=2)


def test_prompts_images_and_pairs_are_drawn_independently() -> None:
    """Equal orders would pair each prompt with one image for good."""
    orders = [drawn(kind) for kind in ("prompts", "images", "pairs")]
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    assert orders[0] != orders[2]


def test_an_epoch_may_end_within_a_step() -> None:
    rows = rows_of(range(2 * COUNT), count=COUNT, seed=3, purpose="x").tolist()
    assert rows_of(range(COUNT - 2, COUNT + 2), count=COUNT, seed=3, purpose="x").tolist() == rows[10:14]


def test_noise_is_that_of_the_step_and_the_sample() -> None:
    data = numbered()
    whole = data.batch(seed=0, step=5, indices=range(4), size=4)
    part = data.batch(seed=0, step=5, indices=[2, 3], size=4)
    assert torch.equal(whole.noise("x")[2:], part.noise("x"))
    assert torch.equal(whole.cond["row"][2:], part.cond["row"])
    others = [data.batch(seed=seed, step=step, indices=[2, 3], size=4) for seed, step in ((0, 6), (1, 5))]
    assert not any(torch.equal(part.noise("x"), other.noise("x")) for other in others)


def named_teacher(**means: float) -> GaussianTeacher:
    """Its embedding of a prompt is one number: the length of the text, or the one that is given here."""
    named = {"x" * n: torch.tensor([float(n)]) for n in range(1, 200)}
    named |= {name: torch.tensor([mean]) for name, mean in means.items()}
    return GaussianTeacher(0.0, 1.0, uncond_mean=-1.0, named_means=named)


def test_many_prompts_are_embedded_in_parts_and_in_order() -> None:
    teacher = named_teacher()
    cond = encode_prompts(teacher, ["x" * n for n in range(1, 131)])
    assert cond["mean"].flatten().tolist() == list(range(1, 131))


def prepared(teacher: sd.Denoiser, folder: Path, prompts: list[str], **options: object) -> TrainingData:
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    settings: dict = {"model": "m", "cache_dir": str(folder / "cache")} | options
    return prepare_data(teacher, prompts=str(file), **settings)


def test_cached_embeddings_are_those_of_these_prompts_and_this_model(tmp_path: Path) -> None:
    teacher = named_teacher(ab=1.0, c=2.0, a=3.0, bc=4.0)
    assert prepared(teacher, tmp_path, ["ab", "c"]).cond["mean"].flatten().tolist() == [1.0, 2.0]
    assert prepared(teacher, tmp_path, ["a", "bc"]).cond["mean"].flatten().tolist() == [3.0, 4.0]
    other = named_teacher(ab=5.0, c=6.0)
    assert prepared(other, tmp_path, ["ab", "c"], model="n").cond["mean"].flatten().tolist() == [5.0, 6.0]
    assert prepared(other, tmp_path, ["ab", "c"]).cond["mean"].flatten().tolist() == [1.0, 2.0], "cached"


def test_the_number_of_prompts_and_the_negative_prompt_are_the_recipes(tmp_path: Path) -> None:
    teacher = named_teacher(bad=-7.0)
    data = prepared(teacher, tmp_path, ["x", "xx", "xxx"], num_prompts=2, negative_prompt="bad")
    assert data.prompts == ("x", "xx")
    assert data.uncond["mean"].item() == -7.0
    assert prepared(teacher, tmp_path, ["x"]).uncond["mean"].item() == -1.0


def test_cached_images_are_as_many_as_asked_for(tmp_path: Path) -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"number {number}")
    sizes = []
    for limit in (2, None, 2):
        data = prepared(teacher, tmp_path, ["a fox"], images=str(images), num_images=limit)
        assert data.latents is not None
        assert data.latents_cond is not None
        sizes.append((len(data.latents), len(data.latents_cond)))
    assert sizes == [(2, 2), (3, 3), (2, 2)]
