"""The cache is read under the same key only, survives broken files, and is never half written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepdistill.data import cache
from stepdistill.data.cache import cached, fingerprint


def value(number: float) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"x": torch.tensor([number])}


def read(folder: Path | None, key: dict[str, object], number: float) -> float:
    """What the cache gives for a key whose computation gives `number`."""
    return cached(folder, key, value(number))["x"].item()


def test_a_key_is_all_of_its_values_in_any_order(tmp_path: Path) -> None:
    assert read(tmp_path, {"a": 1, "b": 2}, 1.0) == 1.0
    assert read(tmp_path, {"b": 2, "a": 1}, 2.0) == 1.0
    assert read(tmp_path, {"a": 1, "b": 3}, 3.0) == 3.0
    assert read(tmp_path, {"a": 1, "b": 2}, 4.0) == 1.0
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_everything_is_computed() -> None:
    assert [read(None, {"a": 1}, number) for number in (1.0, 2.0)] == [1.0, 2.0]


def test_a_broken_file_is_computed_again_and_replaced(tmp_path: Path) -> None:
    read(tmp_path, {"a": 1}, 1.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not a safetensors file")
    assert read(tmp_path, {"a": 1}, 2.0) == 2.0
    assert read(tmp_path, {"a": 1}, 3.0) == 2.0


def test_a_crash_while_writing_leaves_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        read(tmp_path, {"a": 1}, 1.0)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_fingerprint_is_of_names_types_shapes_and_values_not_of_their_order() -> None:
    w, b = torch.arange(4.0), torch.zeros(2)
    reference = fingerprint([("w", w), ("b", b)])
    assert fingerprint([("b", b), ("w", w.clone())]) == reference
    others = [
        [("v", w), ("b", b)],
        [("w", w + 1), ("b", b)],
        [("w", w.view(2, 2)), ("b", b)],
        [("w", w)],
        [("w", b), ("b", w)],
    ]
    found = {fingerprint(other) for other in others}
    assert len({reference, *found}) == 1 + len(others)
    zeros = torch.zeros(4, dtype=torch.int16)
    assert fingerprint([("w", zeros)]) != fingerprint([("w", zeros.view(torch.bfloat16))])
