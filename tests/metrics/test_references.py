"""FeatureStats and ReferenceStats: streaming, merging, and files of ours, EDM, EDM2 and clean-fid."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import FeatureStats, ReferenceStats, load_reference_features


def features(n: int, d: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + offset


def test_one_process_reduces_to_itself() -> None:
    stats = FeatureStats.of(features(20, 3))
    assert stats.all_reduce() is stats


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streaming_equals_batch(offset: float) -> None:
    x = features(101, 7, offset=offset)
    stats = FeatureStats.around(x[:3].mean(0))
    for part in x.split(13):
        stats.update(part)
    assert stats.n == 101
    assert torch.allclose(stats.mean, x.mean(0), rtol=1e-13)
    assert torch.allclose(stats.cov, torch.cov(x.T), rtol=1e-10)


def test_merge_is_associative_whatever_the_shifts() -> None:
    x = features(90, 5, offset=100.0)
    parts = [FeatureStats.of(part) for part in x.split([20, 30, 40])]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    for merged in (left, right):
        assert merged.n == 90
        assert torch.allclose(merged.mean, x.mean(0), rtol=1e-14)
        assert torch.allclose(merged.cov, torch.cov(x.T), rtol=1e-9)


PROTOCOL = {"features": "inception/clean", "crop": ["lanczos", 256], "side": 299}


def reference() -> ReferenceStats:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return ReferenceStats.of(FeatureStats.of(x), PROTOCOL)


def test_round_trip_with_the_protocol_inside(tmp_path: Path) -> None:
    ours = reference()
    ours.save(tmp_path / "new" / "coco.npz")
    loaded = ReferenceStats.load(tmp_path / "new" / "coco.npz")
    assert torch.equal(loaded.mean, ours.mean)
    assert torch.equal(loaded.cov, ours.cov)
    assert (loaded.n, loaded.protocol) == (30, PROTOCOL)
    with np.load(tmp_path / "new" / "coco.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["mu", "n", "protocol_json", "sigma"]
        assert json.loads(str(arrays["protocol_json"])) == PROTOCOL
        assert arrays["sigma"].dtype == np.float64


def test_moments_are_those_of_numpy(tmp_path: Path) -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    assert np.allclose(reference().mean, x.numpy().mean(0), rtol=1e-13)
    assert np.allclose(reference().cov, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_other_protocols_are_refused() -> None:
    ours = reference()
    ours.require(PROTOCOL)
    ours.require({"crop": ("lanczos", 256), "more": 1})
    ours.require({})
    with pytest.raises(UserError, match="side=299, not 512: the two are not comparable"):
        ours.require({"side": 512})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_npz_of_edm_and_clean_fid(tmp_path: Path, dtype: type) -> None:
    mu, sigma = np.arange(3, dtype=dtype), np.eye(3, dtype=dtype)
    np.savez_compressed(tmp_path / "cifar10.npz", mu=mu, sigma=sigma)
    loaded = ReferenceStats.load(tmp_path / "cifar10.npz")
    assert loaded.mean.tolist() == [0, 1, 2]
    assert loaded.cov.dtype == torch.float64
    assert (loaded.n, loaded.protocol) == (None, {})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_pickle_of_edm2(tmp_path: Path, protocol: int) -> None:
    record = {
        "num_images": 50_000,
        "fid": {"mu": np.arange(3.0), "sigma": np.eye(3)},
        "fd_dinov2": {"mu": np.ones(2), "sigma": np.eye(2, dtype=np.float32)},
    }
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(record, protocol=protocol))
    assert ReferenceStats.load(tmp_path / "img512.pkl").mean.tolist() == [0, 1, 2]
    assert ReferenceStats.load(tmp_path / "img512.pkl", metric="fd_dinov2").mean.tolist() == [1, 1]
    with pytest.raises(UserError, match="no statistics for 'kid'; it has num_images, fid, fd_dinov2"):
        ReferenceStats.load(tmp_path / "img512.pkl", metric="kid")


class Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"fid": Harmful()}))
    with pytest.raises(UserError, match="only arrays are allowed"):
        ReferenceStats.load(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


def test_features_of_clean_fid(tmp_path: Path) -> None:
    np.savez(tmp_path / "kid.npz", feats=np.ones((5, 2), dtype=np.float32))
    assert load_reference_features(tmp_path / "kid.npz").shape == (5, 2)
    with pytest.raises(UserError, match="holds feats, not the mu and sigma"):
        ReferenceStats.load(tmp_path / "kid.npz")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    for name, message in (
        ("gone.npz", "no reference at"),
        ("text.npz", "cannot be read as .npz"),
        ("odd.npz", "do not match"),
        ("objects.npz", "cannot be read as .npz"),
    ):
        with pytest.raises(UserError, match=message):
            ReferenceStats.load(tmp_path / name)
    with pytest.raises(UserError, match=r"end the name with \.npz"):
        reference().save(tmp_path / "x.safetensors")
