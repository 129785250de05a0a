"""Selections against stable sorts of the whole matrix, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastae import functional
from fastae.ops import selection
from fastae.ops.selection import batch_entries, entries_above, top_entries

ROWS, LATENTS = 9, 83
INF = float("inf")


def preactivations(name: str) -> Tensor:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(ROWS, LATENTS, generator=g)
    few = torch.rand(ROWS, LATENTS, generator=g) > 0.9
    return {
        "normal": normal,
        "integers": normal.mul(2).round(),
        "constant": torch.full((ROWS, LATENTS), 1.5),
        "rising": torch.arange(LATENTS * 1.0).expand(ROWS, -1),
        "growing": torch.arange(ROWS * LATENTS * 1.0).view(ROWS, LATENTS),
        "falling": -torch.arange(LATENTS * 1.0).expand(ROWS, -1),
        "equal rows": normal[:1].expand(ROWS, -1),
        "all negative": -normal.abs() - 0.1,
        "negative zero": torch.where(few, -0.0, 0.0),
        "infinite": torch.where(few, INF, normal),
        "minus infinity": torch.where(few, normal, -INF),
        "one positive per row": torch.where(torch.arange(LATENTS) == 50, 2.0, -normal.abs()),
    }[name]


FAMILIES = pytest.mark.parametrize(
    "name",
    [
        "normal",
        "integers",
        "constant",
        "rising",
        "growing",
        "falling",
        "equal rows",
        "all negative",
        "negative zero",
        "infinite",
        "minus infinity",
        "one positive per row",
    ],
)


@pytest.fixture(params=[(64, 4), (400, 5), (1 << 22, 1024)], ids=["small tiles", "middling", "one tile"])
def tiled(request, monkeypatch):
    """Tiles of so many entries and rows."""
    monkeypatch.setattr(selection, "_TILE", request.param[0])
    monkeypatch.setattr(selection, "_TILE_ROWS", request.param[1])
    monkeypatch.setattr(selection, "_GROUPS", (4, 2))
    monkeypatch.setattr(selection, "_HELD", 40)


def exact_product(z: Tensor) -> tuple[Tensor, Tensor]:
    """x and W whose product is z: rows of the identity, so that sums are exact."""
    return torch.eye(len(z)), z.t().contiguous()


def by_bias(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first row of z as a bias, as infinities times zeros are not numbers."""
    return torch.zeros(len(z), 1), torch.zeros(z.shape[1], 1), z[0].contiguous()


def arguments(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
    if z.isfinite().all():
        return z, (*exact_product(z), None)
    return z[:1].expand(len(z), -1), by_bias(z)


@FAMILIES
@pytest.mark.parametrize("k", [1, 3, 20, LATENTS])
def test_top_entries_are_those_of_a_stable_sort(name, k, tiled):
    z, problem = arguments(preactivations(name))
    values, latents = top_entries(*problem, k)
    expected, order = z.sort(dim=1, descending=True, stable=True)
    assert torch.equal(latents, order[:, :k])
    assert torch.equal(values, expected[:, :k])


@FAMILIES
def test_top_entries_of_a_subset(name, tiled):
    z, problem = arguments(preactivations(name))
    subset = torch.arange(LATENTS)[torch.arange(LATENTS) % 5 == 2]
    values, latents = top_entries(*problem, 6, subset)
    expected, order = z[:, subset].sort(dim=1, descending=True, stable=True)
    assert torch.equal(latents, subset[order[:, :6]])
    assert torch.equal(values, expected[:, :6])


@FAMILIES
@pytest.mark.parametrize("number", [0, 1, 7, 100, ROWS * LATENTS])
def test_batch_entries_are_those_of_a_stable_sort(name, number, tiled):
    z, problem = arguments(preactivations(name))
    values, latents, offsets = batch_entries(*problem, number)
    assert len(values) == len(latents) == offsets[-1] == number
    kept = z.relu().flatten().sort(descending=True, stable=True)
    places = kept.indices[:number][kept.values[:number] > 0].sort().values
    positive = values > 0
    rows = torch.arange(ROWS).repeat_interleave(offsets.diff())
    assert torch.equal(rows[positive] * LATENTS + latents[positive], places)
    assert torch.equal(values[positive], z.flatten()[places])


@FAMILIES
def test_entries_above_are_all_of_them_in_order(name, tiled):
    z, problem = arguments(preactivations(name))
    bound = torch.linspace(-0.5, 1.0, LATENTS)
    found = entries_above(*problem, bound)
    assert found is not None
    values, latents, offsets = found
    rows, columns = (z > bound).nonzero(as_tuple=True)
    assert torch.equal(latents, columns)
    assert torch.equal(values, z[rows, columns])
    assert torch.equal(offsets.diff(), torch.bincount(rows, minlength=ROWS))
    assert entries_above(*problem, bound, most=len(rows) * 2 + LATENTS * ROWS) is not None
    if len(rows) > 8:
        assert entries_above(*problem, bound, most=len(rows) // 4) is None


def test_nan_counts_as_the_largest_value(tiled):
    x, weight = torch.ones(3, 2), torch.rand(LATENTS, 2)
    x[1, 0] = torch.nan
    values, _ = top_entries(x, weight, None, 4)
    assert values[1].isnan().all()
    assert values[::2].isfinite().all()
    values, _, offsets = batch_entries(x, weight, None, 12)
    assert offsets.tolist() == [0, 0, 12, 12]
    assert values.isnan().all()


def test_selection_is_on_float32_sums_of_lower_precision():
    # in bfloat16 the sums 256 and 257 are the same number
    x = torch.tensor([[256.0, 1.0]]).bfloat16()
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).bfloat16()
    assert functional.topk_encode(x, weight, k=1).indices.item() == 1


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_topk_encode_is_the_relu_of_the_largest(shape, dtype):
    g = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    x, weight, bias = draw(*shape), draw(17, 4), draw(17)
    code = functional.topk_encode(x, weight, bias, k=5)
    wide = torch.promote_types(dtype, torch.float32)
    z = torch.nn.functional.linear(x.to(wide), weight.to(wide), bias.to(wide))
    expected, order = z.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(code.indices, order[..., :5])
    assert code.values.dtype == dtype and code.offsets is None
    torch.testing.assert_close(code.values, expected[..., :5].relu().to(dtype))
