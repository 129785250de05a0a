"""What holds for every picture: names, bytes, settings, widths and colours, and what is refused."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from fastae import plots
from fastae.plots.style import DARK, NARROW, WIDTH, figures_of
from tests.plots.support import history

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).parents[2]

EVERY = {
    "filters": lambda: plots.filters(np.eye(3, 16), shape=(4, 4)),
    "reconstructions": lambda: plots.reconstructions(np.eye(3, 15), np.ones((3, 15))),
    "tangent_tiles": lambda: plots.tangent_tiles(np.eye(3, 16), np.ones((3, 2, 16)), shape=(4, 4)),
    "errors": lambda: plots.errors(np.arange(3.0), np.eye(3, 16), np.ones((3, 16)), shape=(4, 4)),
    "code_histogram": lambda: plots.code_histogram([np.eye(3)], ["sigmoid"]),
    "code_map": lambda: plots.code_map(np.eye(12, 4), np.arange(12) % 3, method="tsne"),
    "learning_curves": lambda: plots.learning_curves(history()),
    "spectrum": lambda: plots.spectrum([2.0, 1.0]),
    "contraction": lambda: plots.contraction([1.0, 2.0], [0.5, 0.4]),
    "vector_field_2d": lambda: plots.vector_field_2d(np.eye(2), lambda x: -x),
}


def test_every_picture_is_here():
    assert set(EVERY) == set(plots.__all__) - {"render", "spread"}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_the_same_picture_has_the_same_bytes(name, format):
    assert len({plots.render(EVERY[name](), format) for _ in range(3)}) == 1


@pytest.mark.parametrize("name", EVERY)
def test_the_callers_settings_neither_show_nor_change(name):
    expected = plots.render(EVERY[name]())
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "figure.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert plots.render(EVERY[name]()) == expected
        assert dict(matplotlib.rcParams) == before


def test_long_titles_are_wrapped(check):
    check(plots.filters(np.eye(3, 16), shape=(4, 4), title="a title of several words " * 9))


@pytest.mark.parametrize("name", EVERY)
def test_all_axes_are_named_and_titled(name):
    figure = EVERY[name]()
    assert figure.get_suptitle()
    assert figure.get_figwidth() == WIDTH
    for axes in figure.axes:
        labelled = axes.get_ylabel() or axes.get_xlabel()
        assert labelled or axes.images  # pictures have titles or named rows


@pytest.mark.parametrize("name", EVERY)
def test_narrow_figures_are_whole(check, name):
    with figures_of(NARROW):
        figure = check(EVERY[name]())
    assert figure.get_figwidth() == NARROW and EVERY[name]().get_figwidth() == WIDTH


@pytest.mark.parametrize("name", EVERY)
def test_every_colour_has_one_for_a_dark_page(name):
    svg = re.sub(r"base64,[^\"]*", "", plots.render(EVERY[name](), "svg").decode())
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= DARK.keys()


def test_pyplot_is_never_imported():
    code = "from fastae import plots; plots.render(plots.spectrum([1.0]))"
    check = "import sys; assert 'matplotlib.pyplot' not in sys.modules"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, timeout=60, env=environment)


def test_tensors_with_gradients_and_low_precision_are_taken(check):
    weight = torch.randn(4, 16, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(plots.filters(weight, shape=(4, 4)))
        check(plots.filters(weight.bfloat16(), shape=(4, 4)))


X = np.ones((3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.filters(np.ones(3)), r"weight: expected 2 dimensions.* got shape \[3\]"),
        (lambda: plots.filters(np.ones((0, 3))), r"weight: expected .* got shape \[0, 3\]"),
        (lambda: plots.filters(np.full((2, 3), np.nan)), "weight: 6 entries are NaN or infinite"),
        (lambda: plots.filters(X, usage=[1.0]), r"usage: expected shape \[3\] of the units, got \[1\]"),
        (lambda: plots.filters(X, limit=0), "limit: must be a whole number >= 1, got 0"),
        (lambda: plots.filters(X, limit=2.5), "limit: must be a whole number >= 1, got 2.5"),
        (lambda: plots.filters(X, shape=4), "shape: 4 does not hold the 4 values"),
        (lambda: plots.errors([1.0] * 3, X, X, count=0), "count: must be a whole number >= 1, got 0"),
        (lambda: plots.spectrum(["a"]), "values: expected an array of numbers"),
        (lambda: plots.vector_field_2d(X[:, :2], lambda x: x, grid=0), "grid: must be .* >= 2, got 0"),
        (lambda: plots.vector_field_2d(X[:, :2], lambda x: x, margin=0), "margin: must be .* > 0, got 0"),
        (lambda: plots.filters(X, shape=(3, 3)), r"shape: \[3, 3\] does not hold the 4 values"),
        (lambda: plots.reconstructions(X, X[:2]), r"reconstructed: expected shape \[3, 4\] of clean"),
        (lambda: plots.reconstructions(X, X, X.T), r"corrupted: expected shape \[3, 4\] of clean"),
        (lambda: plots.tangent_tiles(X, np.ones((3, 2, 5))), r"directions: expected shape \[3, 4\]"),
        (lambda: plots.errors([1.0], X, X), r"values: expected shape \[3\] of rows, one for each, got \[1\]"),
        (lambda: plots.errors([1.0] * 3, X, X[:1]), "reconstructed: expected shape"),
        (lambda: plots.code_histogram([], []), "codes: 0 layers for 0 activations"),
        (lambda: plots.code_histogram([X], ["sigmoid", "relu"]), "codes: 1 layers for 2 activations"),
        (lambda: plots.code_histogram([X], ["sigmoidal"]), "activation: 'sigmoidal' is not one of"),
        (lambda: plots.code_map(X, [1, 2]), r"labels: expected 3 whole numbers, got shape \[2\]"),
        (lambda: plots.code_map(X, [1.0, 2.0, 3.5]), "labels: expected 3 whole numbers"),
        (lambda: plots.code_map(X, method="umap"), "method: 'umap' is not one of pca, tsne"),
        (lambda: plots.spectrum([1.0, -1.0]), "values: singular values are >= 0, got -1"),
        (lambda: plots.spectrum({}), "values: expected at least one curve"),
        (lambda: plots.spectrum({"a": [np.inf]}), "values a: 1 entries are NaN or infinite"),
        (lambda: plots.contraction([0.0, 1.0], [1.0, 1.0]), "radii: must be positive, got 0"),
        (lambda: plots.contraction([1.0], [1.0, 1.0]), "ratios: 2 values for 1 radii"),
        (lambda: plots.vector_field_2d(X, lambda x: x), "data: expected two features, got 4"),
        (lambda: plots.vector_field_2d(X[:, :2], lambda x: x[:1]), "field: expected shape"),
        (lambda: plots.render(plots.spectrum([1.0]), "gif"), "format: 'gif' is not one of png, svg, pdf"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
