from dataclasses import replace

import pytest
import torch

from stepdistill.diffusion.rng import RandomStream

STREAM = RandomStream(seed=3, step=11, indices=tuple(range(8)))


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (1, 2, 5)])
def test_draws_do_not_depend_on_how_the_batch_is_split(sizes):
    normals, uniforms, first = [], [], 0
    for size in sizes:
        part = replace(STREAM, indices=STREAM.indices[first : first + size])
        normals.append(part.normal("noise", (4, 3, 3)))
        uniforms.append(part.uniform("t"))
        first += size
    assert torch.equal(torch.cat(normals), STREAM.normal("noise", (4, 3, 3)))
    assert torch.equal(torch.cat(uniforms), STREAM.uniform("t"))


def test_draws_do_not_depend_on_order_or_repetition_or_torchs_own_state():
    first = STREAM.normal("a", (5,))
    STREAM.uniform("b")
    torch.manual_seed(123)
    assert torch.equal(STREAM.normal("a", (5,)), first)


@pytest.mark.parametrize(
    "other",
    [
        replace(STREAM, seed=4),
        replace(STREAM, step=12),
        replace(STREAM, indices=tuple(range(8, 16))),
        STREAM.fork("student"),
        STREAM.fork("student").fork("student"),
    ],
)
def test_everything_in_the_key_matters(other):
    assert not torch.isclose(other.normal("a", (5,)), STREAM.normal("a", (5,))).any()
    assert not torch.isclose(other.uniform("a"), STREAM.uniform("a")).any()


def test_samples_and_purposes_are_independent():
    draws = torch.cat([STREAM.normal(purpose, (2000,)) for purpose in ("a", "b")])
    correlation = torch.corrcoef(draws) - torch.eye(16)
    assert correlation.abs().max() < 0.1


def test_namespaces_do_not_collide():
    a = STREAM.fork("x").normal("y/z", (3,))
    b = STREAM.fork("x/y").normal("z", (3,))
    c = STREAM.normal("x/y/z", (3,))
    assert not torch.isclose(a, b).any()
    assert not torch.isclose(a, c).any()
    assert not torch.isclose(b, c).any()


def test_shared_draws_ignore_the_samples():
    other = replace(STREAM, indices=(100, 200))
    assert STREAM.shared_uniform("exit") == other.shared_uniform("exit")
    assert STREAM.shared_integer("exit", 4) == other.shared_integer("exit", 4)


def test_shared_integers_are_uniform_and_in_range():
    draws = [replace(STREAM, step=step).shared_integer("exit", 4) for step in range(4000)]
    counts = torch.bincount(torch.tensor(draws), minlength=4)
    assert len(counts) == 4
    assert ((counts - 1000).abs() < 120).all()
    with pytest.raises(ValueError, match="high"):
        STREAM.shared_integer("exit", 0)


def test_distributions():
    stream = replace(STREAM, indices=tuple(range(4000)))
    normal = stream.normal("noise", (16,))
    assert normal.dtype == torch.float32
    assert normal.shape == (4000, 16)
    assert abs(normal.mean().item()) < 0.02
    assert abs(normal.std().item() - 1) < 0.02
    uniform = stream.uniform("t")
    assert uniform.dtype == torch.float32
    assert uniform.shape == (4000,)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert abs(uniform.mean().item() - 0.5) < 0.02


def test_golden_numbers():
    """A change of these numbers breaks every resumed run; it belongs into the changelog."""
    stream = RandomStream(0, 0, (0,))
    torch.testing.assert_close(
        stream.normal("noise", (2,)), torch.tensor([[-1.51164901, -1.65587974]]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(stream.fork("a").uniform("t"), torch.tensor([0.28287435]), rtol=0, atol=1e-6)
