"""The kernels' noise has its distribution, and is another one for every seed, stream, row and rank."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastae import Masking, SaltAndPepper, Swap, functional, ops, philox
from tests.kernels.drawing import a_seed, bits_of, normal_of
from tests.kernels.support import DEVICE

MANY = (10_000, 1_000)
"""Rows and columns of 1e7 draws."""


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())).double())[0, 1].item()


def assert_share(hits: Tensor, p: float) -> None:
    """At most five deviations from the probability."""
    share = hits.double().mean().item()
    assert share == pytest.approx(p, abs=5.0 * math.sqrt(p * (1.0 - p) / hits.numel()) + 2.0**-17)


# --- seeds and ranks ------------------------------------------------------------------------------------


def other_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)


def test_every_rank_draws_a_seed_of_its_own_from_equal_generators(monkeypatch: pytest.MonkeyPatch):
    def draw() -> int:
        return int(philox.draw_seed(DEVICE, torch.Generator(DEVICE).manual_seed(4)))

    alone = draw()
    seeds = []
    for rank in (0, 1, 2, 3, 2**16, 2**20 + 1):
        other_rank(monkeypatch, rank)
        assert draw() == draw()
        seeds.append(draw())
    assert seeds[0] == alone
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_masks_of_two_ranks_are_independent(monkeypatch: pytest.MonkeyPatch):
    masks = []
    for rank in (0, 1):
        other_rank(monkeypatch, rank)
        torch.manual_seed(0)
        masks.append(functional.corrupt(torch.ones(200, 200, device=DEVICE), Masking(0.5)))
    assert abs(correlation(*masks)) < 5.0 / 200


@pytest.mark.parametrize("width", [16, 32])
def test_seeds_streams_rows_and_columns_are_uncorrelated(width: int):
    part = bits_of(2**63 - 2, 0, 200, 320, width)
    others = {
        "seed": bits_of(2**63 - 3, 0, 200, 320, width),
        "seed by its high half": bits_of(2**63 - 2 - 2**32, 0, 200, 320, width),
        "stream": bits_of(2**63 - 2, 1, 200, 320, width),
        "row": part.roll(1, 0),
        "column": part.roll(1, 1),
    }
    for name, other in others.items():
        assert abs(correlation(part, other)) < 5.0 / math.sqrt(part.numel()), name


# --- distributions --------------------------------------------------------------------------------------


def test_salt_and_pepper_are_equally_likely():
    torch.manual_seed(1)
    out = functional.corrupt(torch.full((400, 301), 0.5, device=DEVICE), SaltAndPepper(0.3, -1.0, 2.0))
    for value, p in ((-1.0, 0.15), (2.0, 0.15), (0.5, 0.7)):
        assert_share(out == value, p)


def test_swap_draws_every_row_equally_often():
    torch.manual_seed(1)
    rows = 23
    x = torch.arange(rows, device=DEVICE).float()[:, None].expand(rows, 5_000)
    out = functional.corrupt(x, Swap(0.5)).long()
    assert_share(out != x, 0.5 * (rows - 1) / rows)
    sources = out[out != x].bincount(minlength=rows).double()
    expected = sources.mean()
    chi_square = ((sources - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - (rows - 1)) < 5.0 * math.sqrt(2.0 * (rows - 1))


def test_noise_of_codes_has_its_mean_and_deviation():
    code = torch.rand(300, 1, device=DEVICE).expand(300, 400).contiguous()
    n = code.numel()
    binary = ops.perturb(code, a_seed(5), "bernoulli", 0.0, 0.0)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert (binary - code).double().mean().abs().item() < 5.0 * 0.5 / math.sqrt(n)
    assert correlation(binary - code, code) == pytest.approx(0.0, abs=5.0 / math.sqrt(n))
    gaussian = (ops.perturb(code, a_seed(5), "gaussian", 0.3, 0.0) - code).double()
    assert gaussian.mean().abs().item() < 5.0 * 0.3 / math.sqrt(n)
    assert gaussian.std().item() == pytest.approx(0.3, abs=5.0 * 0.3 / math.sqrt(2 * n))
    kept = ops.perturb(torch.ones_like(code), a_seed(5), "none", 0.0, 0.25)
    assert_share(kept == 0.0, 0.25)
    assert_share(ops.random_signs(code, a_seed(5), 7) > 0.0, 0.5)


@pytest.mark.slow
def test_ten_million_draws_are_uniform_and_uncorrelated():
    words = bits_of(20_240_601, 0, MANY[0], MANY[1] // 2, 32)
    draws = words.view(torch.int16)
    assert draws.numel() == 10**7
    for p in (1e-4, 0.01, 0.25, 0.5, 0.999):
        assert_share(draws <= philox.threshold(p), p)
    for bit in range(32):
        assert_share(words.bitwise_right_shift(bit).bitwise_and_(1), 0.5)
    for dim in (0, 1):
        assert abs(correlation(draws, draws.roll(1, dim))) < 5.0 / math.sqrt(draws.numel())


@pytest.mark.slow
def test_ten_million_normal_draws_have_the_moments():
    normal = normal_of(20_240_601, 0, *MANY)
    expected = philox.standard_normal(philox.random_bits(20_240_601, *MANY, 0))
    assert (normal - expected).abs().max() < 1e-5
    assert normal.abs().max() < 5.8
    assert abs(correlation(normal[:, ::2], normal[:, 1::2])) < 5.0 / math.sqrt(5e6)
    assert abs(correlation(normal[1:], normal[:-1])) < 5.0 / math.sqrt(1e7)
    normal, n = normal.double(), normal.numel()
    for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert normal.pow(power).mean().item() == pytest.approx(mean, abs=5.0 * math.sqrt(variance / n))
