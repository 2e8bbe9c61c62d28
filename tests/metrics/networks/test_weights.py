"""Where weights are searched, in which order, and what a missing or wrong file says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from stepdistill.errors import UserError
from stepdistill.metrics.networks.weights import VARIABLE, WeightFile, pretrained, read_tensors


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    (tmp_path / "named").mkdir()


def published(tmp_path: Path, content: bytes = b"the weights") -> WeightFile:
    """A file that is published at a file:// address."""
    source = tmp_path / "web" / "w.pth"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(content)
    return WeightFile("w.pth", hashlib.sha256(b"the weights").hexdigest()[:8], url=source.as_uri())


def test_an_explicit_path_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"others")
    assert published(tmp_path).locate(tmp_path / "mine.pth") == tmp_path / "mine.pth"


def test_the_named_folder_comes_before_the_network(tmp_path: Path) -> None:
    weights = published(tmp_path)
    (tmp_path / "named" / "w.pth").write_bytes(b"the weights")
    assert weights.locate() == tmp_path / "named" / "w.pth"


def test_a_download_is_kept(tmp_path: Path) -> None:
    weights = published(tmp_path)
    file = weights.locate()
    assert file == tmp_path / "cache" / "weights" / "w.pth"
    Path(tmp_path / "web" / "w.pth").unlink()
    assert weights.locate().read_bytes() == b"the weights"


def test_another_file_of_the_name_is_refused(tmp_path: Path) -> None:
    weights = published(tmp_path)
    (tmp_path / "named" / "w.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"is not the published w\.pth"):
        weights.locate()


def test_a_download_of_another_file_is_refused_and_not_kept(tmp_path: Path) -> None:
    weights = published(tmp_path, b"something else")
    with pytest.raises(UserError, match=r"no local w\.pth, and no download"):
        weights.locate()
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_nowhere_is_one_line_with_the_address(tmp_path: Path) -> None:
    weights = WeightFile("w.pth", "00", url=(tmp_path / "gone").as_uri())
    with pytest.raises(UserError, match=f"download .*gone and give its path, or put it .*{VARIABLE}") as caught:
        weights.locate()
    assert "\n" not in str(caught.value)


def test_both_formats_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], tensors["a"])


def test_models_are_found_by_folder_then_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    model = Dinov2Model(config)
    model.save_pretrained(tmp_path / "named" / "tiny")
    for path in (None, tmp_path / "named" / "tiny"):
        found = pretrained(Dinov2Model, "someone/tiny", path)
        assert torch.equal(found.layernorm.weight, model.layernorm.weight)
    with pytest.raises(UserError, match="no weights at"):
        pretrained(Dinov2Model, "someone/tiny", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights of someone/tiny from") as caught:
        pretrained(Dinov2Model, "someone/tiny", tmp_path / "empty")
    assert "\n" not in str(caught.value)


def on_hub(name: str = "net.safetensors", sha256: str = hashlib.sha256(b"x").hexdigest()) -> WeightFile:
    return WeightFile(name, sha256, repo="a/b")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "net.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.arange(3.0)}, path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An empty hub; records for each look-up whether it was for the cache only."""
    lookups: list[bool] = []

    def missing(repo: str, filename: str, *, local_files_only: bool = False) -> str:
        lookups.append(local_files_only)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    return lookups


def test_a_given_path_is_a_file_or_its_folder(file: Path, hub: list[bool]) -> None:
    weights = on_hub(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    for local in (file, str(file.parent)):
        assert weights.locate(local) == file
    assert hub == []


def test_a_wrong_path_is_not_replaced_by_the_hub(file: Path, hub: list[bool]) -> None:
    for local in (file.parent / "other.safetensors", file.parent.parent):
        with pytest.raises(UserError, match=r"no weights at|no net"):
            on_hub().locate(local)
    assert hub == []


@pytest.mark.parametrize("inside", ["b/net.pt", "net.pt"])
def test_the_users_folder_comes_before_the_hub(inside: str, tmp_path: Path, hub: list[bool]) -> None:
    path = tmp_path / "named" / inside
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert on_hub("net.pt").locate() == path
    assert hub == []


def test_the_hubs_cache_comes_before_the_network_and_a_failure_says_what_to_do(hub: list[bool]) -> None:
    message = r"no local net\.pt, .*offline.*download net\.pt of a/b from the hub .*\$STEPDISTILL_WEIGHTS"
    with pytest.raises(UserError, match=message):
        on_hub("net.pt").locate()
    assert hub == [True, False]


def test_the_published_name_needs_the_published_checksum(file: Path) -> None:
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert on_hub(sha256=right).label("net", file) == f"net@{right[:8]}"
    for weights, local in ((on_hub(), file), (on_hub("sub/net.safetensors"), file.parent)):
        with pytest.raises(UserError, match="not the published"):
            weights.locate(local)
    other = on_hub("other.pt")
    assert other.locate(file) == file
    assert other.label("net", file) == f"net.safetensors@{right[:8]}"


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
