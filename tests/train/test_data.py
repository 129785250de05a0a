"""Data sets: what was written is what is read, and what cannot be used is refused in one clear line."""

import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastae.errors import DataError
from fastae.train import data as data_module
from fastae.train import sources
from fastae.train.data import AffineScaling, Dataset, Rows, load_dataset, split

sparse = pytest.importorskip("scipy.sparse")

ROOT = Path(__file__).parents[2]
MNIST = Path(os.environ.get("FASTAE_MNIST", ROOT.parent / "shared" / "data" / "mnist"))
IDENTITY = AffineScaling("none", np.zeros(()), np.ones(()))


def write_idx(path: Path, array: np.ndarray, code: int = 0x08) -> Path:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_idx_folder(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 4, 3), np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 4, 3), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([3, 0], np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


def save_npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def refuses(start: str, *words: str):
    """A DataError of one line that begins with `start` and holds every one of `words`."""
    return pytest.raises(
        DataError, match=f"^{re.escape(start)}" + "".join(f".*{re.escape(w)}" for w in words) + r".*\Z"
    )


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)


# Formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "u2", "i8", "?"])
def test_npy_is_mapped_and_read_as_float32(tmp_path, dtype):
    stored = (np.arange(12).reshape(4, 3) % 5).astype(dtype)
    data = load_dataset(save_npy(tmp_path / "rows.npy", stored), scaling="none")
    read = data.train.read()
    assert (data.name, data.width, data.feature_shape, data.test) == ("rows.npy", 3, (3,), None)
    assert data.train.is_mapped and data.train.labels is None and data.num_classes is None
    assert read.dtype == np.float32 and read.flags.c_contiguous and type(read) is np.ndarray
    np.testing.assert_array_equal(read, stored.astype(np.float32))


def test_higher_ranks_are_flattened_and_remembered(tmp_path):
    stored = np.arange(120, dtype=np.float32).reshape(5, 2, 3, 4)
    data = load_dataset(save_npy(tmp_path / "c.npy", stored), scaling="none")
    assert (data.width, data.feature_shape, data.train.is_mapped) == (24, (2, 3, 4), True)
    np.testing.assert_array_equal(data.train.read(), stored.reshape(5, 24))

    fortran = load_dataset(save_npy(tmp_path / "f.npy", np.asfortranarray(stored)), scaling="none")
    assert not fortran.train.is_mapped  # flattening had to read it
    np.testing.assert_array_equal(fortran.train.read(), stored.reshape(5, 24))


def test_fortran_matrix_stays_mapped(tmp_path, table):
    rows = load_dataset(save_npy(tmp_path / "f.npy", np.asfortranarray(table)), scaling="none").train
    assert rows.is_mapped and rows.read(np.array([4, 1])).flags.c_contiguous
    np.testing.assert_array_equal(rows.read(np.array([4, 1])), table[[4, 1]])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_named_arrays(tmp_path, table, suffix):
    def save(name: str, **arrays: np.ndarray) -> str:
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npz":
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        else:
            save_file(arrays, path)
        return str(path)

    x = table.reshape(23, 5, 1)
    full = load_dataset(
        save("full", x=x, y=np.arange(23) % 4, x_test=x[:7] + 1, y_test=np.full(7, 6)), scaling="none"
    )
    assert (len(full.train), full.feature_shape, full.num_classes) == (23, (5, 1), 7)
    assert full.test is not None and full.test.labels is not None and full.train.labels is not None
    assert full.train.labels.dtype == np.int64
    np.testing.assert_array_equal(full.train.read(), table)
    np.testing.assert_array_equal(full.train.labels, np.arange(23) % 4)
    np.testing.assert_array_equal(full.test.read(), table[:7] + 1)
    np.testing.assert_array_equal(full.test.labels, np.full(7, 6))

    single = load_dataset(save("single", anything=table), scaling="none")
    assert single.test is None and single.train.labels is None and not single.train.is_mapped
    np.testing.assert_array_equal(single.train.read(), table)

    with refuses(f"many.{suffix}: ", "needs x", "codes", "rows"):
        load_dataset(save("many", codes=table, rows=table))
    with refuses(f"orphan.{suffix}: ", "y_test without x_test"):
        load_dataset(save("orphan", x=table, y_test=np.arange(23)))
    with refuses(f"bad.{suffix}: x_test: ", "1 value(s) NaN", "row 2, column 3"):
        x_test = table[:4].copy()
        x_test[2, 3] = np.nan
        load_dataset(save("bad", x=table, x_test=x_test))
    with refuses(f"narrow.{suffix}: x_test: ", "4 columns", "5"):
        load_dataset(save("narrow", x=table, x_test=table[:, :4].copy()))


