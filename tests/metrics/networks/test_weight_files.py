"""Where weights are looked for, in which order, and what is said when they are nowhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
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
    return WeightFile("w.pth", source.as_uri(), hashlib.sha256(b"the weights").hexdigest()[:8])


def test_the_explicit_path_comes_first_whatever_it_holds(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"no w\.pth here and none from the network"):
        weights.locate()
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_nowhere_is_one_line_with_the_address(tmp_path: Path) -> None:
    weights = WeightFile("w.pth", (tmp_path / "gone").as_uri(), "00")
    with pytest.raises(
        UserError, match=f"download .*gone and give its path, or put it .*{VARIABLE}"
    ) as caught:
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
