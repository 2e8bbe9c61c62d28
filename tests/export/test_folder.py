"""Nothing that was there is lost: not on a full disk, not after a failed gate."""

from __future__ import annotations

import errno
import json

import pytest
from safetensors import SafetensorError

from stepdistill.errors import ExportError, UserError
from stepdistill.export.contract import CONTRACT_NAME
from stepdistill.export.folder import partial_folder


def write_then_raise(out, text, error):
    with partial_folder(out) as partial:
        (partial / "lora.safetensors").write_text(text)
        raise error


def earlier_export(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("earlier")
    (folder / CONTRACT_NAME).write_text(json.dumps({"files": {name: {} for name in names}}))
    return folder


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device (os error 28)")],
)
def test_a_full_disk_costs_nothing(tmp_path, error):
    out = earlier_export(tmp_path / "out", "lora.safetensors")
    with pytest.raises(UserError, match=r"cannot write the export .*out': No space left .*free some space"):
        write_then_raise(out, "half of it", error)
    assert (out / "lora.safetensors").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the export .*choose a writable folder"):
        write_then_raise(tmp_path / "file" / "out", "", AssertionError("the block must not run"))


def test_after_a_failed_gate_the_files_are_kept_aside(tmp_path):
    out = earlier_export(tmp_path / "out", "lora.safetensors")
    for attempt in ("first", "second"):
        with pytest.raises(ExportError, match=r"differs; the files are kept in '.*out\.failed'"):
            write_then_raise(out, attempt, ExportError("'lora.safetensors' differs"))
        assert (tmp_path / "out.failed" / "lora.safetensors").read_text() == attempt
    assert (out / "lora.safetensors").read_text() == "earlier"


def test_any_other_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_then_raise(tmp_path / "out", "half of it", ZeroDivisionError())
    assert not list(tmp_path.iterdir())


def test_a_new_export_replaces_the_files_of_the_earlier_one_only(tmp_path):
    out = earlier_export(tmp_path / "out", "old_kohya.safetensors", "lora.safetensors")
    (out / "notes.txt").write_text("mine")
    with partial_folder(out) as partial:
        (partial / "images").mkdir()
        (partial / "images" / "0.png").write_text("new")
        (partial / "lora.safetensors").write_text("new")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "images/0.png",
        "lora.safetensors",
        "notes.txt",
        CONTRACT_NAME,
    }
    assert (out / "lora.safetensors").read_text() == "new"


def test_a_contract_cannot_name_files_outside(tmp_path):
    (tmp_path / "precious").write_text("mine")
    out = earlier_export(tmp_path / "out")
    (out / CONTRACT_NAME).write_text(json.dumps({"files": {"../precious": {}, str(tmp_path / "precious"): {}}}))
    with partial_folder(out) as partial:
        (partial / "lora.safetensors").write_text("new")
    assert (tmp_path / "precious").exists()
