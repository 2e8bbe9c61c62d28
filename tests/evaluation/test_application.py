"""A protocol from pictures to numbers: resuming, sharing work, and the record beside each number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation import extractors
from stepdistill.evaluation.application import EvaluationOptions, evaluate
from stepdistill.evaluation.catalogue import chosen_metrics, variant_of
from stepdistill.evaluation.document import ModelRecord, RunResults
from stepdistill.evaluation.extractors import DiversityExtractor, FeatureExtractor, ScorerExtractor
from stepdistill.evaluation.generation import prompt_seed
from stepdistill.evaluation.picture_store import MANIFEST, read_manifest
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Protocol
from stepdistill.evaluation.sources import Drawn, Source, describe
from stepdistill.evaluation.timing import CostRules
from stepdistill.metrics.distances import frechet_distance_of_features
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.references import FeatureStats, ReferenceStats
from stepdistill.testing import tiny_pipeline

PROTOCOL = Protocol(
    "tiny",
    prompts=None,
    num_prompts=8,
    variants=(("fid", "grey"), ("kid", "grey"), ("clip", "length"), ("cosine_diversity", "diversity/grey")),
)
PROMPTS = PromptSet(
    tuple(f"prompt {number}" for number in range(8)), tuple("abcdefgh"), tuple("xxxxyyyy")
)  # fmt: skip
NO_TIMES = CostRules(repeats=0)


class Grey(FeatureNetwork):
    """Means of the colours of the whole and of the upper half: six features that need no weights."""

    name, num_features = "grey", 6

    def forward(self, images: Any) -> torch.Tensor:
        pixels = torch.stack([torch.as_tensor(_array(each)) for each in images]).float() / 255
        return torch.cat([pixels.mean((2, 3)), pixels[:, :, :8].mean((2, 3))], dim=1)


def _array(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return extractors.of_pictures([image])[0]
    return (image * 255).round()


class Length:
    """The brightness of a picture plus the length of its prompt."""

    name = "length"

    def description(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, pictures: Any, prompts: Any) -> torch.Tensor:
        return torch.tensor([_array(p).float().mean() + len(t) for p, t in zip(pictures, prompts, strict=True)])


TINY_EXTRACTORS = {
    "grey": lambda protocol, device: FeatureExtractor(Grey(), side=protocol.square),
    "length": lambda protocol, device: ScorerExtractor(Length()),
    "diversity/grey": lambda protocol, device: DiversityExtractor("diversity/grey", features=Grey()),
}


@pytest.fixture(autouse=True)
def _tiny_extractors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "EXTRACTORS", {**extractors.EXTRACTORS, **TINY_EXTRACTORS})


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    pipe = tiny_pipeline("sd")
    return describe(pipe, {"num_inference_steps": 2, "guidance_scale": 2.0}, Source("tiny", name="tiny, 2 steps"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    images = torch.randint(0, 256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    return folder


def options(out: Path, real: Path | None, **others: Any) -> EvaluationOptions:
    settings: dict[str, Any] = {"batch_size": 3, "cost": NO_TIMES} | others
    return EvaluationOptions(out, reference=None if real is None else str(real), **settings)


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.png"))}


METRICS = ["fid", "kid", "clip", "brightness"]


@pytest.fixture(scope="module")
def whole(drawn: Drawn, real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "EXTRACTORS", {**extractors.EXTRACTORS, **TINY_EXTRACTORS})
        evaluate(drawn, PROTOCOL, PROMPTS, METRICS, options(out, real))
    return out


def test_the_folder_holds_pictures_columns_and_numbers(whole: Path) -> None:
    records = read_manifest(whole / MANIFEST)
    assert [record.index for record in records] == list(range(8))
    assert [record.seed for record in records] == [prompt_seed(0, index) for index in range(8)]
    assert (records[5].prompt, records[5].id, records[5].category) == ("prompt 5", "f", "y")
    table = pq.read_table(whole / "scores/length.parquet")
    assert table["index"].to_pylist() == list(range(8))
    scores = torch.tensor(table["score"].to_pylist()).double()
    results = RunResults.read(whole)
    clip = results.metrics["clip"]
    assert clip.value == pytest.approx(float(scores.mean()), abs=1e-12)
    assert clip.standard_error == pytest.approx(float(scores.std() / 8**0.5), abs=1e-12)
    assert clip.by_category["y"].value == pytest.approx(float(scores[4:].mean()), abs=1e-12)
    assert (clip.n, clip.variant, clip.by_category["y"].n) == (8, "length", 4)
    assert results.protocol["hash"] == PROTOCOL.hash
    assert results.cost.nfe == 4.0
    assert results.rows[0]["frechet_distance"] == results.metrics["fid"].value
    assert results.versions["torch"] == torch.__version__ or "torch" in results.versions
    assert not (whole / ".parts").exists()


def test_the_distance_is_that_of_the_features(whole: Path, real: Path) -> None:
    columns = pq.read_table(whole / "scores/grey.parquet")["features"].to_pylist()
    others = Grey()([Image.open(path).convert("RGB") for path in sorted(real.glob("*.png"))])
    expected = frechet_distance_of_features(torch.tensor(columns), others)
    assert RunResults.read(whole).metrics["fid"].value == pytest.approx(expected, abs=1e-10)


def test_statistics_on_disk_give_the_same_distance(drawn: Drawn, whole: Path, real: Path, tmp_path: Path) -> None:
    network = Grey()
    features = network([Image.open(path).convert("RGB") for path in sorted(real.glob("*.png"))])
    ReferenceStats.of(FeatureStats.of(features), network.protocol()).save(tmp_path / "real.npz")
    shutil.copytree(whole, tmp_path / "run")
    out = options(tmp_path / "run", tmp_path / "real.npz")
    found = evaluate(drawn, PROTOCOL, PROMPTS, ["fid"], out)
    assert found.metrics["fid"].value == pytest.approx(RunResults.read(whole).metrics["fid"].value, rel=1e-6)
    with pytest.raises(UserError, match="needs reference pictures"):
        evaluate(drawn, PROTOCOL, PROMPTS, ["kid"], out)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("stage", ["pictures", "grey", "length"])
def test_a_killed_run_goes_on_and_ends_the_same(
    drawn: Drawn, real: Path, whole: Path, tmp_path: Path, stage: str
) -> None:
    def kill(name: str, done: int, total: int) -> None:
        if name == stage and done == 2:
            raise KilledError

    killed = options(tmp_path, real, progress=kill)
    with pytest.raises(KilledError):
        evaluate(drawn, PROTOCOL, PROMPTS, METRICS, killed)
    assert not (tmp_path / "results.json").exists()
    blocks: list[tuple[str, int]] = []
    again = options(tmp_path, real, progress=lambda name, done, total: blocks.append((name, total)))
    evaluate(drawn, PROTOCOL, PROMPTS, METRICS, again)
    first = next(total for name, total in blocks if name == stage)
    assert first < 3, "what was done is not done again"
    assert pictures(tmp_path) == pictures(whole)
    assert RunResults.read(tmp_path).metrics == RunResults.read(whole).metrics


def test_half_of_the_outputs_deleted_come_back_bit_by_bit(
    drawn: Drawn, real: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in [*sorted(out.rglob("*.png"))[::2], out / "scores/grey.parquet", out / "results.json"]:
        path.unlink()
    (out / "scores/length.parquet").write_bytes((whole / "scores/length.parquet").read_bytes())
    evaluate(drawn, PROTOCOL, PROMPTS, METRICS, options(out, real))
    assert pictures(out) == pictures(whole)
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_a_finished_run_draws_and_scores_nothing(drawn: Drawn, real: Path, whole: Path, tmp_path: Path) -> None:
    out, blocks = tmp_path / "run", []
    shutil.copytree(whole, out)
    evaluate(drawn, PROTOCOL, PROMPTS, METRICS, options(out, real, progress=lambda *block: blocks.append(block)))
    assert blocks == []


def test_numbers_of_an_earlier_call_stay(drawn: Drawn, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    found = evaluate(drawn, PROTOCOL, PROMPTS, ["contrast"], options(out, None))
    assert set(found.metrics) == {*METRICS, "contrast"}
    assert found.metrics["fid"] == RunResults.read(whole).metrics["fid"]


def test_neither_batch_nor_order_matters(drawn: Drawn, real: Path, whole: Path, tmp_path: Path) -> None:
    found = evaluate(drawn, PROTOCOL, PROMPTS, METRICS, options(tmp_path, real, batch_size=8))
    expected = RunResults.read(whole)
    for name, number in found.metrics.items():
        assert number.value == pytest.approx(expected.metrics[name].value, rel=1e-3), name
        assert number.protocol == expected.metrics[name].protocol


def test_a_folder_grows_with_the_prompts(drawn: Drawn, real: Path, whole: Path, tmp_path: Path) -> None:
    """More prompts of the same list are added to a folder, fewer are a prefix of it; others are refused."""
    blocks: list[Any] = []
    first = evaluate(drawn, PROTOCOL, PROMPTS.first(3), METRICS, options(tmp_path, real))
    assert first.metrics["fid"].n == 3
    grown = options(tmp_path, real, progress=lambda *block: blocks.append(block))
    assert evaluate(drawn, PROTOCOL, PROMPTS, METRICS, grown).metrics == RunResults.read(whole).metrics
    assert [block for block in blocks if block[0] == "pictures"] == [("pictures", 1, 2), ("pictures", 2, 2)]
    blocks.clear()
    again = evaluate(drawn, PROTOCOL, PROMPTS.first(3), METRICS, grown)
    assert again.metrics == first.metrics
    assert blocks == []
    with pytest.raises(UserError, match="lists other prompts"):
        evaluate(drawn, PROTOCOL, PromptSet.of(["x", "y"]), METRICS, options(tmp_path, real))


def test_scored_pictures_need_not_be_kept(drawn: Drawn, real: Path, whole: Path, tmp_path: Path) -> None:
    """Columns of deleted pictures stay; a new extractor draws the pictures again."""
    evaluate(drawn, PROTOCOL, PROMPTS, ["fid"], options(tmp_path, real, keep=2))
    assert sorted(pictures(tmp_path)) == ["000000.png", "000001.png"]
    blocks: list[Any] = []
    again = options(tmp_path, real, keep=2, progress=lambda *block: blocks.append(block))
    evaluate(drawn, PROTOCOL, PROMPTS, ["fid"], again)
    assert blocks == []
    found = evaluate(drawn, PROTOCOL, PROMPTS, METRICS, again)
    assert [block[0] for block in blocks if block[0] in ("pictures", "grey")] == ["pictures"] * 3
    assert found.metrics == RunResults.read(whole).metrics
    assert len(pictures(tmp_path)) == 2


def test_a_folder_may_be_overwritten(drawn: Drawn, tmp_path: Path) -> None:
    evaluate(drawn, PROTOCOL, PROMPTS, ["brightness"], options(tmp_path, None))
    other = replace(drawn, model=drawn.model.model_copy(update={"weights": "other"}))
    found = evaluate(other, PROTOCOL, PROMPTS, ["contrast"], options(tmp_path, None, overwrite=True))
    assert set(found.metrics) == {"contrast"}


def test_a_teachers_columns_are_reused(drawn: Drawn, real: Path, tmp_path: Path) -> None:
    """The distance to the teacher needs no pictures that the teacher's folder has scored and deleted."""
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    evaluate(drawn, PROTOCOL, PROMPTS, ["fid"], options(teacher, real, keep=0))
    assert not pictures(teacher)
    found = evaluate(drawn, PROTOCOL, PROMPTS, ["fid_to_teacher"], options(out, None, teacher=teacher))
    assert found.metrics["fid_to_teacher"].value == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(UserError, match="is missing"):
        evaluate(drawn, PROTOCOL, PROMPTS, ["psnr"], options(out, None, teacher=teacher))


