"""The loop: resume, accumulation, signals, bad steps, full disks, two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stepdistill as sd
from stepdistill.diffusion.rollout import Samples
from stepdistill.distillers.base import Batch, Losses
from stepdistill.distillers.distribution.config import DMD2Config
from stepdistill.errors import RunInterruptedError, UserError
from stepdistill.testing import tiny_pipeline
from stepdistill.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.trainer import Trainer

PROMPTS = ["a red fox", "two cats", "a blue car", "snow"]
ROLES = sd.Roles(rank=2, target_modules=["to_q", "to_v"])


def build(run_dir: Path, distiller_class: type[sd.DMD2] = sd.DMD2, **options: object) -> Trainer:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = distiller_class(teacher, DMD2Config(num_steps=2, student_every=2), roles=ROLES)
    settings = {
        "train_batch_size": 2, "max_train_steps": 4, "learning_rate": 1e-3, "ema_decay": 0.9,
        "output_dir": str(run_dir), "device": "cpu", "log_every": 1, "mixed_precision": "no",
    }  # fmt: skip
    return Trainer(distiller, TrainConfig.model_validate(settings | options), PROMPTS)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    groups = {**trainer.distiller.state(), "ema": trainer.ema.state_dict()}
    return {f"{name}.{key}": value.clone() for name, group in groups.items() for key, value in group.items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole")
    whole.fit()

    class StoppedError(Exception):
        pass

    class StopsAtTwo(sd.DMD2):
        def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
            if batch.step == 3:
                raise StoppedError
            return super().critic_step(batch, samples)

    first = build(tmp_path / "parts", StopsAtTwo, checkpointing_steps=2)
    with pytest.raises(StoppedError):
        first.fit()
    second = build(tmp_path / "parts", checkpointing_steps=2)
    second.fit()
    assert_equal(weights(whole), weights(second))
    read = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in read] == [1, 2, 3, 4]
    reference = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert read[-1]["loss/fake_score"] == reference[-1]["loss/fake_score"]


def test_micro_batches_make_the_same_step(tmp_path: Path) -> None:
    at_once = build(tmp_path / "a", train_batch_size=4, max_train_steps=2)
    in_parts = build(tmp_path / "b", train_batch_size=2, gradient_accumulation_steps=2, max_train_steps=2)
    for trainer in (at_once, in_parts):
        trainer.fit()
    a, b = weights(at_once), weights(in_parts)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-5)


def test_checkpointed_blocks_are_recomputed_with_the_same_attention_in_bf16(tmp_path: Path) -> None:
    """Kernels of two kinds save different tensors, which torch refuses. Also: a process may train at two precisions."""
    build(tmp_path / "float32", max_train_steps=1).fit()
    lean = build(tmp_path / "lean", gradient_checkpointing=True, mixed_precision="bf16", max_train_steps=2)
    before = weights(lean)
    lean.fit()
    assert lean.num_skipped == 0
    assert any(not torch.equal(value, before[name]) for name, value in weights(lean).items())


def test_a_signal_writes_a_checkpoint_and_the_next_run_goes_on(tmp_path: Path) -> None:
    class Interrupted(sd.DMD2):
        def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
            if batch.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().critic_step(batch, samples)

    with pytest.raises(RunInterruptedError, match="step 2"):
        build(tmp_path / "run", Interrupted).fit()
    folder = latest_checkpoint(tmp_path / "run")
    assert folder is not None
    assert folder.name == "step_2"
    resumed = build(tmp_path / "run")
    resumed.fit()
    whole = build(tmp_path / "whole")
    whole.fit()
    assert_equal(weights(whole), weights(resumed))


class NotFinite(sd.DMD2):
    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        losses = super().critic_step(batch, samples)
        losses.terms["fake_score"] = losses.terms["fake_score"] * float("nan")
        return losses


def test_non_finite_steps_are_skipped_counted_and_named(tmp_path: Path) -> None:
    trainer = build(tmp_path / "run", NotFinite, max_skipped_steps=3)
    before = {k: v.clone() for k, v in trainer.distiller.state()["fake_score"].items()}
    with pytest.raises(UserError, match=r"3 steps were not finite.*fake_score.*learning_rate"):
        trainer.fit()
    assert_equal(before, trainer.distiller.state()["fake_score"])
    assert latest_checkpoint(tmp_path / "run") is not None


def test_teacher_is_bitwise_the_same_after_training(tmp_path: Path) -> None:
    trainer = build(tmp_path / "run")
    teacher = trainer.distiller.teacher
    names = [name for name, _ in teacher.named_parameters() if "lora" not in name]
    before = {name: teacher.get_parameter(name).detach().clone() for name in names}
    trainer.fit()
    assert all(torch.equal(before[name], teacher.get_parameter(name)) for name in names)


def test_average_follows_only_student_updates(tmp_path: Path) -> None:
    trainer = build(tmp_path / "run", max_train_steps=4)
    trainer.fit()
    assert trainer.ema.num_updates == 2
    live = [p.detach().clone() for p in trainer.ema.parameters]
    with trainer.student_average():
        assert any(not torch.equal(p, q) for p, q in zip(trainer.ema.parameters, live, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(trainer.ema.parameters, live, strict=True))


def test_old_checkpoints_go_and_the_pointer_comes_last(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"student": {"w": torch.ones(2) * step}}, {"x": step}, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_2", "step_3"]
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    tensors, state = load_checkpoint(folder)
    assert tensors["student"]["w"].tolist() == [3, 3]
    assert state == {"step": 3, "x": 3}


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"student": {"w": torch.ones(2)}}, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stepdistill.training.checkpoint.save_file", full)
    with pytest.raises(UserError, match=r"No space left.*free space"):
        save_checkpoint(tmp_path, 2, {"student": {"w": torch.ones(2)}}, {})
    monkeypatch.undo()
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    assert folder.name == "step_1"
    assert load_checkpoint(folder)[0]["student"]["w"].tolist() == [1, 1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if "partial" in path.name] == []


def test_an_unreadable_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    trainer = build(tmp_path / "run", max_train_steps=1)
    trainer.fit()
    folder = latest_checkpoint(tmp_path / "run")
    assert folder is not None
    (folder / "student.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*step_1"):
        build(tmp_path / "run").fit()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "run", max_train_steps=1).fit()
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    other = sd.DMD2(teacher, DMD2Config(num_steps=2), roles=ROLES.model_copy(update={"rank": 4}))
    config = TrainConfig(output_dir=str(tmp_path / "run"), device="cpu")
    with pytest.raises(UserError, match=r"does not fit this recipe.*resume_from_checkpoint"):
        Trainer(other, config, PROMPTS).fit()


def test_cuda_on_a_machine_without_it(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=r"no CUDA device.*train\.device=cpu"):
        build(tmp_path, device="cuda")


def test_a_file_in_the_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"set train\.output_dir"):
        build(tmp_path / "run").fit()


WORKER = """
import sys, torch, pathlib
sys.path.insert(0, {tests!r})
from test_trainer import build, weights
trainer = build(pathlib.Path({run!r}), train_batch_size=2, max_train_steps=3)
trainer.fit()
if trainer.is_main:
    torch.save(weights(trainer), {out!r})
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_give_the_single_process_result(tmp_path: Path) -> None:
    script, out = tmp_path / "worker.py", tmp_path / "two.pt"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), run=str(tmp_path / "two"), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    single = build(tmp_path / "one", train_batch_size=4, max_train_steps=3)
    single.fit()
    expected, found = weights(single), torch.load(out, weights_only=True)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=2e-5)
