"""From pictures to what networks see: bytes, crops, patches; and the feature networks of transformers on tiny random models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from stepdistill.metrics import CMMDFeatures, DinoFeatures, feature_stats, image_files
from stepdistill.metrics.networks.dino_features import published_positions
from stepdistill.metrics.networks.features import FeatureNetwork, PatchFeatures
from stepdistill.metrics.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_crop,
    of_pictures,
    patches,
    same_size_batches,
    square,
    to_bytes,
    to_pictures,
)


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose pixel says where it is: red its column, green its row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corner(picture: Image.Image) -> tuple[int, int]:
    pixel = np.asarray(picture)[0, 0]
    return int(pixel[0]), int(pixel[1])


class Corners(FeatureNetwork):
    """The red and green level of the upper left pixel."""

    name, num_features = "corners", 2

    def forward(self, images) -> torch.Tensor:
        return torch.cat([batch[:, :2, 0, 0].float() for batch in same_size_batches(images)])


def test_rounding_and_truncation() -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 254.5, 254.6, 255.0]) / 255
    assert to_bytes(levels).tolist() == [0, 0, 1, 254, 255, 255]
    assert to_bytes(levels, rounding="truncate").tolist() == [0, 0, 0, 254, 254, 255]
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(everything), everything)
    assert torch.equal(to_bytes(everything / 255), everything)


def test_pictures_and_bytes_are_inverse() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(of_pictures(to_pictures(images)), images)


def test_odd_margins_are_cut_as_torchvision_or_as_cmmd_does() -> None:
    """Half to even: a margin of 2.5 cuts 2, one of 3.5 cuts 4; `floor` cuts 2 and 3."""
    assert corner(centre_crop(numbered(25, 27), 20)) == (2, 4)
    assert corner(centre_crop(numbered(25, 27), 20, offset="floor")) == (2, 3)


def test_squares_are_centred_and_resized_by_pil() -> None:
    picture = numbered(60, 40)
    expected = picture.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.LANCZOS)
    assert square(picture, 16).tobytes() == expected.tobytes()


def test_the_centre_patch_keeps_its_pixels() -> None:
    (patch,) = patches([numbered(101, 80)], size=40)
    assert patch.size == (40, 40)
    assert corner(patch) == (30, 20)
    (small,) = patches([numbered(101, 39)], size=40)
    assert small.size == (101, 39)


def test_random_patches_depend_on_the_picture_alone() -> None:
    pictures = [numbered(200, 150), numbered(150, 200), numbered(30, 200)]
    cut = [corner(each) for each in patches(pictures, size=40, num_patches=8, mode="random")]
    assert len(set(cut[:8])) == 8
    assert all(x <= 160 and y <= 110 for x, y in cut[:8])
    alone = [corner(each) for each in patches(pictures[1:2], size=40, num_patches=8, mode="random")]
    assert cut[8:16] == alone
    other = [corner(each) for each in patches(pictures[:1], size=40, num_patches=8, mode="random", seed=1)]
    assert cut[:8] != other


def test_patch_features_are_the_networks_of_the_patches() -> None:
    network = PatchFeatures(Corners(), size=40)
    assert network.name == "corners/patch-center40"
    assert network([numbered(100, 80), numbered(60, 60)]).tolist() == [[30, 20], [10, 10]]
    several = PatchFeatures(Corners(), size=40, num_patches=3, mode="random")
    assert several([numbered(100, 80), numbered(60, 60)]).shape == (6, 2)
    assert several.protocol()["patches"] == {"size": 40, "num_patches": 3, "mode": "random", "seed": 0}
    with pytest.raises(ValueError, match="one centre patch"):
        PatchFeatures(Corners(), num_patches=2)


class Convolved(FeatureNetwork):
    """One convolution; notes how exact the GPU would be told to be."""

    name, num_features = "convolved", 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3)
        self.asked: list[str] = []

    @torch.no_grad()
    def forward(self, images) -> torch.Tensor:
        self.asked = [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        return self.layer(images).mean((2, 3))


def test_features_are_single_precision_under_autocast() -> None:
    network, images = Convolved(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    plain = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images), plain)
        assert network.layer(images).dtype == torch.bfloat16
    assert network.asked == ["ieee", "ieee"]
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before
    assert torch.backends.cudnn.allow_tf32 == (before[0] == "tf32")


def test_statistics_of_a_folder(tmp_path: Path) -> None:
    corners = [(3, 9), (7, 1), (200, 40), (90, 90), (1, 250)]
    for index, (x, y) in enumerate(corners):
        folder = tmp_path / str(index % 2)
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (4 + index, 4), (x, y, 0)).save(folder / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    files = image_files(tmp_path)
    assert len(files) == 5
    stats = feature_stats(Corners(), files, batch_size=2)
    expected = torch.tensor(corners, dtype=torch.float64)
    assert stats.n == 5
    assert torch.allclose(stats.mean, expected.mean(0), rtol=1e-14)
    assert torch.allclose(stats.cov, torch.cov(expected.T), rtol=1e-13)
    with pytest.raises(ValueError, match="no images"):
        feature_stats(Corners(), [])


def tiny_dino(image_size: int = 70) -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=image_size))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    return model


def test_dino_features_are_the_models_class_token() -> None:
    """At the size the model was made for, where positions are not resized."""
    model = tiny_dino(56)
    images = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = (to_bytes(images).float() / 255 - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    for resize in ("pil", "clean", "edm2"):
        extractor = DinoFeatures(model, resize=resize, side=56, name="tiny")
        assert torch.allclose(extractor(images), expected, atol=1e-5)
        assert (extractor.name, extractor.num_features) == (f"tiny/{resize}", 16)


def test_dino_squeezes_pictures_without_a_crop() -> None:
    extractor = DinoFeatures(tiny_dino(56), side=56)
    wide = numbered(200, 120)
    squeezed = wide.resize((56, 56), Image.Resampling.BICUBIC)
    assert torch.equal(extractor([wide]), extractor([squeezed]))


def bicubic(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -3/4 at fractional points away from the borders, row by row."""
    first = np.floor(points).astype(int) - 1
    result = np.zeros((len(values), len(points)))
    for tap in range(4):
        x = np.abs(points - (first + tap))
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        result += np.where(x <= 1, near, far) * values[:, first + tap]
    return result