def test_a_folder_is_of_one_run(drawn: Drawn, whole: Path) -> None:
    other = replace(drawn, model=drawn.model.model_copy(update={"steps": 3, "guidance_scale": 1.0}))
    with pytest.raises(UserError, match=r"another run \(guidance_scale, steps changed\)"):
        evaluate(other, PROTOCOL, PROMPTS, METRICS, options(whole, None))
    with pytest.raises(UserError, match="seed"):
        evaluate(drawn, replace(PROTOCOL, seed=1), PROMPTS, METRICS, options(whole, None))


def test_changed_pictures_are_scored_anew(whole: Path, real: Path, tmp_path: Path) -> None:
    """Columns go by the content of the pictures, not by their names."""
    folder, out = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(real, folder)
    adopted = Drawn(ModelRecord(name="found", source="there"), folder=folder)
    none = options(out, real)
    first = evaluate(adopted, PROTOCOL, None, ["fid", "brightness"], none)
    assert first.metrics["fid"].value == pytest.approx(0.0, abs=1e-9)
    Image.new("RGB", (16, 16), (255, 255, 255)).save(folder / "3.png")
    second = evaluate(adopted, PROTOCOL, None, ["brightness"], none)
    assert set(second.metrics) == {"brightness"}, "the earlier distance was of other pictures"
    second = evaluate(adopted, PROTOCOL, None, ["fid", "brightness"], none)
    assert second.metrics["brightness"].value > first.metrics["brightness"].value
    assert second.metrics["fid"].value > 0.01
    with pytest.raises(UserError, match="needs the prompts"):
        evaluate(adopted, PROTOCOL, None, ["clip"], none)
    with pytest.raises(UserError, match="contains 12 pictures for 8 prompts"):
        evaluate(adopted, PROTOCOL, PROMPTS, ["clip"], options(tmp_path / "other", real))


