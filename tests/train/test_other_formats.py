"""Tables, archives and images of other libraries: what they wrote is what is read."""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train.data import dataset_from_arrays, load_dataset, parts
from fastae.train.data.sources import files
from tests.train.files import refuses, write_idx

X = np.arange(12.0).reshape(4, 3) * [1, 10, 100]
KINDS = ["cat", "dog", "cat", "dog"]
NUMBERS = "\n".join(" ".join(map(str, row)) for row in X)

# Text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "a\tb\tc\n" + NUMBERS.replace(" ", "\t")),
        ("t.csv", "a;b;c\n" + NUMBERS.replace(" ", ";")),
        ("t.csv", NUMBERS.replace(".", ",").replace(" ", ";")),
        ("t.csv", NUMBERS.replace(" ", "\t")),
        ("t.txt", "# from elsewhere\n" + NUMBERS.replace(" ", "   ") + " # end\n\n"),
        ("t.txt", NUMBERS.replace(" ", ",")),
        ("T.CSV.GZ", NUMBERS.replace(" ", ",")),
        ("t.tsv.gz", NUMBERS.replace(" ", "\t")),
    ],
)
def test_text(tmp_path, name, text):
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    np.testing.assert_array_equal(load_dataset(str(tmp_path / name), scaling="none").train.read(), X)


def test_integers_that_float64_rounds_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text(
        "a,b\n" + "\n".join(f"{i},{1_700_000_000_000_000_000 + i}" for i in range(9))
    )
    with refuses("t.csv: column 2 has integers", "float64"):
        load_dataset(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("\n".join(f"{i},{2**60 * i}" for i in range(9)))
    np.testing.assert_array_equal(
        load_dataset(str(tmp_path / "t.csv"), scaling="minmax").train.read()[-1], [1, 1]
    )


# Data frames and columns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]})
    data = dataset_from_arrays("x", frame, frames.Series(["u", "v", "u"]), scaling="none")
    assert (data.feature_names, data.num_classes) == (("a", "b", "c"), 2)
    np.testing.assert_array_equal(data.train.read(), [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]])
    large = frames.DataFrame({"stamp": [10**12 + i for i in range(50)], "b": [0.1 * i for i in range(50)]})
    assert len(np.unique(dataset_from_arrays("x", large).train.read()[:, 0])) == 50
    with refuses("x: row 0 of column 'd' is no number", "cat"):
        dataset_from_arrays("x", frames.DataFrame({"a": [1, 2], "d": ["cat", "dog"]}))
    with refuses("x: label ", "row 1 is missing"):
        dataset_from_arrays("x", frame, frames.Series(["u", None, "u"]))
    with refuses("x: integers of column 1 would be rounded"):
        dataset_from_arrays("x", frames.DataFrame({"a": [0.5, 1], "id": [2**60, 2**60 + 1]}))


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_columns(tmp_path, name):
    arrow, path = pytest.importorskip("pyarrow"), tmp_path / name
    feather, parquet = (pytest.importorskip(f"pyarrow.{part}") for part in ("feather", "parquet"))

    def save(**columns) -> str:
        table = arrow.table(columns)
        parquet.write_table(table, path) if name == "t.parquet" else feather.write_feather(table, path)
        return str(path)

    a, b = np.array([1.5, 2.5, 3.5, 4.5]), np.array([10, 20, 30, 40])
    coded = arrow.array(KINDS).dictionary_encode()
    data = load_dataset(save(a=a, kind=coded, b=b, note=KINDS), label="kind", drop=["note"], scaling="none")
    np.testing.assert_array_equal(data.train.read(), np.c_[a, b])
    assert data.feature_names == ("a", "b") and data.train.labels is not None
    assert (data.train.labels.tolist(), data.label_source) == (KINDS, "'kind'")
    assert load_dataset(save(a=a, y=b)).num_classes == 4
    stamps = load_dataset(save(a=2**50 + np.arange(4), b=2**50 + np.arange(4) ** 2))
    assert [len(np.unique(column)) for column in stamps.train.read().T] == [4, 4]
    with refuses(f"{name}: column 'note' is not numbers, but string"):
        load_dataset(save(a=a, note=KINDS))
    with refuses(f"{name}: row 2 of column 'a' is empty"):
        load_dataset(save(a=[1.0, 2.0, None, 3.0], b=b))
    with refuses(f"{name}: label: no column 'kind'"):
        load_dataset(save(a=a, b=b), label="kind")
    path.write_bytes(path.read_bytes()[:-9])
    with refuses(f"{name}: cannot be read"):
        load_dataset(str(path))


# Named arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "test"),
    [
        (("x_train", "y_train", "x_test", "y_test"), True),
        (("X_train", "Y_train", "X_test", "Y_test"), True),
        (("train_images", "train_labels", "test_images", "test_labels"), True),
        (("images", "labels"), False),
        (("X", "y"), False),
        (("data", "target"), False),
        (("features", "targets"), False),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "pt", "h5"])
