"""What several processes agree on, with an all-reduce that is written out."""

from __future__ import annotations

import pytest
import torch

from stepdistill.training import parallel
from stepdistill.training.parallel import any_process, average_gradients, is_distributed, share_of, sum_over_processes

CPU = torch.device("cpu")


@pytest.fixture
def with_peer(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A second process whose tensors hold `peer["value"]` everywhere."""
    peer = {"value": 0.0}

    def all_reduce(tensor: torch.Tensor, op: object = parallel.dist.ReduceOp.SUM) -> None:
        reduce = {
            parallel.dist.ReduceOp.SUM: torch.add,
            parallel.dist.ReduceOp.MAX: torch.maximum,
            parallel.dist.ReduceOp.MIN: torch.minimum,
        }[op]
        tensor.copy_(reduce(tensor, torch.full_like(tensor, peer["value"])))

    monkeypatch.setattr(parallel.dist, "is_available", lambda: True)
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", all_reduce)
    return peer


@pytest.mark.parametrize(("own", "other", "expected"), [(True, 0, True), (False, 1, True), (False, 0, False)])
def test_a_flag_of_any_process_is_seen_by_all(
    with_peer: dict[str, float], own: bool, other: float, expected: bool
) -> None:
    """Ctrl-C may reach one process only; all of them have to save and stop."""
    with_peer["value"] = other
    assert any_process(own, CPU) is expected


def test_sums_are_over_all_processes(with_peer: dict[str, float]) -> None:
    with_peer["value"] = 3.0
    assert is_distributed()
    assert sum_over_processes(torch.tensor([1.0, 2.0])).tolist() == [4.0, 5.0]


def test_a_parameter_that_nobody_trained_does_not_shift_the_others(with_peer: dict[str, float]) -> None:
    """The peer has no gradient at all: its part of each mean is zero."""
    untrained, trained = (torch.nn.Parameter(torch.zeros(size)) for size in (3, 2))
    trained.grad = torch.tensor([4.0, 6.0])
    average_gradients([untrained, trained])
    assert untrained.grad is None
    assert trained.grad.tolist() == [2.0, 3.0]


def test_one_process_reduces_nothing() -> None:
    assert not is_distributed()
    assert any_process(True, CPU)
    assert not any_process(False, CPU)
    assert sum_over_processes(torch.ones(1)).item() == 1.0


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_cover_a_step_without_overlap(world: int) -> None:
    shares = [share_of(8, rank, world) for rank in range(world)]
    assert [index for share in shares for index in share] == list(range(8))
    assert {len(share) for share in shares} == {8 // world}
