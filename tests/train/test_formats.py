"""Data written in any format is read unchanged."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastae.train.data import AffineScaling, load_dataset
from tests.train.files import refuses, save_npy, write_idx, write_idx_folder

sparse = pytest.importorskip("scipy.sparse")


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
    assert (len(full.train), full.feature_shape, full.num_classes) == (23, (5, 1), 5)
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


def test_sparse_rows_may_have_missing_values(tmp_path):
    dense = np.array([[0, np.nan, -3], [4, 0, np.nan], [0, 8, 1]])
    sparse.save_npz(tmp_path / "s.npz", sparse.csr_array(dense))
    data = load_dataset(str(tmp_path / "s.npz"), missing=True)
    np.testing.assert_allclose(data.train.read(), dense / 8)
    assert "2 values missing" in data.describe() and data.missing
    with refuses("s.npz: 2 value(s) NaN", "row 0, column 1", "with missing"):
        load_dataset(str(tmp_path / "s.npz"))


def test_sparse_damage(tmp_path):
    path = tmp_path / "s.npz"
    matrix = sparse.csr_array(np.array([[0, 2.0, 0], [4, 0, np.inf]]))
    sparse.save_npz(path, matrix)
    with refuses("s.npz: ", "1 value(s)", "row 1, column 2"):
        load_dataset(str(path))
    np.savez(path, shape=(2, 2), data=np.ones((2, 2)), indices=np.array([0, 1]), indptr=np.array([0, 1, 2]))
    with refuses("s.npz: a sparse matrix without format"):
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
        ("label,a\n1,2\n,2\n", ["line 3", "column 1", "the label is missing"]),
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