def test_usual_names(tmp_path, names, test, suffix):
    arrays = dict(zip(names, (X, [0, 1, 2, 0], X[:2] + 1, [2, 1]), strict=False))
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays, other=X)  # type: ignore[arg-type]
    elif suffix == "pt":
        torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, array in arrays.items():
                file[f"group/{name}"] = array
    data = load_dataset(str(path), scaling="none")
    np.testing.assert_array_equal(data.train.read(), X)
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2, 0])
    assert (data.test is not None) == test and data.label_source == repr(names[1])
    if data.test is not None:
        np.testing.assert_array_equal(data.test.read(), X[:2] + 1)
        np.testing.assert_array_equal(data.test.labels, [2, 1])


def test_names_that_could_all_be_the_rows(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, images=X)
    with refuses("a.npz: x, images could all be x"):
        load_dataset(str(tmp_path / "a.npz"))


def test_tensors(tmp_path):
    path = tmp_path / "a.pt"
    for saved, labels in (
        (torch.tensor(X), None),
        ((torch.tensor(X).bfloat16(), torch.tensor([1, 0, 1, 0])), [1, 0, 1, 0]),
        ([torch.tensor(X, requires_grad=True)], None),
    ):
        torch.save(saved, path)
        rows = load_dataset(str(path), scaling="none").train
        np.testing.assert_allclose(rows.read(), X, rtol=1e-2)
        assert (None if rows.labels is None else rows.labels.tolist()) == labels

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for hostile, message in (
        ({"x": Bomb()}, "a.pt: damaged, or holds more than tensors (Weights only load failed)"),
        (torch.nn.Linear(2, 2), "a.pt: damaged, or holds more than tensors (Weights only load failed)"),
        ({"x": 3}, "a.pt: expected a tensor"),
    ):
        torch.save(hostile, path)
        with refuses(message):
            load_dataset(str(path))
    assert not (tmp_path / "exploded").exists()


def test_hdf5_reads_nothing_outside_its_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("secret.h5", "x")
    with refuses("link.h5: needs x", "has nothing"):
        load_dataset(str(tmp_path / "link.h5"))
    (tmp_path / "raw").write_bytes(X.tobytes())
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("x", X.shape, X.dtype, external=[(str(tmp_path / "raw"), 0, X.nbytes)])
    with refuses("raw.h5: /x lies in other files"):
        load_dataset(str(tmp_path / "raw.h5"))


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_h5ad(tmp_path, form):
    h5py, sparse = pytest.importorskip("h5py"), pytest.importorskip("scipy.sparse")
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        if form == "dense":
            file["X"] = X
        else:
            matrix = getattr(sparse, f"{form}_matrix")(X)
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{form}_matrix", "shape": X.shape})
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(matrix, name)
        file.create_group("var").attrs["_index"] = "gene"
        file["var/gene"] = ["g1", "g2", "g3"]
        file.create_group("obs").attrs["_index"] = "cell"
        file["obs/cell"] = list("abcd")
        file["obs/type/codes"], file["obs/type/categories"] = np.array([0, 1, 0, 1], np.int8), ["cat", "dog"]
    data = load_dataset(str(path), label="type", scaling="none")
    np.testing.assert_array_equal(data.train.read(), X)
    assert data.feature_names == ("g1", "g2", "g3") and data.train.labels is not None
    assert (data.train.labels.tolist(), data.label_source) == (KINDS, "obs 'type'")
    chosen = load_dataset(str(path), features=["g3", "g1"], scaling="none")
    np.testing.assert_array_equal(chosen.train.read(), X[:, [2, 0]])
    assert chosen.train.labels is None
    np.testing.assert_array_equal(
        load_dataset(str(path), drop=["g2"], scaling="none").train.read(), X[:, [0, 2]]
    )
    with refuses("cells.h5ad: label: no column 'kind'", "type"):
        load_dataset(str(path), label="kind")


# Images ---------------------------------------------------------------------------------------------------


def _save_images(folder: Path, mode: str = "L", size: tuple[int, int] = (4, 3), numbers=range(2)) -> None:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image.new("L", size, 20 * number + len(folder.name)).convert(mode).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (3, 4)), ("RGB", (3, 4, 3)), ("P", (3, 4, 3)), ("RGBA", (3, 4, 3))]
)
def test_image_folders(tmp_path, mode, shape):
    for part in ("train", "test"):
        for kind in ("cats", "mice"):
            _save_images(tmp_path / "pets" / part / kind, mode)
    data = load_dataset(str(tmp_path / "pets"))
    assert (data.feature_shape, data.scaling.name, data.label_source) == (shape, "pixel", "folders")
    assert data.test is not None and data.train.labels is not None
    for rows in (data.train, data.test):
        grey = [4, 24, 4, 24] if mode != "1" else [0, 0, 0, 0]
        np.testing.assert_allclose(rows.read()[:, 0] * 255, grey, rtol=1e-6)
    assert data.train.labels.tolist() == ["cats", "cats", "mice", "mice"]
    alone = load_dataset(str(tmp_path / "pets" / "train" / "cats"))
    assert (len(alone.train), alone.train.labels) == (2, None)


