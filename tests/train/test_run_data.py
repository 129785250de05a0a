"""A run remembers its data: where they were, their columns, their classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastae
from fastae.errors import CheckpointError, DataError
from fastae.train import Stage, TrainConfig, TrainResult, load_checkpoint, load_dataset, train
from fastae.train.data import named
from tests.train.files import refuses

RNG = np.random.default_rng(0)
KINDS = np.array(["ant", "bee", "cat"])[np.arange(60) % 3]
VALUES = np.c_[RNG.random(60), 1000 * RNG.random(60), RNG.integers(5, 9, 60)] + np.arange(60)[:, None] % 3


def write_table(path: Path, columns: dict[str, Any]) -> str:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch) -> TrainResult:
    """A run on a table named by a relative path, with a column to drop and labels of another name."""
    monkeypatch.chdir(tmp_path)
    a, b, c = VALUES.T
    write_table(Path("table.csv"), {"a": a, "kind": KINDS, "b": b, "id": range(60), "c": c})
    stage = Stage(epochs=2, batch_size=20, lr=0.01)
    return train(
        TrainConfig(
            data="table.csv",
            label=("Kind",),
            drop=("id",),
            test_fraction=0.25,
            sizes=(3, 4),
            pretrain=stage,
            supervised=stage,
            classifier=True,
            out="run",
            tensorboard=False,
            device="cpu",
            seed=4,
        )
    )


def test_a_run_finds_its_data_from_anywhere(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoint = load_checkpoint(tmp_path / "run")
    again = checkpoint.load_data()
    assert (again.feature_names, again.describe()) == (("a", "b", "c"), run.dataset.describe())
    for ours, theirs in ((again.train, run.dataset.train), (again.test, run.dataset.test)):
        np.testing.assert_array_equal(ours.read(), theirs.read())
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert again.train.fingerprint() == run.dataset.train.fingerprint()
    resumed = train(TrainConfig(resume=True, out=str(tmp_path / "run"), device="cpu"))
    assert resumed.history == run.history

    (tmp_path / "table.csv").rename("table.csv")  # moved with its folder
    assert checkpoint.load_data().train.fingerprint() == again.train.fingerprint()
    Path("table.csv").unlink()
    with refuses(f"data: neither {tmp_path / 'table.csv'} nor table.csv is there", "--data"):
        checkpoint.load_data()


def test_other_data_are_read_by_the_names_of_the_columns(run, tmp_path):
    checkpoint = load_checkpoint(tmp_path / "run")
    a, b, c = VALUES[:6].T
    kinds = ["dog", *KINDS[1:6]]
    columns = {"c": c, "x": kinds, "b": b, "kind": kinds, "a": a}
    new = checkpoint.load_data(write_table(tmp_path / "new.csv", columns))
    np.testing.assert_allclose(new.train.read(), checkpoint.scaling.apply(VALUES[:6]), rtol=1e-6)
    assert new.classes is not None and new.train.targets is not None
    assert (new.classes.tolist(), new.train.targets[:3].tolist()) == (["ant", "bee", "cat", "dog"], [3, 1, 2])
    unlabelled = checkpoint.load_data(write_table(tmp_path / "rows.csv", {"b": b, "c": c, "a": a}))
    assert unlabelled.train.labels is None
    np.testing.assert_array_equal(unlabelled.train.read(), new.train.read())
    with refuses("narrow.csv: ", "column 'b' is missing"):
        checkpoint.load_data(write_table(tmp_path / "narrow.csv", {"a": a, "c": c}))


def _edit(run: TrainResult, change: Any) -> Path:
    path = next(run.path.glob("checkpoint-*")) / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    return path.parent


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_missing_values_are_left_out_from_the_table_to_the_score(tmp_path, suffix):
    gone = np.random.default_rng(0).random(VALUES.shape) < 0.2
    file = str(tmp_path / f"t{suffix}")
    if suffix == ".csv":
        cells = np.where(gone, "", VALUES.astype(str))
        write_table(Path(file), {"a": cells[:, 0], "b": cells[:, 1], "kind": KINDS, "c": cells[:, 2]})
    else:
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        frame = pandas.DataFrame(np.where(gone, np.nan, VALUES), columns=list("abc"))
        frame.insert(2, "kind", KINDS)
        frame.to_parquet(file)
    options: dict[str, Any] = {"label": ("kind",), "sizes": (3, 2), "device": "cpu", "tensorboard": False}
    stage = Stage(epochs=2, batch_size=20)
    stages = {"pretrain": stage, "supervised": stage, "classifier": True, "validation": 0.2}
    with pytest.raises(DataError, match=r"''|is empty"):
        train(TrainConfig(data=file, out=str(tmp_path / "refused"), **options, **stages))
    config = TrainConfig(
        data=file,
        missing=(True,),
        loss=("mse",),
        scaling="standard",
        out=str(tmp_path / "r"),
        **options,
        **stages,
    )
    result = train(config)
    run = fastae.load(result.path)
    given = np.where(gone, np.nan, VALUES)
    assert all(np.isfinite(values).all() for values in (run.encode(given), run.reconstruct(given)))
    scaled = run.checkpoint.scaling.apply(given)
    errors = run.checkpoint.scaling.apply(run.reconstruct(given)) - scaled
    np.testing.assert_allclose(run.score(given), np.nansum(errors**2, 1), rtol=1e-4)
    assert set(run.predict(given)) <= set(KINDS)
    figures = run.evaluate(file)
    assert figures["mse"] == pytest.approx(np.nanmean(errors**2), rel=1e-4) and "pca_mse" not in figures


def test_the_classes_are_kept_and_older_runs_have_their_numbers(run):
    checkpoint = load_checkpoint(run.path)
    assert checkpoint.classes is not None and checkpoint.classes.tolist() == ["ant", "bee", "cat"]
    assert checkpoint.classifier is not None and checkpoint.classifier[-1].out_features == 3

    def older(description: dict[str, Any]) -> None:
        for key in ("classes", "feature_names", "paths"):
            del description["data"][key]
        for key in ("label", "labels", "drop", "test_fraction"):
            del description["train"][key]

    old = load_checkpoint(_edit(run, older))
    assert old.classes is not None and old.classes.tolist() == [0, 1, 2]
    assert (old.feature_names, old.paths) == (None, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", ["ant", "bee"]), ("classes", ["ant", "bee", 3]), ("feature_names", ["a"]), ("paths", 3)],
)
def test_descriptions_of_data_that_do_not_fit(run, key, value):
    folder = _edit(run, lambda description: description["data"].update({key: value}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("data", 3), ("drop", "a"), ("label", [1]), ("test_fraction", "half"), ("seed", 1.5)]
)
def test_options_of_data_that_do_not_fit(run, key, value):
    folder = _edit(run, lambda description: description["train"].update({key: value}))
    with pytest.raises(CheckpointError, match=rf"config.json: train.{key}"):
        load_checkpoint(folder).load_data()


def test_a_configuration_from_elsewhere_starts_no_download(run, tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    download = named.DOWNLOADS["mnist"]._replace(base_url="http://127.0.0.1:9/")
    monkeypatch.setitem(named.DOWNLOADS, "mnist", download)

    def change(description: dict[str, Any]) -> None:
        description["train"].update(data="mnist", label=[], drop=[], test_fraction=0.0)
        description["data"]["paths"] = {}

    with refuses("mnist: is not downloaded yet"):
        load_checkpoint(_edit(run, change)).load_data()


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
def test_a_configuration_of_numbers_that_make_no_sense_is_refused(run, name):
    folder = _edit(run, lambda d: d["train"]["pretrain"].update({name: 10**12}))
    config = TrainConfig(out=str(folder.parent), resume=True)
    with pytest.raises(CheckpointError, match=f"pretrain.{name}: must be at most 2147483647"):
        train(config)


def test_names_from_elsewhere_cannot_steer_a_terminal(run):
    folder = _edit(run, lambda d: (d["train"].update(data="\x1b[2J\nx.npy"), d["data"].update(paths={})))
    with pytest.raises(ValueError, match="no such file") as raised:
        load_checkpoint(folder).load_data()
    assert str(raised.value).isprintable() and r"\x1b[2J" in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v + np.eye(60, 3)[::-1] * 1e-3,
        lambda v: v[::-1],
        lambda v: np.where(np.arange(60)[:, None] == 31, 5, v),
    ],
    ids=["a few values", "order", "one row"],
)
def test_changed_rows_are_noticed(run, change):
    a, b, c = change(VALUES).T
    write_table(Path("table.csv"), {"a": a, "kind": KINDS, "b": b, "id": range(60), "c": c})
    with pytest.raises(CheckpointError, match="was trained on other data"):
        train(TrainConfig(resume=True, out="run", device="cpu"))


def test_labels_that_are_no_classes_are_refused_before_training(tmp_path):
    np.savez(tmp_path / "x.npz", x=VALUES, y=VALUES[:, 0])
    config = TrainConfig(
        data=str(tmp_path / "x.npz"),
        sizes=(3, 2),
        classifier=True,
        out=str(tmp_path / "run"),
        tensorboard=False,
    )
    with pytest.raises(
        ValueError, match=r"^classifier: needs classes, and the labels of x\.npz are continuous"
    ):
        train(config)
    assert not (tmp_path / "run").exists()
    lines: list[str] = []
    train(replace(config, classifier=False, pretrain=Stage(epochs=1), device="cpu"), announce=lines.append)
    assert lines == [
        "x.npz: 60 rows, 3 features, labels from 'y' (continuous), scaling minmax per column; on cpu"
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"a": range(30), "label_x": [1, 0] * 15, "label_y": [0, 1] * 15, "b": [7, 5, 6] * 10},
        {"": range(30), "a": [3, 5] * 15, "y": ["u", "v"] * 15},
        {"Unnamed: 0": range(30), "a": [3, 5] * 15, "a ": [4, 2, 3] * 10, "target": [0.5, 1] * 15},
    ],
    ids=["one-hot", "row numbers", "two of one name"],
)
def test_columns_that_were_found_out_are_found_again(tmp_path, columns):
    data = write_table(tmp_path / "t.csv", columns)
    config = TrainConfig(
        data=data, pretrain=Stage(epochs=1), out=str(tmp_path / "run"), tensorboard=False, device="cpu"
    )
    dataset = load_dataset(data)
    run = train(replace(config, sizes=(dataset.width, 2)))
    again = load_checkpoint(run.path).load_data()
    assert again.train.fingerprint() == run.dataset.train.fingerprint()
    assert (again.train.labels is None) == (run.dataset.train.labels is None)
