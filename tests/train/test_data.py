"""Rows in any order and number, and how they are split."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from fastae.train.data import AffineScaling, Rows, split
from fastae.train.data import rows as rows_module
from tests.train.files import IDENTITY, save_npy

sparse = pytest.importorskip("scipy.sparse")


@pytest.fixture(params=["memory", "mapped", "sparse"])
def rows_and_values(request, tmp_path, table) -> tuple[Rows, np.ndarray]:
    scaling = AffineScaling("maxabs", np.zeros(()), np.full((), 0.5))
    labels = np.arange(23) * 10
    if request.param == "memory":
        return Rows(table, labels, scaling), table / 2
    if request.param == "sparse":
        return Rows(sparse.csr_array(table), labels, scaling), table / 2
    save_npy(tmp_path / "rows.npy", table)
    return Rows(np.load(tmp_path / "rows.npy", mmap_mode="r"), labels, scaling), table / 2


def test_rows_in_any_order(rows_and_values):
    rows, values = rows_and_values
    rng = np.random.default_rng(2)
    shuffled = rng.permutation(23)
    for index in (
        None,
        slice(None),
        slice(3, 17, 5),
        slice(None, None, -2),
        slice(100, 200),
        shuffled,
        shuffled.astype(np.uint8),
        rng.integers(-23, 23, 60),
        np.array([], np.int32),
    ):
        read = rows.read(index)
        np.testing.assert_array_equal(read, values[slice(None) if index is None else index])
        assert read.dtype == np.float32 and read.flags.c_contiguous and read.flags.writeable

    part = rows.subset(shuffled[:9]).subset(slice(8, 2, -1)).subset(np.array([0, -1, 3]))
    kept = shuffled[:9][8:2:-1][[0, -1, 3]]
    assert (len(part), part.width, part.nbytes) == (3, 5, 60) and part.is_mapped == rows.is_mapped
    np.testing.assert_array_equal(part.read(), values[kept])
    np.testing.assert_array_equal(part.read(np.array([2, 0])), values[kept[[2, 0]]])
    np.testing.assert_array_equal(part.labels, kept * 10)


def test_reads_are_the_callers_own(rows_and_values):
    rows, values = rows_and_values
    for index in (None, slice(0, 5), np.arange(5)):
        rows.read(index)[:] = 99
    np.testing.assert_array_equal(rows.read(), values)
    plain = Rows(rows.array, None, IDENTITY)
    plain.read()[:] = 99
    np.testing.assert_array_equal(plain.read(), values * 2)


@pytest.mark.parametrize(
    "index", [np.array([0, 23]), np.array([-24]), np.array([0.0]), np.array([True] * 23), np.array([[0]])]
)
def test_bad_row_indices(rows_and_values, index):
    rows, _ = rows_and_values
    for read in (rows.read, rows.subset, rows.subset(slice(0, 23)).read):
        with pytest.raises(IndexError):
            read(index)


def test_mapped_rows_are_read_sorted_and_only_as_asked(tmp_path, table):
    asked = []

    class Recorder(np.memmap):
        def __getitem__(self, key):
            asked.append(np.array(key))
            return np.asarray(super().__getitem__(key))

    save_npy(tmp_path / "rows.npy", table)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r").view(Recorder)
    index = np.array([20, 3, 20, 11])
    np.testing.assert_array_equal(Rows(mapped, None, IDENTITY).read(index), table[index])
    assert [key.tolist() for key in asked] == [[3, 11, 20, 20]]


# Splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.04, 0.25, 0.5, 0.9])
def test_split_is_disjoint_exhaustive_and_deterministic(rows_and_values, fraction):
    rows, values = rows_and_values
    train, validation = split(rows, fraction, seed=3)
    assert train.labels is not None and validation.labels is not None
    assert len(validation) == round(23 * fraction)
    assert sorted([*(train.labels // 10), *(validation.labels // 10)]) == list(range(23))
    np.testing.assert_array_equal(validation.read(), values[validation.labels // 10])
    again = split(rows, fraction, seed=3)[1]
    np.testing.assert_array_equal(again.labels, validation.labels)


def test_split_depends_on_the_seed_and_nests(table):
    rows = Rows(table, np.arange(23), IDENTITY)
    assert len({tuple(split(rows, 0.3, seed)[1].labels) for seed in range(5)}) == 5  # type: ignore[arg-type]
    train, _ = split(rows, 0.3, seed=0)
    inner, held_out = split(train, 0.5, seed=0)
    assert set(inner.labels) | set(held_out.labels) == set(train.labels)  # type: ignore[arg-type]


def test_split_limits(table):
    rows = Rows(table, None, IDENTITY)
    train, validation = split(rows, 0, seed=0)
    assert (len(train), len(validation), validation.read().shape) == (23, 0, (0, 5))
    for fraction in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            split(rows, fraction, seed=0)
    for fraction in (0.01, 0.99):
        with pytest.raises(ValueError, match="leaves one part empty"):
            split(rows, fraction, seed=0)


# Fingerprints -----------------------------------------------------------------------------------------------


def test_fingerprints_notice_every_change(rows_and_values):
    rows, _ = rows_and_values
    again = replace(rows)
    assert rows.fingerprint() == again.fingerprint() and rows.matches(again.fingerprint())
    dense = rows.array if isinstance(rows.array, np.ndarray) else rows.array.toarray()
    others = [
        rows.subset(slice(0, 22)),
        rows.subset(np.arange(23)[::-1]),
        replace(rows, labels=None),
        replace(rows, labels=rows.labels[::-1].copy()),  # type: ignore[index]
        replace(rows, scaling=IDENTITY),
        replace(rows, array=np.asarray(dense, np.float64)),
    ]
    for row in (0, 7, 22):
        changed = np.array(dense)
        changed[row, 1] += 1e-3
        kind = np.asarray if isinstance(rows.array, np.ndarray) else type(rows.array)
        others.append(replace(rows, array=kind(changed)))
    assert len({rows.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)
    assert not any(rows.matches(other.fingerprint()) for other in others)


def test_fingerprints_of_large_maps_read_blocks_and_the_time_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(rows_module, "_STRIDED_BLOCKS", 4)
    monkeypatch.setattr(rows_module, "_STRIDED_BYTES", 80)
    values = np.arange(2000.0).reshape(200, 10)
    path = save_npy(tmp_path / "rows.npy", values)
    rows = Rows(np.load(path, mmap_mode="r"), None, IDENTITY)
    first = rows.fingerprint()
    assert first == rows.fingerprint()
    os.utime(path, ns=(0, 0))
    second = rows.fingerprint()
    values[-1, 0] += 1
    save_npy(tmp_path / "rows.npy", values)
    os.utime(path, ns=(0, 0))
    third = Rows(np.load(path, mmap_mode="r"), None, IDENTITY).fingerprint()
    assert len({first, second, third}) == 3


def test_the_first_format_of_fingerprints_is_known(table):
    rows = Rows(table, np.arange(23), AffineScaling("unit", np.full((), 0.25), np.full((), 2.0)))
    digest = hashlib.sha256(b"23 x 5")
    x = table[np.linspace(0, 22, 64).astype(np.int64)]
    digest.update(((x - np.float32(0.25)) * np.float32(2)).tobytes())
    digest.update(np.arange(23).tobytes())
    assert rows.sample_fingerprint() == digest.hexdigest() and rows.matches(digest.hexdigest())
