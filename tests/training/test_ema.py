"""The average is the closed form of its recurrence, warm-up included."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import nn

from stepdistill.training.ema import EMA


def averaged(values: list[float], decay: float) -> EMA:
    """The average of a weight that begins at 0 and takes these values, one after each update."""
    weight = nn.Parameter(torch.zeros(()))
    ema = EMA([weight], decay)
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        ema.update()
    return ema


def decay_at(n: int, decay: float) -> float:
    return min(decay, (1 + n) / (10 + n))


@pytest.mark.parametrize("num_updates", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_a_weight_that_jumps_to_one_is_followed_at_the_warmed_up_decay(num_updates: int, decay: float) -> None:
    """From 0 to 1 and constant: the average is 1 - prod_n min(decay, (1 + n) / (10 + n))."""
    expected = 1 - math.prod(decay_at(n, decay) for n in range(1, num_updates + 1))
    ema = averaged([1.0] * num_updates, decay)
    assert ema.average[0].item() == pytest.approx(expected, abs=1e-6)
    assert ema.num_updates == num_updates


def test_each_value_has_the_weight_of_its_age() -> None:
    """avg_k = sum_j (1 - d_j) prod_{i > j} d_i w_j; the first two decays are 2 / 11 and 3 / 12."""
    ema = averaged([3.0, -1.0], decay=0.999)
    assert ema.average[0].item() == pytest.approx(9 / 11 * 3 / 12 * 3.0 + 9 / 12 * -1.0, abs=1e-6)
    values = [float(n**2 % 7) for n in range(1, 31)]
    decays = [decay_at(n, 0.6) for n in range(1, 31)]
    expected = sum((1 - decays[j]) * math.prod(decays[j + 1 :]) * values[j] for j in range(30))
    assert averaged(values, decay=0.6).average[0].item() == pytest.approx(expected, abs=1e-5)


def test_without_decay_the_average_is_the_last_value_and_takes_no_memory() -> None:
    ema = averaged([3.0, 5.0], decay=0.0)
    assert ema.average[0].item() == 5.0
    assert ema.average[0].data_ptr() == ema.parameters[0].data_ptr()


def test_a_restored_average_goes_through_the_warm_up_only_once() -> None:
    whole = averaged([1.0, 2.0, 3.0, 4.0], decay=0.999)
    resumed = averaged([], decay=0.999)
    resumed.load_state_dict(averaged([1.0, 2.0], decay=0.999).state_dict())
    for value in (3.0, 4.0):
        with torch.no_grad():
            resumed.parameters[0].fill_(value)
        resumed.update()
    assert torch.equal(resumed.average[0], whole.average[0])
    assert resumed.num_updates == 4


def test_half_precision_weights_are_averaged_in_float32() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA([weight], decay=0.999)
    with torch.no_grad():
        weight.fill_(1.0078125)  # the next number of bfloat16
    ema.update()
    assert ema.average[0].item() == pytest.approx(1 + 9 / 11 * 0.0078125, abs=1e-7)


def test_the_average_is_swapped_in_and_out_and_written_for_good() -> None:
    ema = averaged([1.0], decay=0.999)
    (weight,) = ema.parameters
    with ema.swapped_in():
        assert weight.item() == pytest.approx(9 / 11)
    assert weight.item() == 1.0
    ema.write_to_parameters()
    assert weight.item() == pytest.approx(9 / 11)


def test_an_error_swaps_the_weights_back_too() -> None:
    ema = averaged([1.0], decay=0.999)
    with contextlib.suppress(ZeroDivisionError), ema.swapped_in():
        raise ZeroDivisionError
    assert ema.parameters[0].item() == 1.0
