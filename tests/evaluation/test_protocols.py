"""Protocols are frozen: their hashes do not move, and every word that changes a number changes the hash."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepdistill.errors import UserError
from stepdistill.evaluation.catalogue import METRICS, chosen_metrics, variant_of
from stepdistill.evaluation.prompt_sets import PromptSet, load_prompt_set
from stepdistill.evaluation.protocols import PROTOCOLS, Protocol, protocol_named

HASHES = {
    "coco2014-30k-dmd2": "0d16bb1612fe",
    "coco2014-10k-sdxl-dmd2": "8ab238be6aaf",
    "mjhq30k": "8287530de56d",
    "hpsv2-benchmark": "01ba4a14497e",
    "partiprompts": "270231e00dda",
    "emoji": "67e0177b0add",
}


def test_the_published_hashes_do_not_move() -> None:
    """A number in somebody's paper names one of these."""
    assert {name: protocol.hash for name, protocol in PROTOCOLS.items()} == HASHES


def test_what_changes_no_number_is_not_hashed_and_all_else_is() -> None:
    protocol = protocol_named("coco2014-30k-dmd2")
    changes: dict[str, Any] = {
        "name": "x", "prompts": "hub:a/b:c", "num_prompts": 5, "variants": (("fid", "inception/clean"),),
        "samples_per_prompt": 2, "seed": 1, "rounding": "round", "square": 512, "metrics": ("clip",), "sampler_search": 5,
        "reference": "x", "source": "x",
    }  # fmt: skip
    unhashed = ("metrics", "sampler_search", "reference", "source")
    assert set(changes) == {field.name for field in fields(Protocol)}
    for name, value in changes.items():
        changed = replace(protocol, **{name: value})
        assert (changed.hash == protocol.hash) == (name in unhashed), name
    with pytest.raises(FrozenInstanceError):
        protocol.seed = 1  # type: ignore[misc]


def test_a_numbers_address_has_what_it_follows_from() -> None:
    protocol = protocol_named("coco2014-30k-dmd2")
    address = protocol.number_hash("inception/clean", prompts="p", reference="r")
    others = [
        protocol.number_hash("inception/legacy_tf", prompts="p", reference="r"),
        protocol.number_hash("inception/clean", prompts="q", reference="r"),
        protocol.number_hash("inception/clean", prompts="p", reference="s"),
        replace(protocol, square=512).number_hash("inception/clean", prompts="p", reference="r"),
    ]
    assert len({address, *others}) == 5
    more = protocol.with_variant("mine", "my.module:score")
    assert more.number_hash("inception/clean", prompts="p", reference="r") == address
    assert more.hash != protocol.hash


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_name_of_a_protocol_is_a_metric(name: str) -> None:
    protocol = protocol_named(name)
    for metric, variant in protocol.variants:
        assert variant_of(metric, protocol) == variant
        assert metric in METRICS
    assert json.loads(json.dumps(protocol.to_json()))["hash"] == protocol.hash
    usual, _ = chosen_metrics(None, protocol, has_reference=True, has_teacher=True)
    assert usual


def test_an_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown protocol 'coco'; known protocols: coco2014-30k-dmd2"):
        protocol_named("coco")


ROWS = [{"caption": "a cat", "category": "animal"}, {"caption": "a, b", "category": "other"}]


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_prompt_file_is_read_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts.{suffix}"
    if suffix == "txt":
        path.write_text("a cat\n\na, b\n")
    elif suffix in ("csv", "tsv"):
        sign = "," if suffix == "csv" else "\t"
        lines = [["caption", "category"], *([f'"{row["caption"]}"', row["category"]] for row in ROWS)]
        path.write_text("\n".join(sign.join(line) for line in lines) + "\n")
    elif suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    found = load_prompt_set(protocol_named("partiprompts"), str(path))
    assert found.prompts == ("a cat", "a, b")
    assert found.digest == PromptSet.of(["a cat", "a, b"]).digest
    assert found.categories == ((None, None) if suffix == "txt" else ("animal", "other"))


def test_published_layouts_are_read(tmp_path: Path) -> None:
    meta = tmp_path / "meta_data.json"
    meta.write_text(
        json.dumps({"k1": {"category": "art", "prompt": "one"}, "k2": {"category": "food", "prompt": "two"}})
    )
    mjhq = load_prompt_set(protocol_named("mjhq30k"), str(tmp_path))
    assert (mjhq.prompts, mjhq.ids, mjhq.categories) == (("one", "two"), ("k1", "k2"), ("art", "food"))
    (tmp_path / "benchmark").mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        (tmp_path / f"benchmark/{style}.json").write_text(json.dumps([f"{style} 0", f"{style} 1"]))
    styles = load_prompt_set(protocol_named("hpsv2-benchmark"), str(tmp_path))
    assert styles.ids[2:4] == ("concept-art/00000", "concept-art/00001")
    assert styles.categories[-1] == "photo"
    coco = tmp_path / "captions_val2014.json"
    notes = [{"image_id": i, "id": 10 * i + k, "caption": f"{i}-{k}"} for k in (1, 0) for i in range(5)]
    coco.write_text(json.dumps({"annotations": notes}))
    captions = load_prompt_set(protocol_named("coco2014-30k-dmd2"), str(coco), limit=3)
    assert len(captions) == 3
    assert all(caption.endswith("-0") for caption in captions.prompts)


def test_missing_prompts_say_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"give --prompts FILE, such as captions_val2014\.json"):
        load_prompt_set(protocol_named("coco2014-30k-dmd2"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _offline)
    with pytest.raises(UserError, match="give a copy of the file with --prompts FILE"):
        load_prompt_set(protocol_named("mjhq30k"))
    table = tmp_path / "a.csv"
    table.write_text("words\nx\n")
    for source, message in {
        str(tmp_path / "no.txt"): "there is no file",
        str(tmp_path): "has no PartiPrompts.tsv",
        str(table): r"has the columns \['words'\]",
        str(tmp_path / "a.doc"): "is not a .txt",
    }.items():
        with pytest.raises(UserError, match=message):
            load_prompt_set(protocol_named("partiprompts"), source)
    assert load_prompt_set(protocol_named("partiprompts"), str(table), column="words").prompts == ("x",)
    with pytest.raises(UserError, match="only 1 prompts"):
        load_prompt_set(protocol_named("partiprompts"), str(table), column="words", limit=2)


def _offline(*args: Any, **kwargs: Any) -> str:
    raise OSError("offline")


def test_the_emoji_protocol_has_the_frozen_captions() -> None:
    from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld

    emoji = protocol_named("emoji")
    found = load_prompt_set(emoji, limit=20)
    assert list(found.prompts) == EmojiWorld().scenes(EVALUATION_SEED, range(20))[1]
    with pytest.raises(UserError, match="--limit 2001: there are only 2000 prompts"):
        load_prompt_set(emoji, limit=2001)
