"""Scaling is fitted on the training part and kept with the data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train.data import AffineScaling, Dataset, dataset_from_arrays, load_dataset, parts
from tests.train.files import refuses, save_npy

sparse = pytest.importorskip("scipy.sparse")


def scaled(tmp_path: Path, x: np.ndarray, scaling: str | AffineScaling) -> Dataset:
    return load_dataset(save_npy(tmp_path / "x.npy", x), scaling=scaling)  # type: ignore[arg-type]


def test_auto_scaling(tmp_path):
    small = np.array([[0, 64], [128, 200]])
    for dtype, name, expected in (
        (np.uint8, "pixel", small / 255),
        (np.int64, "unit", small / 200),
        (np.float64, "unit", small / 200),
    ):
        data = scaled(tmp_path, small.astype(dtype), "auto")
        assert data.scaling.name == name
        np.testing.assert_allclose(data.train.read(), expected, rtol=1e-6)
    inside = np.array([[0.25, 0.5], [1, 0]], np.float32)
    assert scaled(tmp_path, inside, "auto").scaling.name == "none"
    np.testing.assert_array_equal(scaled(tmp_path, inside, "auto").train.read(), inside)
    assert scaled(tmp_path, inside > 0.3, "auto").scaling.name == "none"
    np.testing.assert_array_equal(scaled(tmp_path, inside - 0.5, "auto").train.read().min(), 0)
    assert scaled(tmp_path, np.full((2, 2), 255, np.uint8), "auto").train.read().max() == 1


def test_fitted_values(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_BLOCK_ELEMENTS", 8)  # several chunks
    x = np.array([[1, -2, 7, 0.1], [3, 2, 7, 0.1], [5, 6, 7, 0.1], [2, 4, 7, 0.1], [4, -4, 7, 0.1]])
    np.testing.assert_allclose(scaled(tmp_path, x, "unit").train.read(), (x + 4) / 11, atol=1e-7)
    np.testing.assert_allclose(
        scaled(tmp_path, x, "minmax").train.read(),
        np.stack([(x[:, 0] - 1) / 4, (x[:, 1] + 4) / 10, 0 * x[:, 2], 0 * x[:, 3]], 1),
        atol=1e-7,
    )
    standard = scaled(tmp_path, x, "standard")
    centred = x[:, :2] - [3, 1.2]
    expected = np.concatenate([centred / np.sqrt((centred**2).mean(0)), np.zeros((5, 2))], 1)
    np.testing.assert_allclose(standard.train.read(), expected, atol=1e-6)
    assert (standard.train.read()[:, 2:] == 0).all() and (standard.scaling.scale[2:] == 1).all()


@pytest.mark.parametrize("scaling", ["auto", "unit", "minmax", "standard"])
def test_scaling_is_fitted_on_the_values_that_are_not_missing(scaling):
    x = np.random.default_rng(0).normal(3.0, 2.0, (40, 3))
    gone = np.random.default_rng(1).random(x.shape) < 0.3
    gone[0], gone[:, 2] = True, False
    missing = np.where(gone, np.nan, x)
    low, high, mean, deviation = (f(missing, 0) for f in (np.nanmin, np.nanmax, np.nanmean, np.nanstd))
    expected = {
        "minmax": (missing - low) / (high - low),
        "standard": (missing - mean) / deviation,
    }.get(scaling, (missing - low.min()) / (high.max() - low.min()))
    data = dataset_from_arrays("x", missing, scaling=scaling, missing=True)
    np.testing.assert_allclose(data.train.read(), expected, rtol=1e-5, atol=1e-6)
    assert f"{gone.sum()} values missing" in data.describe()
    with refuses("x: all values of column 1 are missing"):
        dataset_from_arrays("x", np.where([0, 1, 0], np.nan, x), scaling=scaling, missing=True)


def test_constant_columns_become_exactly_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_BLOCK_ELEMENTS", 40)
    x = np.tile(np.random.default_rng(0).normal(size=11), (997, 1)).astype(np.float32)
    for name in ("minmax", "standard"):
        data = scaled(tmp_path, x, name)
        assert (data.train.read() == 0).all() and (data.scaling.scale == 1).all()


@pytest.mark.parametrize("name", ["unit", "minmax"])
@pytest.mark.parametrize("seed", range(20))
def test_unit_interval_is_exact(tmp_path, name, seed):
    x = np.random.default_rng(seed).lognormal(sigma=9, size=(40, 6))
    read = scaled(tmp_path, x, name).train.read()
    assert read.min() == 0 and read.max() <= 1 and read.max() > 1 - 1e-6


def test_hardly_varying_columns_do_not_overflow(tmp_path):
    x = np.zeros((3, 2), np.float32)
    x[1] = 1e-42
    for name in ("unit", "minmax", "standard"):
        assert np.isfinite(scaled(tmp_path, x, name).train.read()).all()


def test_wide_ranges_do_not_overflow(tmp_path):
    x = np.array([[-4e37, 1], [4e37, 2]], np.float32)
    np.testing.assert_array_equal(scaled(tmp_path, x, "minmax").train.read(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(scaled(tmp_path, x, "standard").train.read(), [[-1, -1], [1, 1]], rtol=1e-5)


def test_scaling_is_fitted_on_the_train_part_only(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([[0.0], [2.0]]), x_test=np.array([[-100.0], [6.0]]))
    for name, expected in (("unit", [[-50], [3]]), ("minmax", [[-50], [3]]), ("standard", [[-101], [5]])):
        data = load_dataset(str(tmp_path / "a.npz"), scaling=name)  # type: ignore[arg-type]
        assert data.test is not None
        np.testing.assert_array_equal(data.test.read(), expected)
        assert data.test.scaling is data.train.scaling is data.scaling


@pytest.mark.parametrize("name", ["auto", "none", "unit", "minmax", "standard"])
def test_scaling_round_trips(tmp_path, table, name):
    data = scaled(tmp_path, table * 30, name)
    read = data.train.read()
    np.testing.assert_array_equal(data.scaling.apply(table * 30), read)
    np.testing.assert_allclose(data.scaling.inverse(read), table * 30, atol=1e-4)
    assert data.scaling.inverse(read).dtype == np.float64

    values = data.scaling.to_dict()
    tensors = {
        **values,
        "offset": torch.from_numpy(data.scaling.offset),
        "scale": torch.from_numpy(data.scaling.scale),
    }
    for restored in (json.loads(json.dumps(values)), tensors):
        again = AffineScaling.from_dict(restored)
        assert again.name == data.scaling.name and again.scale.dtype == again.offset.dtype == np.float64
        np.testing.assert_array_equal(again.offset, data.scaling.offset)
        np.testing.assert_array_equal(again.scale, data.scaling.scale)
        np.testing.assert_array_equal(scaled(tmp_path, table, again).train.read(), data.scaling.apply(table))


def test_fitted_scaling_must_fit(tmp_path, table):
    fitted = scaled(tmp_path, table, "minmax").scaling
    assert fitted.width == 5
    with refuses("x.npy: 4 columns", "scaling has 5"):
        scaled(tmp_path, table[:, :4], fitted)
    before = table.copy()
    fitted.apply(table)
    np.testing.assert_array_equal(table, before)  # inputs are never written into


@pytest.mark.parametrize(
    ("offset", "scale", "message"),
    [
        (np.zeros(2), np.ones(3), "one shape"),
        (np.zeros((2, 2)), np.ones((2, 2)), "one shape"),
        (np.zeros(2), np.array([1, 0]), "positive"),
        (np.array([np.nan]), np.ones(1), "finite"),
    ],
)
def test_impossible_scalings(offset, scale, message):
    with pytest.raises(ValueError, match=message):
        AffineScaling("unit", offset, scale)


# Values far from 0, and values that float32 cannot keep apart ---------------------------------------------

STAMPS = 1.7e9 + 60 * np.random.default_rng(0).random((300, 2))
COLUMNS = {
    "float64 time stamps": STAMPS,
    "int64 counter": (10**12 + np.arange(600)).reshape(300, 2),
    "uint64 counter": (np.uint64(10**12) + np.arange(600, dtype=np.uint64)).reshape(300, 2),
    "float32 far away": (2**23 + np.arange(600)).reshape(300, 2).astype(np.float32),
    "small steps": 1 + 1e-9 * np.arange(600).reshape(300, 2),
}


def arrays(tmp_path: Path, x: np.ndarray, scaling: str) -> Dataset:
    return dataset_from_arrays("x", x, scaling=scaling)  # type: ignore[arg-type]


def npz(tmp_path: Path, x: np.ndarray, scaling: str) -> Dataset:
    np.savez(tmp_path / "x.npz", x=x)
    return load_dataset(str(tmp_path / "x.npz"), scaling=scaling)  # type: ignore[arg-type]


def csv(tmp_path: Path, x: np.ndarray, scaling: str) -> Dataset:
    np.savetxt(tmp_path / "x.csv", x, fmt="%d" if x.dtype.kind in "iu" else "%.17g", delimiter=",")
    return load_dataset(str(tmp_path / "x.csv"), scaling=scaling)  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [scaled, arrays, npz, csv])
@pytest.mark.parametrize("scaling", ["auto", "minmax", "standard"])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_large_offset_takes_no_precision(tmp_path, name, scaling, read):
    x = COLUMNS[name]
    exact = x.astype(np.float64)
    if scaling == "standard":
        expected = (exact - exact.mean(0)) / exact.std(0)
    elif scaling == "minmax":
        expected = (exact - exact.min(0)) / (exact.max(0) - exact.min(0))
    else:
        expected = (exact - exact.min()) / (exact.max() - exact.min())
    data = read(tmp_path, x, scaling)
    taken = data.train.read()
    np.testing.assert_allclose(taken, expected, atol=1e-5)
    assert [len(np.unique(c)) for c in taken.T] == [len(np.unique(c)) for c in x.T]
    np.testing.assert_array_equal(data.train.read(np.array([7, 3])), taken[[7, 3]])
    np.testing.assert_array_equal(data.scaling.apply(x), taken)
    np.testing.assert_allclose(data.scaling.inverse(taken), exact, rtol=1e-11)


@pytest.mark.parametrize(
    ("x", "scaling", "column"),
    [
        (STAMPS, "none", 0),
        (10**12 + np.arange(300)[:, None], "none", 0),
        (np.c_[np.arange(300.0), STAMPS[:, 0]], "unit", 1),
        (np.c_[np.full(300, -1e6), 1e-3 * np.arange(300)].astype(np.float32), "unit", 1),
        (sparse.csr_array(np.c_[np.zeros(300), 10**12 + np.arange(300)]), "auto", 1),
    ],
    ids=["float64", "int64", "unit of all", "float32", "sparse"],
)
def test_values_that_float32_would_not_keep_apart_are_refused(x, scaling, column):
    with refuses(
        "x: ", "different values", f"column {column}", "float32", f"'{scaling}'" if column == 0 else ""
    ):
        dataset_from_arrays("x", x, scaling=scaling)


def test_rounding_errors_are_not_spread_out():
    x = np.full((50, 2), 0.3)
    x[::2, 0] = 0.1 + 0.2
    for scaling in ("none", "unit", "minmax", "standard"):
        assert np.ptp(dataset_from_arrays("x", x, scaling=scaling).train.read(), axis=0).max() < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (np.c_[np.linspace(11, 15, 30), np.linspace(278, 1680, 30)], "minmax"),
        (np.c_[np.linspace(0, 1, 30), np.linspace(1000, 1001, 30)], "minmax"),
        (np.c_[np.arange(30), 1e6 * np.arange(30)], "minmax"),
        (np.c_[np.arange(30), 3 * np.arange(30)], "unit"),
        (np.random.default_rng(0).normal(size=(30, 4)), "unit"),
        (np.linspace(0, 1, 60).reshape(30, 2) * [1, 1e-3], "none"),
        (np.c_[np.zeros((30, 9)), np.tile(np.arange(30)[:, None], 9), np.arange(30) % 2], "unit"),  # pixels
        ((np.arange(120).reshape(30, 2, 2) * [1, 1000]), "unit"),  # images
    ],
    ids=["wine", "offsets", "orders", "alike", "normal", "shares", "pixels", "images"],
)
def test_auto_scales_unlike_columns_of_tables_each(x, name):
    assert dataset_from_arrays("x", x).scaling.name == name


def test_auto_scales_unlike_sparse_columns_each():
    x = sparse.csr_array(np.c_[np.arange(30), 1000 * np.arange(30)])
    data = dataset_from_arrays("x", x)
    assert (data.scaling.name, data.scaling.width) == ("maxabs", 2)
    np.testing.assert_allclose(data.train.read().max(axis=0), 1)


INTEGERS = {
    "2^60": 2**60 + np.arange(1000, dtype=np.int64),
    "few": 2**60 + 250 + np.arange(1000, dtype=np.int64) % 10,
    "negative": -(2**62) + 13 * np.arange(1000, dtype=np.int64),
    "ends": np.where(np.arange(1000) % 2, 2**63 - 1, -(2**63)).astype(np.int64),
    "unsigned": np.uint64(2**64 - 1001) + np.arange(1000, dtype=np.uint64),
}


@pytest.mark.parametrize("scaling", ["auto", "unit", "minmax", "standard"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_that_float64_would_round_are_scaled_exactly(scaling, name):
    column = INTEGERS[name]
    x = np.stack((column, column[::-1]), 1)
    dataset = dataset_from_arrays("x", x, scaling=scaling)
    exact = np.array([[int(v) for v in row] for row in x], dtype=object)
    low, high = exact.min(), exact.max()
    expected = (exact - low).astype(np.float64) / float(high - low)
    if scaling == "standard":
        expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(dataset.train.read(), expected, rtol=1e-6, atol=1e-6)
    again = AffineScaling.from_dict(json.loads(json.dumps(dataset.scaling.to_dict())))
    assert np.array_equal(again.apply(x), dataset.train.read())
    np.testing.assert_allclose(again.inverse(again.apply(x)), x.astype(np.float64), rtol=1e-6)


def test_a_base_is_of_integers():
    for base in (np.zeros(()), np.zeros(2, np.int64), np.array(2**70, dtype=object)):
        with pytest.raises(ValueError, match="base must be"):
            AffineScaling("unit", np.zeros(()), np.ones(()), base)