def test_bfloat16_safetensors(tmp_path):
    from safetensors.torch import save_file as save_tensors

    x = torch.randn(4, 3).bfloat16()
    save_tensors({"x": x}, tmp_path / "b.safetensors")
    read = load_dataset(str(tmp_path / "b.safetensors"), scaling="none").train.read()
    np.testing.assert_array_equal(read, x.float().numpy())


@pytest.mark.parametrize("make", ["csr_array", "csr_matrix", "csc_array", "coo_array"])
def test_sparse_stays_sparse(tmp_path, make):
    dense = np.array([[0, 2, 0, 0], [0, 0, 0, -8], [0, 0, 0, 0], [1, 0, 4, 0]], np.float64)
    sparse.save_npz(tmp_path / "s.npz", getattr(sparse, make)(dense))
    rows = load_dataset(str(tmp_path / "s.npz")).train
    assert (len(rows), rows.width, rows.nbytes, rows.is_mapped) == (4, 4, 64, False)
    assert sparse.issparse(rows.array)
    assert rows.scaling.name == "maxabs"
    for index in (None, slice(1, 3), slice(None, None, -1), np.array([3, 0, 3, -1]), np.array([], np.int64)):
        expected = dense[slice(None) if index is None else index] / 8
        read = rows.read(index)
        assert read.dtype == np.float32 and read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(rows.subset(np.array([3, 1])).read(slice(1, 2)), dense[1:2] / 8)


