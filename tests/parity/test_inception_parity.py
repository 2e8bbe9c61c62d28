"""The four FID variants against torch-fidelity, torchmetrics, pytorch-fid and clean-fid, on the same random weights and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepdistill.metrics import image_files, kernel_distance
from stepdistill.metrics.distances import frechet_distance_of_features
from stepdistill.metrics.networks.base import read_pictures
from stepdistill.metrics.networks.inception import InceptionFeatures, InceptionV3


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_legacy_tf_is_torch_fidelity(network: InceptionV3, weights: Path, images: torch.Tensor) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    assert relative_error(InceptionFeatures(network, "legacy_tf")(images), theirs(images)[0]) < 1e-6


def test_torchmetrics_default(network: InceptionV3, weights: Path, images: torch.Tensor) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    theirs = NoTrainInceptionV3("x", ["2048"], str(weights))
    assert relative_error(InceptionFeatures(network, "torchmetrics")(images), theirs(images)) < 1e-6


def test_pytorch_fid(
    network: InceptionV3, weights: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_fid import inception

    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_args, **_kwargs: state)
    theirs = inception.InceptionV3([3]).eval()
    with torch.no_grad():
        features = theirs(images.float() / 255)[0].flatten(1)
    assert relative_error(InceptionFeatures(network, "pytorch_fid")(images), features) < 1e-6


class Scripted(nn.Module):
    """Stands for NVIDIA's TorchScript file: clean-fid calls its `layers` on pixels that are resized and scaled already."""

    def __init__(self, trunk: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.layers = trunk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Trunk(nn.Module):
    """The graph of torch-fidelity after its resize."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1"]
        names += ["Conv2d_4a_3x3", "MaxPool_2", *(f"Mixed_5{x}" for x in "bcd")]
        names += [*(f"Mixed_6{x}" for x in "abcde"), *(f"Mixed_7{x}" for x in "abc"), "AvgPool"]
        self.blocks = nn.Sequential(*(getattr(network, name) for name in names))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).flatten(1)


@pytest.fixture(scope="module")
def clean_model(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from cleanfid.inception_torchscript import InceptionV3W
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    trunk = Trunk(FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights)))
    traced = torch.jit.trace(trunk.eval(), torch.zeros(1, 3, 299, 299))
    folder = tmp_path_factory.mktemp("script")
    torch.jit.script(Scripted(traced)).save(str(folder / "inception-2015-12-05.pt"))
    return InceptionV3W(str(folder), download=False)


def test_clean_is_clean_fid_from_files_to_the_distance(
    network: InceptionV3, clean_model: Any, folders: tuple[Path, Path]
) -> None:
    from cleanfid import fid

    extractor = InceptionFeatures(network, "clean")
    ours, theirs = [], []
    for folder in folders:
        theirs.append(
            fid.get_folder_features(str(folder), clean_model, num_workers=0, device=torch.device("cpu"), verbose=False)
        )
        ours.append(torch.cat([extractor(batch) for batch in read_pictures(image_files(folder), 4)]))
        assert relative_error(ours[-1], torch.from_numpy(theirs[-1])) < 1e-6
    # In float64, unlike clean-fid's own call: its single precision has lost the fourth digit of these six pictures.
    expected = fid.kernel_distance(*(each.astype("float64") for each in theirs), num_subsets=1)
    assert math.isclose(kernel_distance(*ours), expected, rel_tol=1e-4)
    # Fewer features than pictures, and none that is always zero: the covariances have a root without error.
    live = torch.from_numpy((theirs[0].std(0) > 0) & (theirs[1].std(0) > 0)).nonzero()[:3, 0]
    expected = fid.fid_from_feats(*(each[:, live].astype("float64") for each in theirs))
    value = frechet_distance_of_features(*(each[:, live] for each in ours))
    assert math.isclose(value, expected, rel_tol=1e-4)
