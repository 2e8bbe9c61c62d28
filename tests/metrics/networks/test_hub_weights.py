"""Weights: a given path comes first, then the user's folder, then a cache; a wrong file is told from the right one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from stepdistill.errors import UserError
from stepdistill.metrics.networks.weights import VARIABLE, read_tensors, weights_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "net.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.arange(3.0)}, path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """A hub that has nothing; each look-up is noted, with whether it was for the cache alone."""
    asked: list[bool] = []

    def missing(repo: str, filename: str, *, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path / "cache"))
    return asked


def test_a_given_path_is_a_file_or_its_folder(file: Path, hub: list[bool]) -> None:
    for local in (file, str(file.parent)):
        assert weights_file(local, repo="a/b", filename="net.safetensors") == file
    assert hub == []


def test_a_wrong_path_is_not_replaced_by_the_hub(file: Path, hub: list[bool]) -> None:
    for local in (file.parent / "other.safetensors", file.parent.parent):
        with pytest.raises(UserError, match=r"no weights at|no net"):
            weights_file(local, repo="a/b", filename="net.safetensors")
    assert hub == []


@pytest.mark.parametrize("inside", ["b/net.pt", "net.pt"])
def test_the_users_folder_comes_before_the_hub(
    inside: str, tmp_path: Path, hub: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / inside
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert weights_file(None, repo="a/b", filename="net.pt") == path
    assert hub == []


def test_the_hubs_cache_comes_before_the_network_and_a_failure_says_what_to_do(hub: list[bool]) -> None:
    with pytest.raises(UserError, match=r"net\.pt of a/b .*offline.*\$STEPDISTILL_WEIGHTS"):
        weights_file(None, repo="a/b", filename="net.pt")
    assert hub == [True, False]


def test_the_published_file_is_told_by_its_checksum(file: Path) -> None:
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights_file(file, repo="a/b", filename="net.safetensors", sha256=right) == file
    with pytest.raises(UserError, match="not the published"):
        weights_file(file, repo="a/b", filename="net.safetensors", sha256="0" * 64)
    with pytest.raises(UserError, match="not the published"):
        weights_file(file.parent, repo="a/b", filename="sub/net.safetensors", sha256="0" * 64)
    assert weights_file(file, repo="a/b", filename="other.pt", sha256="0" * 64) == file


def test_tensors_are_read_from_every_form(file: Path, tmp_path: Path) -> None:
    a = torch.arange(3.0)
    torch.save({"module.a": a, "epoch": 3}, tmp_path / "plain.pt")
    torch.save({"state_dict": {"a": a}, "epoch": 3}, tmp_path / "training.pt")
    for path in (file, tmp_path / "plain.pt", tmp_path / "training.pt"):
        assert list(read_tensors(path)) == ["a"]
        assert torch.equal(read_tensors(path)["a"], a)


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_files_that_hold_no_weights_are_refused_and_run_no_code(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "ran")}, tmp_path / "code.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("code.pt", "list.pt", "text.pt", "text.safetensors"):
        with pytest.raises(UserError, match=name):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()
