"""Which checkpoints are kept, and what a crash in the middle of one leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.training.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint


def save(run_dir: Path, step: int, value: float = 0.0, **options: int) -> Path:
    return save_checkpoint(run_dir, step, {"student": {"w": torch.full((2,), value)}}, {}, **options)


def kept(run_dir: Path) -> list[int]:
    names = [path.name for path in (run_dir / "checkpoints").glob("step_*")]
    return sorted(int(name.removeprefix("step_")) for name in names)


def test_the_newest_are_those_of_the_highest_step_not_of_the_last_letter(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert kept(tmp_path) == [10, 11]


def test_the_last_checkpoint_is_never_pruned(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    prune(tmp_path / "checkpoints", keep=0)
    assert kept(tmp_path) == [2]


def test_without_a_limit_all_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step)
    assert kept(tmp_path) == [0, 1, 2, 3, 4]


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    """A run that is resumed from an older folder comes by the newer ones again."""
    save(tmp_path, 3, value=1.0)
    folder = save(tmp_path, 3, value=2.0)
    assert load_checkpoint(folder)[0]["student"]["w"].tolist() == [2.0, 2.0]
    assert latest_checkpoint(tmp_path) == folder


def test_files_of_a_crashed_attempt_do_not_enter_the_next(tmp_path: Path) -> None:
    draft = tmp_path / "checkpoints/.step_3.partial"
    draft.mkdir(parents=True)
    (draft / "critic.safetensors").write_bytes(b"half of it")
    folder = save(tmp_path, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "student.safetensors"]
    assert not draft.exists()


def test_a_pointer_to_a_deleted_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3).rename(tmp_path / "elsewhere")
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_crash_before_the_pointer_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stepdistill.training.checkpoint.os.replace", full)
    with pytest.raises(UserError, match="earlier checkpoints are kept"):
        save(tmp_path, 2, keep=1)
    assert latest_checkpoint(tmp_path) == first