def test_positions_are_sampled_at_the_published_scale() -> None:
    """37 x 37 positions to 16 x 16, at (i + 1/2) * 37 / 16.1 - 1/2, not at (i + 1/2) * 37 / 16 - 1/2."""
    grid = np.random.default_rng(0).normal(size=(37, 37)).astype(np.float32)
    token = torch.full((1, 1, 1), -7.0)
    positions = torch.cat([token, torch.from_numpy(grid).reshape(1, -1, 1)], 1)
    resized = published_positions(positions, 16)
    assert resized.shape == (1, 257, 1)
    assert float(resized[0, 0, 0]) == -7.0
    points = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    expected = bicubic(bicubic(grid, points[1:-1]).T, points[1:-1]).T
    found = resized[0, 1:, 0].view(16, 16)[1:-1, 1:-1].numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert torch.equal(published_positions(positions, 37), positions)


def test_dino_resizes_positions_once() -> None:
    model = tiny_dino(70)
    trained = model.embeddings.position_embeddings.detach().clone()
    extractor = DinoFeatures(model, side=42, name="tiny")
    assert torch.equal(model.embeddings.position_embeddings, published_positions(trained, 3))
    assert extractor(torch.rand(2, 3, 30, 30)).shape == (2, 16)


def test_cmmd_features_are_the_published_steps() -> None:
    """Centre square, PIL bicubic, CLIP's normalisation, unit projected embedding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=8)
    )
    extractor = CMMDFeatures(model, name="tiny")
    picture = numbered(61, 40)
    cut = picture.crop((10, 0, 50, 40)).resize((28, 28), Image.Resampling.BICUBIC)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    with torch.no_grad():
        embeds = model.eval()(**processor(cut, return_tensors="pt")).image_embeds
    found = extractor([picture])
    assert torch.allclose(found, F.normalize(embeds, dim=1), atol=1e-5)
    assert found.norm(dim=1).tolist() == pytest.approx([1.0])
    assert (extractor.name, extractor.num_features) == ("tiny/cmmd", 8)
