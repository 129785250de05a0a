"""Labels of any kind become classes 0..K-1; what cannot be classes is said before training."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from fastae.train.data import Dataset, Rows, dataset_from_arrays, load_dataset
from fastae.train.data.labels import classes_from_json
from tests.train.files import IDENTITY, refuses

X = np.random.default_rng(0).random((12, 3))
TWO = np.arange(12) % 2
THREE = np.arange(12) % 3

KINDS: dict[str, tuple[Any, list[Any]]] = {
    "0..K-1": (THREE, [0, 1, 2]),
    "from 1": (THREE + 1, [1, 2, 3]),
    "gaps": (THREE * 7 - 3, [-3, 4, 11]),
    "signs": (2 * TWO - 1, [-1, 1]),
    "large": (TWO + 10**9, [10**9, 10**9 + 1]),
    "beyond int64": (TWO.astype(np.uint64) + 2**63, [2**63, 2**63 + 1]),
    "whole floats": (THREE * 2.0, [0, 2, 4]),
    "booleans": (TWO == 1, [False, True]),
    "text": (np.array(["cat", "dog", "mouse"])[THREE], ["cat", "dog", "mouse"]),
    "bytes": (np.array([b"cat", b"dog", b"mouse"])[THREE], ["cat", "dog", "mouse"]),
    "objects": (np.array(["cat", "dog", "mouse"], object)[THREE], ["cat", "dog", "mouse"]),
    "list": (["b", "a"] * 6, ["a", "b"]),
    "tensor": (torch.from_numpy(THREE), [0, 1, 2]),
    "one column": (THREE[:, None], [0, 1, 2]),
    "one-hot": (np.eye(3)[THREE], [0, 1, 2]),
    "one-hot booleans": (np.eye(3, dtype=bool)[THREE], [0, 1, 2]),
}


def _targets(rows: Rows) -> np.ndarray:
    assert rows.targets is not None and rows.labels is not None and rows.classes is not None
    np.testing.assert_array_equal(rows.classes[rows.targets], rows.labels)
    assert rows.targets.dtype == np.int64
    return rows.targets


@pytest.mark.parametrize("kind", KINDS)
def test_labels_become_classes(kind):
    labels, classes = KINDS[kind]
    data = dataset_from_arrays("x", X, labels)
    assert data.classes is not None and data.classes.tolist() == classes
    assert data.num_classes == data.check_classes() == len(classes)
    targets = _targets(data.train)
    if kind != "list":
        np.testing.assert_array_equal(targets, THREE if len(classes) == 3 else TWO)
    np.testing.assert_array_equal(data.train.subset(np.array([5, 2])).targets, targets[[5, 2]])
    kept = classes_from_json(json.loads(json.dumps(data.classes.tolist())), len(classes))
    assert kept.tolist() == classes


def test_known_classes_come_first():
    labels = np.array(["dog", "ant", "cat"])[THREE]
    data = dataset_from_arrays("x", X, labels, classes=np.array(["cat", "dog"]))
    assert data.classes is not None and data.classes.tolist() == ["cat", "dog", "ant"]
    assert _targets(data.train)[:3].tolist() == [1, 2, 0]


def test_classes_are_those_of_both_parts():
    data = dataset_from_arrays("x", X, THREE, X, THREE + 1)
    assert data.classes is not None and data.classes.tolist() == [0, 1, 2, 3] and data.test is not None
    assert set(_targets(data.train)) == {0, 1, 2} and set(_targets(data.test)) == {1, 2, 3}
    with refuses("x: ", "labels are text in one part and numbers in another"):
        dataset_from_arrays("x", X, THREE, X, np.array(list("abc"))[THREE])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "two classes or more, and x has none"),
        (np.ones(12), "two classes or more, and x has one class only"),
        (np.arange(12) / 4, r"labels of x are continuous \(0.25 in row 1\)"),
        (np.arange(12), "12 labels in 12 rows, fewer than 3 rows each"),
        (np.arange(12) * 10**9, "12 labels in 12 rows, fewer than 3 rows each"),
    ],
    ids=["none", "one", "continuous", "row numbers", "identifiers"],
)
def test_labels_that_are_no_classes(labels, message):
    data = dataset_from_arrays("x", X, labels)
    with pytest.raises(ValueError, match=message):
        data.check_classes()


def test_continuous_labels_are_kept_without_classes():
    data = dataset_from_arrays("x", X, np.arange(12) / 4)
    assert (data.classes, data.num_classes, data.train.targets) == (None, None, None)
    np.testing.assert_array_equal(data.train.labels, np.arange(12) / 4)


def test_rows_without_classes_number_their_labels_themselves():
    assert Rows(X, np.array([4, 2]), IDENTITY).targets.tolist() == [4, 2]  # type: ignore[union-attr]
    assert Rows(X, np.array(["a", "b"]), IDENTITY).targets is None


@pytest.mark.parametrize("values", [None, [0], [0, 0], [0, "a"], [0, None], [[0], [1]], "ab", [0, True, 2]])
def test_classes_that_json_cannot_hold(values):
    with pytest.raises(ValueError, match="classes"):
        classes_from_json(values, 2)


# Where labels come from -----------------------------------------------------------------------------------


def _load(tmp_path, text: str, name: str = "t.csv", **options: Any) -> Dataset:
    (tmp_path / name).write_text(text)
    return load_dataset(str(tmp_path / name), scaling="none", **options)


TABLE = "a,species,b\n1,cat,4\n2,dog,5\n3,cat,6\n"


@pytest.mark.parametrize(
    ("text", "options", "x", "names", "labels"),
    [
        (TABLE, {"label": "species"}, [[1, 4], [2, 5], [3, 6]], ("a", "b"), ["cat", "dog", "cat"]),
        (TABLE, {"label": "Species", "drop": ["b"]}, [[1], [2], [3]], ("a",), ["cat", "dog", "cat"]),
        (TABLE, {"drop": ["species"]}, [[1, 4], [2, 5], [3, 6]], ("a", "b"), None),
        ("a,target\n1,2\n3,4\n", {"drop": ["target"]}, [[1], [3]], ("a",), None),
        ("a,target\n1,2.5\n2,3.5\n", {}, [[1], [2]], ("a",), [2.5, 3.5]),
        ("a,target\n1,2.5\n2,3.5\n", {"label": "none"}, [[1, 2.5], [2, 3.5]], ("a", "target"), None),
        ("a,Class\n1,True\n2,False\n", {}, [[1], [2]], ("a",), ["True", "False"]),
        ("a,flag\n1,True\n2,False\n", {}, [[1, 1], [2, 0]], ("a", "flag"), None),
        (",a,y\n0,5,1\n1,6,0\n", {}, [[5], [6]], ("a",), [1, 0]),
        ("a,label_x,label_y\n1,0,1\n2,1,0\n", {}, [[1], [2]], ("a",), ["y", "x"]),
        ("a,label_x,label_y\n1,0,1\n2,1,1\n", {}, [[1, 0, 1], [2, 1, 1]], ("a", "label_x", "label_y"), None),
        ("a,u,v\n1,0,1\n2,1,0\n", {"label": ["u", "v"]}, [[1], [2]], ("a",), ["v", "u"]),
        ("5.1,cat\n4.9,dog\n", {"label": "1"}, [[5.1], [4.9]], None, ["cat", "dog"]),
        ("5.1,1,2\n4.9,3,4\n", {"label": "-1", "drop": ["1"]}, [[5.1], [4.9]], None, [2, 4]),
        (
            TABLE,
            {"label": "species", "features": ["b", "a"]},
            [[4, 1], [5, 2], [6, 3]],
            ("b", "a"),
            ["cat", "dog", "cat"],
        ),
    ],
)
def test_columns_of_tables(tmp_path, text, options, x, names, labels):
    data = _load(tmp_path, text, **options)
    np.testing.assert_allclose(data.train.read(), x, rtol=1e-6)
    assert data.feature_names == names
    assert (None if data.train.labels is None else data.train.labels.tolist()) == labels


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (TABLE, {}, ["line 2, column 2", "'cat' is not a number", "label or drop it (species)"]),
        (TABLE, {"label": "kind"}, ["label: no column 'kind'", "'species'"]),
        (TABLE, {"label": "species", "drop": ["c"]}, ["drop: no column 'c'"]),
        (TABLE, {"label": "species", "features": ["a", "c"]}, ["column 'c' is missing"]),
        ("1,2\n", {"label": "2"}, ["label: no column '2'", "from 0 to 1"]),
        ("a,a,b\n1,2,3\n", {"drop": ["a"]}, ["2 columns are named 'a'"]),
        ("a,u,v\n1,1,1\n", {"label": ["u", "v"]}, ["u, v are not one-hot"]),
        ("a,y\n1,\n", {}, ["line 2, column 2", "label is missing"]),
    ],
)
def test_columns_that_cannot_be_chosen(tmp_path, text, options, words):
    with refuses("t.csv: ", *words):
        _load(tmp_path, text, **options)


def test_a_test_file_may_order_its_columns_otherwise(tmp_path):
    (tmp_path / "test.csv").write_text("species,b,extra,a\ndog,50,x,10\n")
    data = _load(tmp_path, TABLE, label="species", test=str(tmp_path / "test.csv"))
    assert data.test is not None and data.test.labels is not None
    np.testing.assert_array_equal(data.test.read(), [[10, 50]])
    assert data.test.labels.tolist() == ["dog"]


def test_labels_from_a_file(tmp_path):
    path = str(tmp_path / "x.npy")
    np.save(path, X)
    np.save(tmp_path / "y.npy", np.eye(3)[THREE])
    (tmp_path / "y.csv").write_text("kind\n" + "\n".join("abc"[i] for i in THREE) + "\n")
    np.savez(tmp_path / "y.npz", THREE * 5)
    for name, classes in (("y.npy", [0, 1, 2]), ("y.csv", ["a", "b", "c"]), ("y.npz", [0, 5, 10])):
        data = load_dataset(path, labels=str(tmp_path / name))
        assert data.classes is not None and data.classes.tolist() == classes
        assert (data.label_source, _targets(data.train).tolist()) == (name, THREE.tolist())
    np.save(tmp_path / "short.npy", THREE[:5])
    with refuses("x.npy: labels of short.npy: ", "12 rows", "(5,)"):
        load_dataset(path, labels=str(tmp_path / "short.npy"))
    with refuses("gone.npy: cannot be read"):
        load_dataset(path, labels=str(tmp_path / "gone.npy"))
    with refuses("x.npy: label: "):
        load_dataset(path, label="y")
    np.savez(tmp_path / "own.npz", x=X, y=THREE, kind=TWO)
    with refuses("own.npz: has labels of its own"):
        load_dataset(str(tmp_path / "own.npz"), labels=str(tmp_path / "y.npy"))
    assert load_dataset(str(tmp_path / "own.npz"), label="kind").num_classes == 2
    assert load_dataset(str(tmp_path / "own.npz"), label="none").train.labels is None


# What was read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda p: _load(p, "a,b,c,y\n1,200,3,0\n2,900,3,1\n", "wine.csv", test_fraction=0.5),
            "wine.csv: 1 rows to train on and 1 to test on, 3 features (a, b, ...),"
            " labels from 'y' (2 classes), scaling none",
        ),
        (
            lambda p: dataset_from_arrays("x", np.zeros((4, 2, 3), np.uint8)),
            "x: 4 rows, 6 features (2 x 3), no labels, scaling pixel",
        ),
        (
            lambda p: dataset_from_arrays("x", X[:, :1], X[:, 0], scaling="minmax"),
            "x: 12 rows, 1 feature, labels (continuous), scaling minmax per column",
        ),
        (
            lambda p: _load(p, "Unnamed: 0,a\n0,5\n1,6\n"),
            "t.csv: 2 rows, 1 feature (a), no labels, scaling none, its column of row numbers left out",
        ),
    ],
)
def test_description(tmp_path, make, line):
    assert make(tmp_path).describe() == line


def test_held_out_rows_are_not_seen_by_the_scaling():
    x = np.arange(40.0).reshape(20, 2)
    data = dataset_from_arrays("x", x, test_fraction=0.3, scaling="minmax", seed=3)
    assert data.test is not None and (len(data.train), len(data.test)) == (14, 6)
    assert data.train.read().min() == 0 and data.train.read().max() == 1
    both = np.concatenate([data.train.index, data.test.index])  # type: ignore[list-item]
    assert sorted(both) == list(range(20))
    np.testing.assert_allclose(data.test.read(), data.scaling.apply(x[data.test.index]))
    with refuses("x: has a test part of its own"):
        dataset_from_arrays("x", x, x_test=x, test_fraction=0.3)
    for fraction in (0.01, 1.0):
        with pytest.raises(ValueError, match=r"test_fraction: (a )?fraction"):
            dataset_from_arrays("x", x, test_fraction=fraction)