def test_images_that_cannot_be_used(tmp_path):
    image = pytest.importorskip("PIL.Image")
    _save_images(tmp_path / "a" / "cats")
    _save_images(tmp_path / "a" / "dogs", size=(5, 3), numbers=[7])
    with refuses("a: dogs/7.png is 3 x 5 uint8, where cats/0.png is 3 x 4 uint8"):
        load_dataset(str(tmp_path / "a"))
    image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "deep.png").rename(tmp_path / "b" / "deep.png")
    np.testing.assert_array_equal(
        load_dataset(str(tmp_path / "b"), scaling="none").train.read(), np.full((1, 12), 40_000)
    )
    (tmp_path / "b" / "deep.png").write_bytes(b"\x89PNG\r\n but no more")
    with refuses("deep.png: cannot be read"):
        load_dataset(str(tmp_path / "b"))


# Missing packages, limits, paths --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pyarrow.parquet", "a.parquet"),
        ("pyarrow.feather", "a.feather"),
        ("h5py", "a.h5"),
        ("PIL.Image", "a"),
    ],
)
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, module, name):
    (tmp_path / name).mkdir() if name == "a" else (tmp_path / name).write_bytes(b"...")
    if name == "a":
        (tmp_path / "a" / "1.png").write_bytes(b"...")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf'^{name}: {module.split(".")[0]} is not installed.*"fastae\[data\]"'
    ):
        load_dataset(str(tmp_path / name))


def test_compressed_files_expand_within_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FREE_BYTES", 1 << 16)
    zeros = np.zeros((2000, 400), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", zeros)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,0,0,0\n" * 100_000))
    with pytest.importorskip("h5py").File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=zeros, compression="gzip", chunks=zeros.shape)
    for name in ("a.npz", "a.csv.gz", "a.h5"):
        with refuses(f"{name}: ", "more than 100 times the size of the file"):
            load_dataset(str(tmp_path / name))
    write_idx(tmp_path / "b-idx2-ubyte.gz", zeros)
    with refuses("b-idx2-ubyte.gz: ", "more than 100 times"):
        load_dataset(str(tmp_path / "b-idx2-ubyte.gz"))
    sparse = pytest.importorskip("scipy.sparse")
    for shape, words in (((10**6, 2), ["matrix of 1000000 rows"]), ((2, 10**9), ["columns; at most"])):
        sparse.save_npz(tmp_path / "s.npz", sparse.coo_array(([1.0], ([0], [1])), shape=shape))
        with refuses("s.npz: ", *words):
            load_dataset(str(tmp_path / "s.npz"))


def test_no_more_is_read_than_a_header_announces(tmp_path):
    path = write_idx(tmp_path / "a-idx2-ubyte.gz", np.zeros((2, 2), np.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1 << 26), 1))
    with refuses("a-idx2-ubyte.gz: 17 or more bytes", "needs 16"):
        load_dataset(str(path))


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    for path, words in (
        (tmp_path / "loop.npy", ["no such file"]),
        (tmp_path / "loop.npy" / "x.npy", ["no such file"]),
        (tmp_path / "pipe.npy", ["neither a file nor a folder"]),
        (tmp_path / ("n" * 5000 + ".npy"), []),
        ("a\0b.npy", []),
    ):
        with refuses("", *words) as raised:
            load_dataset(str(path))
        assert len(str(raised.value)) <= 500 and str(raised.value).isprintable()


def test_arrays_of_any_kind(monkeypatch):
    sparse = pytest.importorskip("scipy.sparse")
    monkeypatch.setattr(parts, "_BLOCK_ELEMENTS", 4)
    kinds = [
        X.tolist(),
        tuple(map(tuple, X)),
        torch.tensor(X),
        torch.tensor(X, requires_grad=True),
        memoryview(X),
    ]
    kinds += [
        getattr(sparse, f"{kind}_{of}")(X)
        for kind in ("coo", "bsr", "lil", "dok", "dia", "csc")
        for of in ("array", "matrix")
    ]
    for x in kinds:
        np.testing.assert_allclose(dataset_from_arrays("x", x, scaling="none").train.read(), X)
    masked = np.ma.masked_equal(X, 10)
    for x, words in (
        (masked, ["1 values are masked"]),
        ([[1, 2], [3]], ["expected an array of numbers"]),
        (sparse.coo_array(np.ones(3)), ["2 dimensions"]),
        (torch.eye(2).to_sparse(), ["expected an array of numbers", "Tensor"]),
        ("abc", ["is not real numbers"]),
        (None, ["is not real numbers"]),
        (object(), ["is not real numbers"]),
        ([*X.tolist(), [1, 2, None]], ["is not real numbers"]),
    ):
        with refuses("x: ", *words):
            dataset_from_arrays("x", x)
