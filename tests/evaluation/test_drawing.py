"""Prompt, sample and seed of each picture, what is drawn again, and the prompts of adopted pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Assignment, adopt
from stepdistill.evaluation.generation import prompt_seed
from stepdistill.evaluation.picture_set import PictureSet
from stepdistill.evaluation.picture_store import MANIFEST, PictureStore, read_manifest
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet

PROMPTS = PromptSet(("one", "two", "three"), ("x", "y", "z"), ("c", None, "d"))
ASSIGNMENT = Assignment(PROMPTS, seed=5, samples=2)


def test_all_samples_of_a_prompt_come_before_the_next_prompt() -> None:
    assert len(ASSIGNMENT) == 6
    assert ASSIGNMENT.record(3) == {
        "index": 3, "prompt_index": 1, "sample": 1, "prompt": "two", "id": "y", "category": None,
        "seed": prompt_seed(5, 1, 1),
    }  # fmt: skip


class Painter:
    """Records what it draws; every pixel is 0.6 of a byte above 100."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def __call__(self, records: Any) -> torch.Tensor:
        self.drawn += [(record["prompt"], record["seed"]) for record in records]
        return torch.full((len(records), 3, 2, 2), 100.6 / 255)


def drawn(folder: Path, assignment: Assignment = ASSIGNMENT) -> tuple[Painter, PictureStore]:
    painter, store = Painter(), PictureStore(folder)
    PictureSet(store, assignment, painter, adopted=None, batch_size=2, group=ProcessGroup()).fill()
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
    _, store = drawn(tmp_path, replace(ASSIGNMENT, rounding=rounding))
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
    with pytest.raises(UserError, match="contains 5 pictures for 6 prompts"):
        adopt(tmp_path, store, ASSIGNMENT)


def test_pictures_of_a_run_are_found_from_elsewhere_with_their_own_prompts(tmp_path: Path) -> None:
    drawn(tmp_path / "first")
    store = PictureStore(tmp_path / "second")
    adopt(tmp_path / "first", store, ASSIGNMENT)
    assert len(store.records()) == 6
    others = replace(ASSIGNMENT, prompts=replace(PROMPTS, prompts=("one", "two", "four")))
    with pytest.raises(UserError, match="lists other prompts"):
        adopt(tmp_path / "first", store, others)
    fewer = replace(ASSIGNMENT, prompts=PROMPTS.first(2))
    adopt(tmp_path / "first", store, fewer)
    assert len(store.records()) == 4
    with pytest.raises(UserError, match="has 6 of 8 pictures"):
        adopt(tmp_path / "first", store, replace(ASSIGNMENT, prompts=PromptSet.of(["one", "two", "three", "x"])))


def test_seeds_follow_the_numbers_of_prompts_and_samples() -> None:
    """The extra pictures of a few prompts have seeds of their own."""
    some = Assignment(PROMPTS.first(2), seed=5, samples=2, first_sample=1, numbers=(4, 9))
    records = [some.record(index) for index in range(4)]
    assert [(each["prompt_index"], each["sample"]) for each in records] == [(4, 1), (4, 2), (9, 1), (9, 2)]
    assert [each["seed"] for each in records] == [prompt_seed(5, n, s) for n in (4, 9) for s in (1, 2)]
