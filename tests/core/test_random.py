"""Random numbers that follow from (key, sample) alone."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.random import Noise, forked, key
from rkd.testing import untouched

INDEX = torch.arange(4000)


def test_uniform_is_uniform() -> None:
    """Mean, variance and a chi-square of 64 bins over 256,000 numbers."""
    draws = Noise(1, INDEX).uniform((64,))
    assert draws.dtype == torch.float32
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(draws.var()) == pytest.approx(1 / 12, abs=0.001)
    counts = torch.histc(draws, 64, 0, 1).double()
    chi = float(((counts - 4000) ** 2 / 4000).sum())
    assert 63 - 5 * math.sqrt(126) < chi < 63 + 5 * math.sqrt(126)


def test_normal_is_normal() -> None:
    draws = Noise(2, INDEX).normal((64,))
    assert draws.isfinite().all()
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    assert float(draws.var()) == pytest.approx(1, abs=0.01)
    assert float((draws**4).mean()) == pytest.approx(3, abs=0.1)
    assert float((draws.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)


@pytest.mark.parametrize(
    "other",
    [
        lambda noise: Noise(2, INDEX).uniform((64,)),  # another purpose
        lambda noise: noise.uniform((64,)),  # the second draw
        lambda noise: Noise(1, INDEX + 1).uniform((64,)),  # the next sample
        lambda noise: Noise(1, INDEX).uniform((65,))[:, 1:],  # the next pixel
    ],
)
def test_draws_are_independent(other) -> None:
    noise = Noise(1, INDEX)
    a = noise.uniform((64,)).flatten() - 0.5
    b = other(noise).flatten() - 0.5
    correlation = float((a * b).mean() / (a.std() * b.std()))
    assert abs(correlation) < 4 / math.sqrt(a.numel())


def test_the_same_key_and_sample_give_the_same_draws() -> None:
    a, b = Noise(7, INDEX), Noise(7, INDEX)
    assert torch.equal(a.uniform((3, 2)), b.uniform((3, 2)))
    assert torch.equal(a.normal((5,)), b.normal((5,)))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    order = torch.tensor([900, 3, 17])
    whole, part = Noise(7, INDEX), Noise(7, INDEX[order])
    for _ in range(2):
        assert torch.equal(whole.uniform((3, 4, 4))[order], part.uniform((3, 4, 4)))


@pytest.mark.parametrize("keep", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_select_goes_on_where_the_whole_stands(keep: torch.Tensor) -> None:
    noise = Noise(3, torch.tensor([5, 6, 7]))
    noise.uniform((2,))
    part = noise.select(keep)
    assert torch.equal(part.uniform((2,)), noise.uniform((2,))[keep])


def test_no_number_depends_on_the_shape_of_the_others() -> None:
    assert torch.equal(Noise(3, INDEX).uniform((4,)), Noise(3, INDEX).uniform((2, 2)).flatten(1))


def test_scalars_a_sample() -> None:
    assert Noise(3, INDEX).uniform(()).shape == (4000,)


def test_bounds() -> None:
    draws = Noise(3, INDEX).uniform((16,), -8 / 255, 8 / 255)
    assert float(draws.abs().max()) <= 8 / 255 + 1e-9
    assert float(draws.min()) < -7.9 / 255


def test_large_indices_and_keys() -> None:
    noise = Noise(2**63 - 1, torch.tensor([0, 2**40, 2**62]))
    assert len(set(noise.uniform(()).tolist())) == 3


def test_golden_values() -> None:
    """They may never change: a run's seed promises them. SplitMix64 computed with Python integers."""
    golden, one, two = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

    def mix(z: int) -> int:
        z %= 2**64
        z = (z ^ (z >> 30)) * one % 2**64
        z = (z ^ (z >> 27)) * two % 2**64
        return z ^ (z >> 31)

    name, sample = 123456789, 42
    noise = Noise(name, torch.tensor([sample]))
    for draw in (1, 2):
        stream = mix(mix(sample * golden + name) + draw * golden)
        expected = [(mix(stream + place * golden) >> 40) / 2**24 for place in (1, 2, 3)]
        assert noise.uniform((3,))[0].tolist() == pytest.approx(expected, abs=0)


def test_keys() -> None:
    assert key(1, 2, "adv") == key(1, 2, "adv")
    assert len({key(1, 2), key(12), key(2, 1), key("1", "2", ""), key(1, 2, "adv")}) == 5
    assert all(0 <= key(seed, "x") < 2**63 for seed in range(200))
    assert key(0, "step", 3, 4) == 3393867838391182542, "a key may never change: seeds promise it"


def test_the_global_generator_is_left_alone() -> None:
    with untouched():
        Noise(1, INDEX).normal((8,))


def test_forked_puts_the_generator_back_also_after_an_error() -> None:
    with untouched():
        with forked(5):
            first = torch.rand(3)
        with pytest.raises(KeyError), forked(5):
            assert torch.equal(torch.rand(3), first)
            raise KeyError
    assert not torch.equal(torch.rand(3), first)


def test_forked_without_a_seed_only_puts_back() -> None:
    state = torch.get_rng_state()
    expected = torch.rand(2)
    torch.set_rng_state(state)
    with forked(None):
        assert torch.equal(torch.rand(2), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_forked_on_the_cpu_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would: a global state that nobody has kept."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    with forked(5, "cpu"):
        torch.rand(1)
    assert seeded == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers() -> None:
    on_gpu = Noise(7, INDEX.cuda())
    on_cpu = Noise(7, INDEX)
    assert torch.equal(on_gpu.uniform((9,)).cpu(), on_cpu.uniform((9,)))
    assert torch.allclose(on_gpu.normal((9,)).cpu(), on_cpu.normal((9,)), atol=1e-5)
