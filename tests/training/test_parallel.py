"""Several processes: gradients are averaged, and what nobody trained does not move."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stepdistill as sd
from stepdistill.distillers.distribution.config import PhasedDMDConfig
from stepdistill.distillers.distribution.phased_dmd import PhasedDMD
from stepdistill.testing import tiny_pipeline
from stepdistill.training import parallel
from stepdistill.training.parallel import average_gradients
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.trainer import Trainer

PROMPTS = ["a red fox", "two cats", "a blue car", "snow"]
NUM_PROCESSES = 2


class Peers:
    """An all-reduce between threads, each of which stands for a process."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.barrier = threading.Barrier(NUM_PROCESSES)

    def all_reduce(self, tensor: Tensor) -> None:
        self.sent.append(tensor.clone())
        self.barrier.wait(timeout=30)
        tensor.copy_(torch.stack(self.sent).sum(0))


def parameters_of(process: int) -> list[nn.Parameter]:
    """Three parameters with momentum; then only the first has a gradient in both processes, the second in one, the third in none."""
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    parameters[0].grad = torch.full((2, 2), 1.0 + process)
    if process == 1:
        parameters[1].grad = torch.full((2, 2), 4.0)
    before = [parameter.detach().clone() for parameter in parameters]
    average_gradients(parameters)
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]
    assert moved == [True, True, False]
    return parameters


def test_gradients_are_means_and_what_all_lack_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers()
    monkeypatch.setattr(parallel, "is_distributed", lambda: True)
    monkeypatch.setattr(parallel.dist, "all_reduce", peers.all_reduce)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: NUM_PROCESSES)
    found: dict[int, list[nn.Parameter]] = {}
    threads = [
        threading.Thread(target=lambda process=process: found.update({process: parameters_of(process)}))
        for process in range(NUM_PROCESSES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0, 1}, "a thread failed, its message is above"
    for parameters in found.values():
        first, second, third = (parameter.grad for parameter in parameters)
        assert third is None
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first, torch.full((2, 2), 1.5))
        torch.testing.assert_close(second, torch.full((2, 2), 2.0))


def build(run_dir: Path, **options: object) -> Trainer:
    """Two experts that take turns, under an Adam with momentum."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = PhasedDMDConfig(num_steps=2, student_every=1)
    settings = {
        "max_train_steps": 4, "learning_rate": 1e-3, "adam_beta1": 0.9, "ema_decay": 0.0,
        "output_dir": str(run_dir), "device": "cpu", "log_every": 1, "mixed_precision": "no",
    }  # fmt: skip
    distiller = PhasedDMD(teacher, config, roles=sd.Roles(rank=2))
    return Trainer(distiller, TrainConfig.model_validate(settings | options), PROMPTS)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, group in trainer.distiller.state().items()
        for key, value in group.items()
    }


WORKER = """
import sys, torch, pathlib
sys.path.insert(0, {tests!r})
from test_parallel import build, weights
trainer = build(pathlib.Path({run!r}), train_batch_size=1)
trainer.fit()
if trainer.is_main:
    torch.save(weights(trainer), {out!r})
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_experts_that_are_not_at_turn_rest_in_two_processes_too(tmp_path: Path) -> None:
    script, out = tmp_path / "worker.py", tmp_path / "two.pt"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), run=str(tmp_path / "two"), out=str(out)))
    launch = ["torch.distributed.run", "--nproc_per_node=2", "--master_port=29613", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *launch], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    single = build(tmp_path / "one", train_batch_size=2)
    start = weights(single)
    single.fit()
    expected, found = weights(single), torch.load(out, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(
        any(not torch.equal(expected[key], start[key]) for key in start if key.startswith(f"{name}."))
        for name in single.distiller.networks()
    )
    for key in expected:
        # Rounding differs; a step of Adam's momentum would be several times the tolerance.
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-4)
