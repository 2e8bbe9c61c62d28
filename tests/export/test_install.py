"""A kill while an export is put in place: the contract comes last, so what it names is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepdistill.export import folder as module
from stepdistill.export.contract import CONTRACT_NAME
from stepdistill.export.folder import install


def test_the_contract_is_moved_after_all_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, out = tmp_path / "partial", tmp_path / "out"
    (partial / "unet").mkdir(parents=True)
    out.mkdir()
    (out / CONTRACT_NAME).write_text("earlier")
    for name in ("a.safetensors", "unet/z.safetensors", CONTRACT_NAME):
        (partial / name).write_text("new")
    moved: list[str] = []

    def replace(source: Path, target: Path) -> None:
        moved.append(Path(source).relative_to(partial).as_posix())
        if len(moved) == 3:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        install(partial, out)
    assert moved[-1] == CONTRACT_NAME
    assert (out / CONTRACT_NAME).read_text() == "earlier"
    assert (out / "unet/z.safetensors").read_text() == "new"
