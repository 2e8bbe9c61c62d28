"""Data stay where they are; batches go where training is."""

from __future__ import annotations

from pathlib import Path

import torch

import stepdistill as sd
from stepdistill.data.source import TrainingData, prepare_data
from stepdistill.data.trajectories import TeacherPairs
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.testing import tiny_pipeline


def data_of(count: int = 6) -> TrainingData:
    cond = Conditioning({"tokens": torch.arange(count)[:, None].float()})
    real = torch.arange(4.0)[:, None]
    return TrainingData(
        prompts=tuple(map(str, range(count))),
        cond=cond,
        uncond=Conditioning({"tokens": -torch.ones(1, 1)}),
        shape=(1,),
        latents=10 + real,
        latents_cond=Conditioning({"tokens": 10 + real}),
        pairs=TeacherPairs(noise=torch.arange(9.0)[:, None], x0=-torch.arange(9.0)[:, None]),
    )


def test_batches_go_to_the_device_and_the_data_do_not() -> None:
    data = data_of().to("meta")
    batch = data.batch(seed=0, step=0, indices=[0, 1], size=2)
    assert batch.latents is not None
    assert batch.latents_cond is not None
    assert batch.pairs is not None
    parts = [batch.cond, batch.uncond, batch.latents_cond, batch.latents, batch.noise("x"), batch.pairs.noise,
             batch.pairs.x0, batch.pairs.cond]  # fmt: skip
    assert {part.device.type for part in parts} == {"meta"}
    assert data.latents is not None
    assert {data.cond.device.type, data.latents.device.type} == {"cpu"}
    assert data.device.type == "meta"
    assert data_of().device.type == "cpu"


def test_rows_of_a_batch_belong_together() -> None:
    data = data_of()
    for step in range(4):
        batch = data.batch(seed=1, step=step, indices=[0, 1, 2], size=3)
        assert [str(int(row)) for row in batch.cond["tokens"].flatten()] == list(batch.prompts)
        assert batch.latents is not None
        assert batch.latents_cond is not None
        assert torch.equal(batch.latents, batch.latents_cond["tokens"])
        assert batch.pairs is not None
        assert torch.equal(batch.pairs.noise, -batch.pairs.x0)
        assert torch.equal(batch.pairs.noise % 6, batch.pairs.cond["tokens"]), "pair i is of prompt i, counted round"


def test_kept_embeddings_are_those_of_these_encoders(tmp_path: Path) -> None:
    """A model that was trained on in the same folder is another one, although its name is the same."""
    teacher, prompts = sd.load_teacher(tiny_pipeline("sd")), tmp_path / "prompts.txt"
    prompts.write_text("a red fox\ntwo cats\n")

    def tokens() -> torch.Tensor:
        data = prepare_data(teacher, model="same", prompts=str(prompts), cache_dir=str(tmp_path / "cache"))
        return data.cond["tokens"]

    first = tokens()
    assert torch.equal(tokens(), first)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with torch.no_grad():
        next(iter(teacher.encoders()["text_encoder"].parameters())).mul_(2.0)
    assert torch.equal(tokens(), sd.load_teacher(teacher.pipe).encode(["a red fox", "two cats"])["tokens"])
    assert not torch.equal(tokens(), first)