def test_pictures_of_a_run_keep_their_prompts(whole: Path, tmp_path: Path) -> None:
    adopted = Drawn(ModelRecord(name="again", source=str(whole)), folder=whole)
    found = evaluate(adopted, PROTOCOL, None, ["clip"], options(tmp_path, None))
    assert found.metrics["clip"] == RunResults.read(whole).metrics["clip"]
    others = PromptSet.of([f"other {number}" for number in range(8)])
    with pytest.raises(UserError, match="lists other prompts"):
        evaluate(adopted, PROTOCOL, others, ["clip"], options(tmp_path / "other", None))


def test_several_seeds_of_a_prompt_and_the_teacher(drawn: Drawn, tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, samples_per_prompt=3)
    names = ["clip", "cosine_diversity", "vendi"]
    teacher = evaluate(drawn, protocol, PROMPTS.first(4), names, options(tmp_path / "teacher", None))
    records = read_manifest(tmp_path / "teacher" / MANIFEST)
    assert [(record.prompt_index, record.sample) for record in records[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert teacher.metrics["vendi"].n == 12
    assert 1 < teacher.metrics["vendi"].value <= 3
    assert teacher.metrics["cosine_diversity"].value < 1
    other = describe(tiny_pipeline("sd", seed=1), {"num_inference_steps": 1}, Source("student"))
    both = options(tmp_path / "student", None, teacher=tmp_path / "teacher")
    pair = ["psnr", "ssim", "fid_to_teacher"]
    student = evaluate(other, protocol, PROMPTS.first(4), pair, both)
    assert set(student.metrics) == set(pair)
    assert student.metrics["psnr"].value < 60
    assert student.metrics["fid_to_teacher"].value > 0
    itself = options(tmp_path / "itself", None, teacher=tmp_path / "teacher")
    same = evaluate(drawn, protocol, PROMPTS.first(4), ["ssim", "fid_to_teacher"], itself)
    assert same.metrics["ssim"].value == pytest.approx(1.0)
    assert same.metrics["fid_to_teacher"].value == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(UserError, match="--samples"):
        evaluate(drawn, PROTOCOL, PROMPTS, ["vendi"], options(tmp_path / "one", None))


def test_names_that_mean_nothing_are_refused() -> None:
    def chosen(*names: str) -> Any:
        return chosen_metrics(names, PROTOCOL, has_reference=True, has_teacher=False)

    for name, message in {"fdi": "did you mean 'fid'", "hps": "defines no variant of 'hps'"}.items():
        with pytest.raises(UserError, match=message):
            chosen(name)
    names, protocol = chosen("fid=inception/legacy_tf", "clip")
    assert (names, variant_of("fid", protocol)) == (["fid", "clip"], "inception/legacy_tf")
    assert protocol.hash != PROTOCOL.hash
    with pytest.raises(UserError, match="unknown metric variant 'hps/v9'"):
        extractors.open_extractor("hps/v9", PROTOCOL, torch.device("cpu"))
    with pytest.raises(UserError, match="cannot be imported"):
        extractors.open_extractor("no_such_module:score", PROTOCOL, torch.device("cpu"))


def test_a_clip_model_serves_as_feature_network(clip: ClipFeatures) -> None:
    """Feature networks of the package serve without a wrapper of their own."""
    extractor = DiversityExtractor("diversity/random", features=clip)
    records = read_manifest_like(2)
    noise = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    seen = extractor([Image.fromarray(each.numpy()) for each in noise], records)
    assert seen["vendi"].shape == (1,)


def read_manifest_like(count: int) -> list[Any]:
    from stepdistill.evaluation.picture_store import PictureRecord

    return [PictureRecord(i, 0, i, "a", "0", None, i, f"{i}.png", 0, str(i)) for i in range(count)]


def test_work_is_shared_without_overlap() -> None:
    shares = [list(ProcessGroup(rank, 3).share(range(10))) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(10))


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_application as t
from stepdistill.evaluation import extractors
extractors.EXTRACTORS.update(t.TINY_EXTRACTORS)
pipe = t.tiny_pipeline("sd")
drawn = t.describe(pipe, dict(num_inference_steps=2, guidance_scale=2.0), t.Source("tiny", name="tiny, 2 steps"))
t.evaluate(drawn, t.PROTOCOL, t.PROMPTS, t.METRICS, t.options(Path({out!r}), Path({real!r})))
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_make_the_same_files(whole: Path, real: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "worker.py", tmp_path / "two"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(out), real=str(real)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29613"]
    done = subprocess.run(
        [*launch, str(script)], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-20000:]
    assert pictures(out) == pictures(whole)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (whole, out))
    assert two["metrics"] == one["metrics"]
