"""How many prompts a protocol is measured on, and the ids and categories they have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stepdistill.errors import UserError
from stepdistill.evaluation.prompt_sets import PromptSet, load_prompt_set
from stepdistill.evaluation.protocols import protocol_named

PROTOCOL = replace(protocol_named("partiprompts"), num_prompts=3)


def written(path: Path, *prompts: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(prompts)))
    return str(path)


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (2, 2), (4, 4), (5, 5)])
def test_a_file_gives_the_protocols_number_or_the_limit(tmp_path: Path, limit: int | None, expected: int) -> None:
    """A limit may ask for more than the protocol has, as long as the file holds them."""
    found = load_prompt_set(PROTOCOL, written(tmp_path / "p.json", *"abcde"), limit=limit)
    assert found.prompts == tuple("abcde"[:expected])
    assert found.ids == tuple("01234"[:expected])
    assert len(found.categories) == expected


def test_more_than_there_are_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--limit 6: there are only 5 prompts"):
        load_prompt_set(PROTOCOL, written(tmp_path / "p.json", *"abcde"), limit=6)


def test_the_embedded_protocol_may_be_shortened_and_not_lengthened() -> None:
    protocol = replace(protocol_named("emoji"), num_prompts=7)
    assert [len(load_prompt_set(protocol, limit=limit)) for limit in (None, 3, 7)] == [7, 3, 7]
    with pytest.raises(UserError, match="--limit 9: there are only 7 prompts"):
        load_prompt_set(protocol, limit=9)


def test_empty_rows_are_left_out_and_ids_are_those_of_the_file(tmp_path: Path) -> None:
    found = load_prompt_set(PROTOCOL, written(tmp_path / "p.json", "a", "", " ", "b"))
    assert (found.prompts, found.ids) == (("a", "b"), ("0", "3"))


def test_only_a_benchmarks_folder_names_the_style(tmp_path: Path) -> None:
    plain = load_prompt_set(PROTOCOL, written(tmp_path / "anime.json", "a"))
    styled = load_prompt_set(PROTOCOL, written(tmp_path / "benchmark/anime.json", "a"))
    assert (plain.ids, plain.categories) == (("0",), (None,))
    assert (styled.ids, styled.categories) == (("anime/00000",), ("anime",))


def test_the_digest_knows_where_a_prompt_ends() -> None:
    digests = {PromptSet.of(prompts).digest for prompts in (["a\nb"], ["a", "b"], ["b", "a"], ["a"])}
    assert len(digests) == 4