def test_sparse_duplicates_are_summed_before_fitting(tmp_path):
    twice = sparse.csr_array(
        (np.array([3.0, 5.0, 1.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2)
    )
    sparse.save_npz(tmp_path / "s.npz", twice)
    np.testing.assert_array_equal(load_dataset(str(tmp_path / "s.npz")).train.read(), [[0, 1], [1 / 8, 0]])


def test_sparse_scalings(tmp_path):
    dense = np.array([[0, 2.0], [4, 0]])
    path = str(tmp_path / "s.npz")
    sparse.save_npz(path, sparse.csr_array(dense))
    np.testing.assert_array_equal(load_dataset(path, scaling="none").train.read(), dense)
    np.testing.assert_array_equal(load_dataset(path, scaling="unit").train.read(), dense / 4)
    np.testing.assert_array_equal(load_dataset(path, scaling="minmax").train.read(), dense / [4, 2])
    with refuses("s.npz: ", "'standard' scaling", "sparse"):
        load_dataset(path, scaling="standard")
    with refuses("s.npz: ", "sparse"):
        load_dataset(path, scaling=AffineScaling("unit", np.ones(()), np.ones(())))
    sparse.save_npz(path, sparse.csr_array(dense + 1))
    with refuses("s.npz: ", "'minmax' scaling", "sparse"):
        load_dataset(path, scaling="minmax")
    with refuses("s.npz: ", "'unit' scaling", "sparse"):
        load_dataset(path, scaling="unit")


def test_sparse_damage(tmp_path):
    path = tmp_path / "s.npz"
    matrix = sparse.csr_array(np.array([[0, 2.0, 0], [4, 0, np.inf]]))
    sparse.save_npz(path, matrix)
    with refuses("s.npz: ", "1 value(s)", "row 1, column 2"):
        load_dataset(str(path))
    for kind, indptr in ((b"csr", [0, 1, 2]), (b"csc", [0, 1, 2, 2])):
        np.savez(
            path, format=kind, shape=(2, 3), data=np.ones(2), indices=np.array([0, 10**6]), indptr=indptr
        )
        with refuses("s.npz: cannot be read: "):
            load_dataset(str(path))


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a-idx3-ubyte.gz", "a.idx3-ubyte"])
def test_idx_file(tmp_path, name):
    stored = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    data = load_dataset(str(write_idx(tmp_path / name, stored)))
    assert data.feature_shape == (4, 3) and data.scaling.name == "pixel" and data.train.labels is None
    np.testing.assert_allclose(data.train.read(), stored.reshape(5, 12) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_types(tmp_path, code, dtype):
    stored = np.array([[-1, 2, 100], [3, -4, 5]], dtype)
    rows = load_dataset(str(write_idx(tmp_path / "a-idx2-int", stored, code)), scaling="none").train
    np.testing.assert_array_equal(rows.read(), stored)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path, suffix):
    arrays = write_idx_folder(tmp_path / "images", suffix)
    data = load_dataset(str(tmp_path / "images"))
    assert (data.name, data.feature_shape, data.num_classes) == ("images", (4, 3), 4)
    assert data.test is not None
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(data.test.labels, [3, 0])
    np.testing.assert_allclose(
        data.test.read(), arrays["t10k-images-idx3-ubyte"].reshape(2, 12) / 255, rtol=1e-6
    )
    (tmp_path / "images" / f"t10k-labels-idx1-ubyte{suffix}").unlink()
    with refuses("images: ", "missing: t10k-labels-idx1-ubyte"):
        load_dataset(str(tmp_path / "images"))


def test_idx_folder_labels_must_fit(tmp_path):
    write_idx_folder(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with refuses("train-images-idx3-ubyte.gz: ", "6 rows", "(5,)"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "x", "labels"),
    [
        ("1,2.5\n-3,4e2\n", [[1, 2.5], [-3, 400]], None),
        ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]], None),
        ("\ufefflabel, a\r\n7,1\r\n\r\n0,2\r\n", [[1], [2]], [7, 0]),
        ('0,1,"Target"\n5,6,2\n7,8,1', [[5, 6], [7, 8]], [2, 1]),
        ("a,y,b\n1,0,2\n", [[1, 2]], [0]),
    ],
    ids=["no-header", "header", "bom-crlf-blank", "numbered-columns", "middle"],
)
def test_csv(tmp_path, text, x, labels):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    rows = load_dataset(str(path), scaling="none").train
    np.testing.assert_array_equal(rows.read(), x)
    assert (None if rows.labels is None else rows.labels.tolist()) == labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n\n3,4,5\n", ["line 4", "3 cells", "2"]),
        ("1,2\n3,x7\n", ["line 2", "column 2", "'x7' is not a number"]),
        ("1,oops\n3,4\n", ["line 1", "column 2", "'oops' is not a number"]),
        ("1,2\n3,\n", ["line 2", "column 2", "'' is not a number"]),
        ("a,b\n1,nan\n2,3\n", ["1 value(s) NaN", "row 0, column 1"]),
        ("label,a\n1.5,2\n", ["label 1.5", "row 0", "not a whole number"]),
        ("label,a\n1,2\n-1,2\n", ["label -1", "row 1", "negative"]),
        ("label,y,a\n1,2,3\n", ["line 1", "2 label columns"]),
        ("label\n1\n", ["no columns"]),
        ("a,b\n", ["no rows"]),
        ("\n\n", ["no rows"]),
        ("", ["empty file"]),
        ("1,2\n3,\xff\n", ["cannot be read"]),
    ],
)
def test_csv_refusals(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with refuses("t.csv: ", *words):
        load_dataset(str(path))


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.float32(3), ["shape ()"]),
        (np.ones(4), ["shape (4,)"]),
        (np.ones((0, 4)), ["no rows"]),
        (np.ones((4, 0, 2)), ["no columns"]),
        (np.ones((2, 2), complex), ["complex128"]),
        (np.array([["a", "b"]]), ["<U1"]),
        (np.array([["2020-01-01"]], "M8[D]"), ["datetime64"]),
        (np.array([[{}]], object), ["object"]),
        (np.array([[1, np.nan, 2], [np.inf, 0, -np.inf]]), ["3 value(s)", "row 0, column 1"]),
        (np.array([[1, 2], [3, 1e300]]), ["1 value(s)", "row 1, column 1"]),
        (np.array([[0, 5e37]], np.float32), ["1 value(s)", "row 0, column 1"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value.dtype),
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_cannot_be_used(tmp_path, array, words, suffix):
    path = tmp_path / f"a.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, array)
    with refuses(f"a.{suffix}: ") as raised:
        load_dataset(str(path))
    for word in words:
        assert word.lower() in str(raised.value).lower()


def test_non_finite_is_found_beyond_the_first_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHUNK_ELEMENTS", 10)
    x = np.zeros((50, 3), np.float32)
    x[31, 2] = x[44, 0] = np.nan
    with refuses("a.npy: ", "2 value(s)", "row 31, column 2"):
        load_dataset(save_npy(tmp_path / "a.npy", x))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(3), ["4 rows", "(3,)"]),
        (np.eye(4), ["(4,)", "(4, 4)"]),
        (np.array([0, 1, 0.5, 1]), ["label 0.5", "row 2", "not a whole number"]),
        (np.array([0, np.nan, 0, 1]), ["label nan", "row 1"]),
        (np.array([0, 1, 2, 1e30]), ["row 3"]),
        (np.array([0, 1, -2, 1]), ["label -2", "row 2", "negative"]),
        (np.array(list("abcd")), ["labels of dtype <U1"]),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, labels, words):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=labels)
    with refuses("a.npz: ", *words):
        load_dataset(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "s.npz", "a.safetensors", "a-idx3-ubyte", "a-idx3-ubyte.gz"]
)
def test_truncated_and_foreign_files(tmp_path, name):
    x = np.arange(600, dtype=np.float32).reshape(50, 12)
    np.save(tmp_path / "a.npy", x)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    sparse.save_npz(tmp_path / "s.npz", sparse.csr_array(x))
    save_file({"x": x}, tmp_path / "a.safetensors")
    for idx in ("a-idx3-ubyte", "a-idx3-ubyte.gz"):
        write_idx(tmp_path / idx, x.astype(np.uint8).reshape(50, 4, 3))
    path = tmp_path / name
    assert len(load_dataset(str(path), scaling="none").train) == 50
    whole = path.read_bytes()
    for size in (1, 3, 7, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with refuses(f"{name}: "):
            load_dataset(str(path))
    path.write_bytes(b"")
    with refuses(f"{name}: empty file"):
        load_dataset(str(path))
    path.write_bytes(b"neither an array nor an archive, but text" * 20)
    with refuses(f"{name}: "):
        load_dataset(str(path))


def test_damaged_archive_member(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(100, 10)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with refuses("a.npz: cannot be read: "):
        load_dataset(str(tmp_path / "a.npz"))


def test_idx_refusals(tmp_path):
    (tmp_path / "a-idx3-ubyte").write_bytes(b"\0\0\x07\x03" + bytes(40))
    with refuses("a-idx3-ubyte: ", "magic number 0x00000703"):
        load_dataset(str(tmp_path / "a-idx3-ubyte"))
    write_idx(tmp_path / "b-idx1-ubyte", np.zeros(9, np.uint8))
    with refuses("b-idx1-ubyte: ", "shape (9,)"):
        load_dataset(str(tmp_path / "b-idx1-ubyte"))
    write_idx(tmp_path / "c-idx3-ubyte", np.zeros((0, 2, 2), np.uint8))
    with refuses("c-idx3-ubyte: ", "no rows"):
        load_dataset(str(tmp_path / "c-idx3-ubyte"))
    path = write_idx(tmp_path / "d-idx3-ubyte", np.zeros((3, 2, 2), np.uint8))
    path.write_bytes(path.read_bytes() + b"\0")
    with refuses("d-idx3-ubyte: 29 bytes", "(3, 2, 2)", "28"):
        load_dataset(str(path))


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.array([[Bomb()]], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([[Bomb()]], object), allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        with refuses(f"{name}: "):
            load_dataset(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def test_missing_and_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refuses("gone.npy: no such file"):
        load_dataset(str(tmp_path / "gone.npy"))
    with refuses("gone: no such file"):
        load_dataset("folder/gone")
    with refuses("fashion_mnst: ", "did you mean 'fashion-mnist'?", "digits, mnist, fashion-mnist"):
        load_dataset("fashion_mnst")
    with refuses("MNIST: ", "did you mean 'mnist'?"):
        load_dataset("MNIST")
    with refuses("zzz: no such data set or file; known data sets: digits, mnist, fashion-mnist"):
        load_dataset("zzz")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with refuses(
        "a.parquet: unknown extension '.parquet'; known: .npy, .npz, .csv, .safetensors, *-idx3-ubyte"
    ):
        load_dataset("a.parquet")
    with pytest.raises(ValueError, match="scaling: 'max' is not one of auto, none, unit, minmax, standard"):
        load_dataset("digits", scaling="max")  # type: ignore[arg-type]


def test_a_path_wins_when_it_is_spelled_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx_folder(tmp_path / "mnist")
    assert len(load_dataset("./mnist").train) == 6


@pytest.mark.parametrize(
    ("module", "data"), [("scipy.sparse", "s.npz"), ("sklearn.datasets", "digits"), ("pooch", "mnist")]
)
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, module, data):
    monkeypatch.chdir(tmp_path)
    sparse.save_npz("s.npz", sparse.csr_array(np.eye(2)))
    monkeypatch.setitem(sys.modules, module, None)
    with refuses(f"{data}: {module.split('.')[0]} is not installed", 'pip install "fastae[train]"'):
        load_dataset(data, cache_dir=tmp_path)


def test_import_needs_no_extra():
    code = (
        "import sys; import fastae.train.data;"
        "print([m for m in ('sklearn', 'scipy', 'pooch', 'pandas') if m in sys.modules])"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stderr


# Test parts -------------------------------------------------------------------------------------------------


def test_test_part_by_path(tmp_path, table):
    train = save_npy(tmp_path / "train.npy", table)
    data = load_dataset(train, test=save_npy(tmp_path / "test.npy", table[:4] * 3), scaling="standard")
    assert data.test is not None and data.test.is_mapped
    np.testing.assert_array_equal(data.test.read(), data.scaling.apply(table[:4] * 3))

    with refuses("narrow.npy: 4 columns", "5"):
        load_dataset(train, test=save_npy(tmp_path / "narrow.npy", table[:, :4]))
    with refuses("gone.npy: no such file"):
        load_dataset(train, test=str(tmp_path / "gone.npy"))
    np.savez(tmp_path / "both.npz", x=table, x_test=table)
    with refuses("both.npz: ", "test part of its own"):
        load_dataset(str(tmp_path / "both.npz"), test=train)
    with refuses("both.npz: ", "a train and a test part"):
        load_dataset(train, test=str(tmp_path / "both.npz"))


# Scaling ----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(sources, "_CHUNK_ELEMENTS", 8)  # several chunks
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


def test_constant_columns_become_exactly_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHUNK_ELEMENTS", 40)
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
    assert data.scaling.inverse(read).dtype == np.float32

    values = data.scaling.to_dict()
    tensors = {**values, "offset": torch.tensor(values["offset"]), "scale": torch.tensor(values["scale"])}
    for restored in (json.loads(json.dumps(values)), tensors):
        again = AffineScaling.from_dict(restored)
        assert again.name == data.scaling.name and again.scale.dtype == again.offset.dtype == np.float32
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


# Rows -------------------------------------------------------------------------------------------------------


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


# Named data sets --------------------------------------------------------------------------------------------


def test_digits():
    pytest.importorskip("sklearn")
    data = load_dataset("digits")
    assert data.test is not None and data.train.labels is not None and data.test.labels is not None
    assert (data.name, data.width, data.feature_shape, data.num_classes) == ("digits", 64, (8, 8), 10)
    assert (len(data.train), len(data.test)) == (1500, 297)
    assert set(np.unique(data.train.read() * 16)) == set(range(17))

    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    ours = np.concatenate([data.train.read(), data.test.read()]) * 16
    both = np.concatenate([data.train.labels, data.test.labels])
    assert sorted(map(tuple, np.c_[ours, both])) == sorted(map(tuple, np.c_[x, labels]))
    share = np.bincount(data.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(share, 297 / 1797, atol=0.005)  # stratified
    np.testing.assert_array_equal(load_dataset("digits").test.labels, data.test.labels)  # type: ignore[union-attr]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A small data set on a local server, registered as mnist; yields its arrays and the paths asked for."""
    pytest.importorskip("pooch")
    arrays = write_idx_folder(tmp_path / "mirror")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "mirror")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    md5 = tuple(
        hashlib.md5((tmp_path / "mirror" / f"{file}.gz").read_bytes()).hexdigest()
        for file in sources.IDX_FILES
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download = data_module._Download(f"http://127.0.0.1:{server.server_port}/", md5)
    monkeypatch.setitem(data_module._DOWNLOADS, "mnist", download)
    yield arrays, asked
    server.shutdown()
    server.server_close()


def test_download_is_verified_and_kept(tmp_path, mirror):
    arrays, asked = mirror
    for _ in range(2):
        data = load_dataset("mnist", cache_dir=tmp_path / "cache")
        assert (data.name, data.feature_shape, data.num_classes) == ("mnist", (4, 3), 4)
        np.testing.assert_allclose(
            data.train.read(), arrays["train-images-idx3-ubyte"].reshape(6, 12) / 255, rtol=1e-6
        )
    assert sorted(asked) == sorted(f"/{name}.gz" for name in arrays)  # once each
    (tmp_path / "cache" / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(load_dataset("mnist", cache_dir=tmp_path / "cache").test.labels, [3, 0])  # type: ignore[union-attr]
    assert len(asked) == 5


def test_wrong_checksum_is_refused(tmp_path, mirror):
    write_idx(tmp_path / "mirror" / "train-images-idx3-ubyte.gz", np.zeros((6, 4, 3), np.uint8))
    with refuses("mnist: download failed", "hash"):
        load_dataset("mnist", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_offline(tmp_path, monkeypatch, name):
    pytest.importorskip("pooch")
    requests = pytest.importorskip("requests")

    def offline(*_, **__):
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setitem(data_module._DOWNLOADS, name, data_module._DOWNLOADS[name]._replace(installed=None))
    with refuses(
        f"{name}: download failed", "folder", "train-images-idx3-ubyte.gz", "'digits'", "no route to host"
    ):
        load_dataset(name, cache_dir=tmp_path)


def test_installed_copy_is_used(tmp_path, monkeypatch):
    write_idx_folder(tmp_path / "installed")
    download = data_module._DOWNLOADS["fashion-mnist"]._replace(installed=tmp_path / "installed")
    monkeypatch.setitem(data_module._DOWNLOADS, "fashion-mnist", download)
    data = load_dataset("fashion-mnist", cache_dir=tmp_path / "unused")
    assert (data.name, len(data.train)) == ("fashion-mnist", 6) and not (tmp_path / "unused").exists()


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no MNIST folder at {MNIST} (set FASTAE_MNIST)")
def test_real_mnist():
    data = load_dataset(str(MNIST))
    train = data.train.read()
    assert data.test is not None and data.train.labels is not None and data.test.labels is not None
    assert (train.shape, len(data.test), data.feature_shape) == ((60000, 784), 10000, (28, 28))
    assert data.num_classes == 10 and (train.min(), train.max()) == (0, 1)
    assert train.mean(dtype=np.float64) == pytest.approx(0.13066, abs=1e-5)
    assert train.std(dtype=np.float64) == pytest.approx(0.30811, abs=1e-5)
    assert data.test.read().mean(dtype=np.float64) == pytest.approx(0.13251, abs=1e-5)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(data.train.labels)[[0, 9]].tolist() == [5923, 5949]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
