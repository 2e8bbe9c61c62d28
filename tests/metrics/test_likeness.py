"""LPIPS, pairs, diversity and the comparison with a teacher, on random weights."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import LPIPS, PairedSimilarity, PromptDiversity, psnr, ssim, vendi_score
from stepdistill.metrics.distances import frechet_distance_of_features
from stepdistill.metrics.diversity import mean_pairwise_cosine
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.lpips import TRUNKS
from stepdistill.metrics.preprocess import quantise
from stepdistill.metrics.teacher import TeacherRun, compare_with_teacher
from stepdistill.testing.networks import fill_at_random


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    """Published heads on a random trunk."""
    trunk = fill_at_random(TRUNKS["alex"]().layers)
    file = tmp_path_factory.mktemp("weights") / "alex.pth"
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    return LPIPS.load("alex", trunk=file)


class Colours(FeatureNetwork):
    """Mean colour of each quarter."""

    name, num_features = "colours", 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(quantise(images), 2).flatten(1)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_its_definition(net: Literal["alex", "vgg"]) -> None:
    """Unit features of each layer, squared differences weighted by the head, averaged over pixels (eq. 1), by NumPy."""
    metric = LPIPS(net)
    fill_at_random(metric.layers)
    first, second = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = torch.cat([first, second]).numpy().transpose(0, 2, 3, 1)
    x = torch.from_numpy(((2 * x - 1 - shift) / scale).transpose(0, 3, 1, 2)).float()
    expected, tap = np.zeros(2), 0
    for index, layer in enumerate(metric.layers):
        x = layer(x)
        if index in metric.taps:
            assert isinstance(layer, torch.nn.ReLU)
            maps = x.double().numpy()
            unit = maps / (np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-10)
            head = metric.heads[tap].double().numpy()[:, None, None]
            expected += (head * (unit[:2] - unit[2:]) ** 2).sum(1).mean((1, 2))
            tap += 1
    assert tap == 5
    assert metric(first, second).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_lpips_is_a_symmetric_distance(alex: LPIPS) -> None:
    first, second = noise(3, 3, 64, 64), noise(3, 3, 64, 64, seed=1)
    assert alex(first, first).tolist() == [0, 0, 0]
    assert torch.allclose(alex(first, second), alex(second, first))
    assert bool((alex(first, second) > 0).all())
    nearer = 0.5 * (first + second)
    assert bool((alex(first, nearer) < alex(first, second)).all())


def test_all_pairs_are_the_pairs_one_by_one(alex: LPIPS) -> None:
    images = noise(4, 3, 64, 64)
    one_by_one = [
        float(alex(images[i : i + 1], images[j : j + 1])) for i in range(4) for j in range(i + 1, 4)
    ]
    assert alex.pairwise(images).tolist() == pytest.approx(one_by_one, rel=1e-5)
    assert alex.pairwise(images[:1]).shape == (0,)


def test_unscaled_pictures_are_another_number(alex: LPIPS) -> None:
    first, second = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    unscaled = LPIPS("alex", rescale=False)
    unscaled.load_state_dict(alex.state_dict())
    assert torch.allclose(unscaled(2 * first - 1, 2 * second - 1), alex(first, second), rtol=1e-5)
    assert not torch.allclose(unscaled(first, second), alex(first, second), rtol=1e-2)
    assert (alex.name, unscaled.name) == ("lpips/alex", "lpips/alex/unscaled")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_published_heads_fit_and_are_not_negative(net: Literal["alex", "vgg"], alex: LPIPS, tmp_path) -> None:
    torch.save({f"features.{n}": t for n, t in TRUNKS[net]().layers.state_dict().items()}, tmp_path / "t.pth")
    heads = LPIPS.load(net, trunk=tmp_path / "t.pth").heads
    assert [len(head) for head in heads] == list(TRUNKS[net]().channels)
    assert all(float(head.min()) >= 0 and float(head.max()) > 0.1 for head in heads)


def test_a_trunk_of_another_network_is_refused(tmp_path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "t.pth")
    with pytest.raises(UserError, match="no vgg trunk of LPIPS"):
        LPIPS.load("vgg", trunk=tmp_path / "t.pth")


def test_psnr_has_a_closed_form() -> None:
    """A constant difference of k levels: 20 log10(255 / k)."""
    flat = torch.full((2, 3, 8, 8), 100 / 255)
    shifted = flat + torch.tensor([5, 20])[:, None, None, None] / 255
    expected = [20 * math.log10(255 / 5), 20 * math.log10(255 / 20)]
    assert psnr(flat, shifted).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(flat, flat).tolist() == [math.inf, math.inf]


def test_ssim_identities() -> None:
    images = noise(3, 3, 24, 24)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    other = noise(3, 3, 24, 24, seed=1)
    assert torch.allclose(ssim(images, other), ssim(other, images), atol=1e-6)
    assert bool((ssim(images, other) < 0.3).all())
    # Of two constants a and b only the luminance term is left: (2ab + C1) / (a^2 + b^2 + C1), C1 = 0.01^2.
    a, b = 51 / 255, 204 / 255
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert float(value) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-4)


def test_pairs_are_averaged_over_batches(alex: LPIPS) -> None:
    images, references = noise(5, 3, 64, 64), noise(5, 3, 64, 64, seed=1)
    metric = PairedSimilarity(lpips=alex, features=Colours())
    for rows in (slice(0, 2), slice(2, 5)):
        metric.update(images[rows], references[rows])
    found = {name: float(value) for name, value in metric.compute().items()}
    a, b = Colours()(images), Colours()(references)
    expected = {
        "psnr": float(psnr(images, references).mean()),
        "ssim": float(ssim(images, references).mean()),
        "lpips": float(alex(quantise(images), quantise(references)).mean()),
        "cosine": float(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(PairedSimilarity().half().totals.shape) == [2]
    with pytest.raises(ValueError, match="are no pairs"):
        metric.update(images, references[:2])


def test_vendi_counts_clusters() -> None:
    """Orthogonal groups of parallel features: as many as groups if equally large, else the exponential of their entropy."""
    for sizes in ([1] * 6, [3, 3, 3], [8], [6, 2]):
        rows = [torch.eye(9)[i] * (1 + j) for i, size in enumerate(sizes) for j in range(size)]
        p = torch.tensor(sizes) / sum(sizes)
        expected = float((-(p * p.log()).sum()).exp())
        assert vendi_score(torch.stack(rows)) == pytest.approx(expected, rel=1e-6)
    assert vendi_score(torch.stack([torch.eye(4)[i % 4] for i in range(40)])) == pytest.approx(4.0, rel=1e-12)
    with pytest.raises(ValueError, match="no features"):
        vendi_score(torch.zeros(0, 3))


@pytest.mark.parametrize("n", [5, 30])
def test_vendi_is_the_entropy_of_the_cosines(n: int) -> None:
    """By the full matrix of cosines, whichever side is the smaller."""
    features = torch.randn(n, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    eigenvalues = np.linalg.eigvalsh((unit @ unit.T / n).numpy())
    eigenvalues = eigenvalues[eigenvalues > 1e-14]
    assert vendi_score(features) == pytest.approx(
        math.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-9
    )


def test_mean_cosine_is_the_mean_over_pairs() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    cosines = [torch.nn.functional.cosine_similarity(features[i], features[j], dim=0) for i, j in pairs]
    assert mean_pairwise_cosine(features) == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-12)
    with pytest.raises(ValueError, match="needs two samples"):
        mean_pairwise_cosine(features[:1])


def test_diversity_tells_a_collapsed_generator(alex: LPIPS) -> None:
    """Two prompts of four seeds: means over prompts of the measures of each."""
    prompts = [noise(4, 3, 64, 64), noise(4, 3, 64, 64, seed=1)]
    metric = PromptDiversity(lpips=alex, features=Colours())
    for images in prompts:
        metric.update(images)
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = {
        "lpips": np.mean([float(alex.pairwise(quantise(images)).mean()) for images in prompts]),
        "cosine": np.mean([mean_pairwise_cosine(Colours()(images)) for images in prompts]),
        "vendi": np.mean([vendi_score(Colours()(images)) for images in prompts]),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    metric.reset()
    metric.update(prompts[0][:1].repeat(4, 1, 1, 1))
    collapsed = {name: float(value) for name, value in metric.compute().items()}
    assert collapsed == pytest.approx({"lpips": 0, "cosine": 1, "vendi": 1}, abs=1e-6)
    with pytest.raises(ValueError, match="two pictures of a prompt"):
        metric.update(prompts[0][:1])
    with pytest.raises(ValueError, match="or both"):
        PromptDiversity()


def test_diversity_at_the_size_of_dmd2(alex: LPIPS) -> None:
    images = noise(2, 3, 40, 70)
    metric = PromptDiversity(lpips=alex, side=64)
    metric.update(images)
    assert float(metric.compute()["lpips"]) > 0
    same = PromptDiversity(lpips=alex, side=64)
    same.update(noise(2, 3, 64, 64))
    assert float(same.compute()["lpips"]) == pytest.approx(
        float(alex.pairwise(quantise(noise(2, 3, 64, 64)))), rel=1e-6
    )


def run(seeds: Literal["shared", "independent"]) -> TeacherRun:
    return TeacherRun.of("toy", ["a", "b"], steps=50, guidance_scale=4.0, seeds=seeds)


def test_a_student_lies_between_its_teacher_and_noise() -> None:
    """Teacher against its other seeds < student < noise, and the pairs agree only with shared noise."""
    colours = noise(60, 3, 1, 1)
    teacher = (colours + 0.05 * noise(60, 3, 16, 16, seed=1)).clamp(0, 1)
    other = (noise(60, 3, 1, 1, seed=2) + 0.05 * noise(60, 3, 16, 16, seed=3)).clamp(0, 1)
    student = (0.5 * teacher + 0.25).clamp(0, 1)
    near = compare_with_teacher(Colours(), student, teacher, run("shared"), other_teacher=other, batch_size=7)
    far = compare_with_teacher(Colours(), noise(60, 3, 16, 16, seed=4), teacher, run("shared"))
    expected = frechet_distance_of_features(Colours()(student), Colours()(teacher))
    assert near.frechet_distance == pytest.approx(expected, rel=1e-9)
    assert near.floor is not None
    assert near.floor < near.frechet_distance < far.frechet_distance
    assert near.paired is not None
    assert far.paired is not None
    assert near.paired["psnr"] > far.paired["psnr"] + 3
    assert near.paired["cosine"] > far.paired["cosine"]
    assert near.protocol["teacher_run"]["steps"] == 50
    assert near.protocol["features"] == "colours"


def test_independent_seeds_have_no_pairs() -> None:
    images = noise(20, 3, 16, 16)
    comparison = compare_with_teacher(Colours(), images, images, run("independent"))
    assert comparison.paired is None
    assert comparison.floor is None
    assert comparison.frechet_distance == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="20 pictures of the student, 19 of the teacher"):
        compare_with_teacher(Colours(), images, images[1:], run("shared"))


def test_prompts_are_part_of_the_run() -> None:
    other = TeacherRun.of("toy", ["b", "a"], steps=50, guidance_scale=4.0, seeds="shared")
    assert other.prompts_digest != run("shared").prompts_digest
    assert run("shared").protocol() == {"teacher_run": run("shared").__dict__}
