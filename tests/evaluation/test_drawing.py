"""Which prompt, repeat and seed a picture has, what is drawn again, and how found pictures get their prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Assignment, adopt, draw
from stepdistill.evaluation.generation import Generation, prompt_seed
from stepdistill.evaluation.picture_store import MANIFEST, PictureStore, read_manifest
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Benchmark

PROMPTS = PromptSet(("one", "two", "three"), ("x", "y", "z"), ("c", None, "d"))
PROTOCOL = Benchmark("tiny", prompts=None, num_prompts=3, variants=(), samples_per_prompt=2, seed=5)
ASSIGNMENT = Assignment(PROTOCOL, PROMPTS)


def test_all_repeats_of_a_prompt_come_before_the_next_prompt() -> None:
    assert len(ASSIGNMENT) == 6
    assert ASSIGNMENT.record(3) == {
        "index": 3, "prompt_index": 1, "sample": 1, "prompt": "two", "id": "y", "category": None,
        "seed": prompt_seed(5, 1, 1),
    }  # fmt: skip


class Painter:
    """A sampler that notes what it draws; every pixel is 0.6 of a byte above 100."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def __call__(self, captions: Any, seeds: Any) -> torch.Tensor:
        self.drawn += zip(captions, seeds, strict=True)
        return torch.full((len(captions), 3, 2, 2), 100.6 / 255)


def drawn(folder: Path, assignment: Assignment = ASSIGNMENT) -> tuple[Painter, PictureStore]:
    painter, store = Painter(), PictureStore(folder)
    draw(Generation(painter), assignment, store, batch_size=2, crew=Crew())
    store.merge()
    return painter, store


def test_a_block_with_a_missing_picture_is_drawn_again_whole(tmp_path: Path) -> None:
    first, store = drawn(tmp_path)
    assert first.drawn == [
        (prompt, prompt_seed(5, number, sample))
        for number, prompt in enumerate(PROMPTS.prompts)
        for sample in range(2)
    ]
    (tmp_path / store.records()[3].file).unlink()
    again, _ = drawn(tmp_path)
    assert again.drawn == first.drawn[2:4]


@pytest.mark.parametrize(("rounding", "value"), [("round", 101), ("truncate", 100)])
def test_pixels_are_rounded_as_the_protocol_says(tmp_path: Path, rounding: Any, value: int) -> None:
    _, store = drawn(tmp_path, Assignment(replace(PROTOCOL, rounding=rounding), PROMPTS))
    assert store.open(store.records()[0]).getpixel((0, 0)) == (value, value, value)


def test_found_pictures_belong_to_the_prompts_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "abcdef":
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    store = PictureStore(tmp_path / "run")
    adopt(tmp_path, store, ASSIGNMENT)
    records = read_manifest(store.folder / MANIFEST)
    assert [(record.prompt, record.sample) for record in records][:3] == [("one", 0), ("one", 1), ("two", 0)]
    assert {record.seed for record in records} == {None}, "nobody knows what they were drawn with"
    assert [Path(record.file).name for record in records] == [f"{name}.png" for name in "abcdef"]
    adopt(tmp_path, store, None)
    assert [record.id for record in read_manifest(store.folder / MANIFEST)] == list("abcdef")
    (tmp_path / "f.png").unlink()
    with pytest.raises(UserError, match="5 pictures, but the prompts ask for 6"):
        adopt(tmp_path, store, ASSIGNMENT)


def test_pictures_of_a_run_are_found_from_elsewhere_with_their_own_prompts(tmp_path: Path) -> None:
    drawn(tmp_path / "first")
    store = PictureStore(tmp_path / "second")
    adopt(tmp_path / "first", store, ASSIGNMENT)
    assert len(store.records()) == 6
    others = Assignment(PROTOCOL, replace(PROMPTS, prompts=("one", "two", "four")))
    with pytest.raises(UserError, match="are of other prompts"):
        adopt(tmp_path / "first", store, others)
