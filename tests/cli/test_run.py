"""A trained run in use: from Python, and by score, reconstruct and encode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fastae
from fastae.diagnostics import reconstruction_errors
from fastae.train import Stage, TrainConfig, dataset_from_arrays, train

X = load_digits().data


@pytest.fixture(scope="module")
def trained(run) -> fastae.Run:
    return fastae.load(run)


def scaled(trained: fastae.Run, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(trained.checkpoint.scaling.apply(rows))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(np.float32),
        lambda x: x.reshape(-1, 8, 8),
        lambda x: torch.from_numpy(x),
        lambda x: x.tolist(),
        lambda x: pytest.importorskip("scipy.sparse").coo_array(x),
    ],
    ids=["float64", "uint8", "float32", "images", "tensor", "lists", "sparse"],
)
def test_raw_rows_of_any_form_are_scaled_and_encoded(trained, form):
    rows = X[:9]
    expected = trained.checkpoint.stack.encode(scaled(trained, rows)).detach().numpy()
    np.testing.assert_allclose(trained.encode(form(rows)), expected, rtol=1e-6)
    back = trained.reconstruct(form(rows))
    assert back.shape == np.shape(form(rows))
    assert np.abs(back).max() <= X.max() + 1e-6


def test_columns_of_a_data_frame_are_taken_by_name(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(X[:60, 2:5], columns=["a", "b", "c"])
    config = TrainConfig(sizes=(3, 2), pretrain=Stage(epochs=1), out=str(tmp_path / "run"), tensorboard=False)
    dataset = dataset_from_arrays("table", frame, x_test=frame[["b", "c", "a"]])
    assert dataset.test is not None and np.array_equal(dataset.test.read(), dataset.train.read())
    train(config, dataset=dataset)
    run = fastae.load(tmp_path / "run")
    mixed = frame.assign(id="text")[["c", "id", "b", "a"]]
    assert np.array_equal(run.encode(mixed), run.encode(frame.to_numpy()))
    with pytest.raises(ValueError, match=r"^rows: expected a column 'b'"):
        run.encode(mixed.drop(columns="b"))


@pytest.mark.parametrize(
    "row, message",
    [
        (np.ma.masked_equal(np.r_[1.0, np.zeros(63)], 1.0), "1 values are masked"),
        (
            np.r_[np.zeros(63), np.nan],
            "1 value.s. NaN, infinite or beyond 4e.37, the first in row 0, column 63",
        ),
        (np.r_[1e300, np.inf, np.zeros(62)], "2 value.s. NaN"),
    ],
)
def test_masked_rows_and_values_that_are_no_numbers_are_refused(trained, row, message):
    for function in (trained.encode, trained.score, trained.predict, trained.reconstruct):
        with pytest.raises(ValueError, match=rf"^rows: {message}"):
            function(row)


def test_scores_are_the_reconstruction_errors_of_scaled_rows(trained):
    expected = reconstruction_errors(trained.checkpoint.stack, scaled(trained, X), excess=True)[0]
    np.testing.assert_allclose(trained.score(X), expected.numpy(), rtol=1e-5)
    noise = np.random.default_rng(0).permuted(X, axis=1)
    assert np.median(trained.score(noise)) > np.median(trained.score(X))


def test_one_row_no_rows_and_rows_that_do_not_fit(trained):
    assert trained.encode(X[0]).shape == (1, trained.checkpoint.stack.sizes[-1])
    assert trained.score(X[:0]).shape == (0,)
    for rows in (X[:, :5], X[0, 0], np.array(["a"])):
        with pytest.raises(ValueError, match=r"^rows: expected"):
            trained.encode(rows)


def test_labels_samples_and_figures(trained):
    logits = trained.checkpoint.classifier(scaled(trained, X))
    assert np.array_equal(trained.predict(X), logits.argmax(1).numpy())  # the classes are 0 to 9
    assert trained.sample(X[:3], steps=2).shape == (3, 64)
    assert trained.evaluate()["mse"] > 0.0


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet"])
@pytest.mark.parametrize("command", ["score", "reconstruct", "encode"])
def test_commands_write_what_the_run_gives(trained, run, fastae_, here, command, suffix):
    out = here / f"folder/out.{suffix}"
    result = fastae_(f"{command} {run} --out {out} --test")
    assert result.code == 0, result.err
    rows = trained.load_data().test
    expected = {
        "score": lambda: trained.score_rows(rows)[:, None],
        "reconstruct": lambda: trained.reconstruct_rows(rows),
        "encode": lambda: np.concatenate(
            [trained.checkpoint.stack.encode(torch.from_numpy(rows.read())).detach().numpy()]
        ),
    }[command]()
    written = {
        "npy": lambda: np.load(out),
        "npz": lambda: np.load(out)["x"],
        "csv": lambda: np.loadtxt(out, delimiter=",", skiprows=1, ndmin=2),
        "parquet": lambda: pytest.importorskip("pandas").read_parquet(out).to_numpy(),
    }[suffix]()
    np.testing.assert_allclose(written, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("command", ["score", "reconstruct", "encode"])
def test_other_formats_are_refused_before_anything_is_read(fastae_, command):
    result = fastae_(f"{command} nowhere --out x.txt")
    assert result.code == 2 and "out: 'x.txt' must end in .npy, .npz, .csv" in result.err
