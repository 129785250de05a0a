"""Unusable data is refused in one clear line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastae.train.data import load_dataset, parts
from tests.train.files import ROOT, refuses, save_npy, write_idx, write_idx_folder

sparse = pytest.importorskip("scipy.sparse")


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
    monkeypatch.setattr(parts, "_BLOCK_ELEMENTS", 10)
    x = np.zeros((50, 3), np.float32)
    x[31, 2] = x[44, 0] = np.nan
    with refuses("a.npy: ", "2 value(s)", "row 31, column 2"):
        load_dataset(save_npy(tmp_path / "a.npy", x))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(3), ["4 rows", "(3,)"]),
        (np.eye(4) + 1, ["(4,)", "one-hot", "(4, 4)"]),
        (np.ones((4, 2)), ["(4,)", "one-hot", "(4, 2)"]),
        (np.array([0, np.nan, 0, 1]), ["label nan", "row 1"]),
        (np.array([0, 1, np.inf, 1]), ["label inf", "row 2"]),
        (np.array(["a", "b", "", "c"]), ["row 2", "missing"]),
        (np.array([1j, 0, 0, 0]), ["labels of dtype complex128"]),
        (np.arange(4).astype("M8[D]"), ["labels of dtype datetime64"]),
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
    with refuses("d-idx3-ubyte: 29 or more bytes", "(3, 2, 2)", "28"):
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
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with refuses("a.xlsx: unknown extension '.xlsx'; known: .npy, .npz,", ".csv.gz", "*-idx3-ubyte"):
        load_dataset("a.xlsx")
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
