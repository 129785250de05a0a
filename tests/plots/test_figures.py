"""Every picture on normal and on degenerate input; what it shows is what it was given."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.quiver import Quiver
from matplotlib.transforms import Bbox

from fastae import nn, plots
from fastae.plots.style import COLOURS, NARROW, WIDTH, figures_of
from tests.plots.support import history

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [
    (16, (4, 4)),
    (15, (3, 5)),
    (49, None),
    (48, (4, 4, 3)),
    (48, (3, 4, 4)),
    (180, (6, 30)),
    (512, (8, 64)),
    (400, (2, 200)),
    (1000, (500, 2)),
    (16, None),
    (15, (15,)),
    (1, None),
]
"""Widths of a row and its shape: images in grey and colour, then rows that are none."""


def images(axes) -> list[np.ndarray]:
    return [np.asarray(np.ma.filled(image.get_array(), np.nan)) for image in axes.images]


def lines(axes) -> dict[str, np.ndarray]:
    """Values of the named lines: along x in a panel of a table's row, else along y."""
    horizontal = any(str(line.get_label()) == "clean" for line in axes.lines)
    return {
        str(line.get_label()): np.asarray(line.get_xdata() if horizontal else line.get_ydata())
        for line in axes.lines
    }


def tick_labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# Filters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "shape"), SHAPES)
@pytest.mark.parametrize("units", [1, 7])
def test_filters_of_any_width(check, random, width, shape, units):
    figure = check(plots.filters(random.normal(size=(units, width)), shape=shape))
    assert len(figure.axes) == (1 if width == 48 else 2)  # colours need no colour bar


def test_notebooks_show_a_figure(random):
    assert plots.filters(random.normal(size=(4, 9)))._repr_png_().startswith(b"\x89PNG")


def test_sparse_filters_do_not_blow_up_their_noise():
    weight = 1e-9 * np.ones((4, 400))
    weight[:, 0] = 5.0
    low, high = plots.filters(weight, shape=(20, 20)).axes[0].images[0].get_clim()
    assert low == -high == -0.5


def test_filters_are_tiles_by_norm_on_a_symmetric_scale(random):
    weight = random.normal(size=(3, 6)) * [[1.0], [3.0], [2.0]]
    figure = plots.filters(weight, shape=(2, 3))
    (canvas,) = images(figure.axes[0])
    corners = canvas[1::3, 1::4]  # of tiles of 2 x 3 with gaps of 1
    np.testing.assert_allclose(corners[~np.isnan(corners)], weight[[1, 2, 0], 0])
    np.testing.assert_allclose(canvas[1:3, 1:4], weight[1].reshape(2, 3))
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high < 0


def test_the_most_used_filters_come_first_and_are_counted(random):
    weight = random.normal(size=(5, 9))
    figure = plots.filters(weight, shape=(3, 3), usage=np.array([0.0, 5.0, 1.0, 4.0, 2.0]), limit=2)
    assert figure.axes[0].get_title("left") == "2 of 5 units, most used first"
    (canvas,) = images(figure.axes[0])
    np.testing.assert_allclose(canvas[1:4, 1:4], weight[1].reshape(3, 3))


def test_wide_rows_that_are_no_images_are_subsampled(check, random):
    figure = check(plots.filters(random.normal(size=(300, 5000)), shape=(5000,)))
    (strips,) = images(figure.axes[0])
    assert strips.shape == (112, 240)
    assert "240 of 5000" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("weight", [np.zeros((4, 16)), np.full((4, 16), 3.0), np.eye(4, 16) * 1e-30])
def test_filters_that_are_all_equal(check, weight):
    check(plots.filters(weight, shape=(4, 4)))


def test_large_images_are_subsampled(random):
    (canvas,) = images(plots.filters(random.normal(size=(1, 200 * 100)), shape=(200, 100)).axes[0])
    assert canvas.shape[0] < 64


# Reconstructions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "shape"), SHAPES)
@pytest.mark.parametrize(("rows", "corrupted"), [(1, False), (30, True)])
def test_reconstructions_of_any_width(check, random, width, shape, rows, corrupted):
    x = random.uniform(size=(rows, width))
    check(plots.reconstructions(x, 0.9 * x, x * (x > 0.3) if corrupted else None, shape=shape))


def test_reconstructions_are_below_their_rows(random):
    x = random.uniform(size=(2, 9))
    figure = plots.reconstructions(x, x / 2, x / 4, shape=(3, 3))
    (canvas,) = images(figure.axes[0])
    for row, factor in enumerate((1.0, 0.25, 0.5)):
        tile = canvas[1 + 4 * row : 4 + 4 * row, 1:4]
        np.testing.assert_allclose(tile, factor * x[0].reshape(3, 3))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["clean", "corrupted", "reconstructed"]


def test_lines_of_rows_that_are_no_images(random):
    x = random.uniform(size=(1, 6))
    (axes,) = plots.reconstructions(x, x / 2, x / 4, shape=(6,)).axes
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["clean"], x[0])
    np.testing.assert_allclose(drawn["corrupted"], x[0] / 4)
    np.testing.assert_allclose(drawn["reconstructed"], x[0] / 2)
    assert tick_labels(axes.yaxis) == [f"feature {n}" for n in range(1, 7)]


def test_rows_of_a_table_have_the_names_of_its_columns_and_values_in_its_units(check, random):
    x = random.uniform(size=(3, 5))
    names = ["alcohol", "cost in $", "a_b", "hue", "a name that is far too long to be written"]
    figure = check(plots.reconstructions(x, x / 2, names=names, inverse=lambda rows: 1000 * rows, shape=(5,)))
    assert tick_labels(figure.axes[0].yaxis)[:4] == ["alcohol", r"cost in \$", "a_b", "hue"]
    (side,) = figure.axes[0].child_axes
    assert tick_labels(side.yaxis)[0] == f"{1000 * x[0, 0]:.4g} → {500 * x[0, 0]:.4g}"
    check(plots.errors(x.sum(1), x, x / 2, names=names, shape=(5,)))
    strips = check(plots.filters(x, names=names, shape=(5,))).axes[0]
    assert list(strips.get_xticks()) == [1, 2, 3, 4, 5] and strips.get_xlim() == (0.5, 5.5)
    check(plots.tangent_tiles(x, x[:, None], names=names, shape=(5,)))


def test_of_a_wide_row_the_features_furthest_from_their_mean_are_drawn(check, random):
    x = random.poisson(0.02, size=(50, 400)).astype(float)
    x[0, [7, 300]] = 40.0, 60.0
    axes = check(plots.reconstructions(x, 0.5 * x, names=[f"n{k}" for k in range(400)])).axes[0]
    assert tick_labels(axes.yaxis)[:2] == ["n300", "n7"]
    np.testing.assert_allclose(lines(axes)["reconstructed"][:2], [30.0, 20.0])
    assert axes.get_ylabel().startswith("12 of 400 features")


def test_constant_rows(check):
    check(plots.reconstructions(np.ones((3, 16)), np.ones((3, 16)), shape=(4, 4)))


# Tangents and errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "shape"), SHAPES)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (9, 8)])
def test_tangents_of_any_width(check, random, width, shape, rows, count):
    check(
        plots.tangent_tiles(
            random.uniform(size=(rows, width)), random.normal(size=(rows, count, width)), shape=shape
        )
    )


@pytest.mark.parametrize(("width", "shape"), SHAPES)
@pytest.mark.parametrize("rows", [1, 40])
def test_errors_of_any_width(check, random, width, shape, rows):
    x = random.uniform(size=(rows, width))
    check(plots.errors(np.square(x).sum(1), x, 0 * x, shape=shape))


def test_errors_show_the_best_and_the_worst(random):
    x = random.uniform(size=(6, 9))
    figure = plots.errors(np.array([3.0, 0.5, 9.0, 2.0, 4.0, 5.0]), x, x / 2, shape=(3, 3), count=1)
    histogram, best, worst = figure.axes
    assert sum(patch.get_height() for patch in histogram.patches) == pytest.approx(1.0)
    np.testing.assert_allclose(images(best)[0][1:4, 1:4], x[1].reshape(3, 3))
    np.testing.assert_allclose(images(worst)[0][1:4, 1:4], x[2].reshape(3, 3))
    assert "error 9 to 9" in worst.get_title("left")


@pytest.mark.parametrize("values", [np.zeros(5), np.r_[1.0, 1.0 + 2**-52, np.ones(3)], 1e300 * np.ones(5)])
def test_equal_errors(check, values):
    check(plots.errors(values, np.zeros((5, 16)), np.zeros((5, 16)), shape=(4, 4)))


def _covered(figure, axes) -> bool:
    """True if the legend lies on a bar."""
    figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    return any(box.overlaps(bar.get_window_extent()) for bar in axes.patches if bar.get_height() > 0)


@pytest.mark.parametrize("skew", [-1.0, 0.0, 1.0])
def test_no_legend_covers_a_bar(check, random, skew):
    values = random.exponential(size=300) * skew if skew else random.uniform(size=300)
    x = np.zeros((300, 16))
    figure = check(plots.errors(values, x, x, shape=(4, 4)))
    assert not _covered(figure, figure.axes[0])
    code = 1.0 / (1.0 + np.exp(-values - skew))
    figure = check(plots.code_histogram([code[:, None]] * 3, ["sigmoid", "tanh", "linear"]))
    assert not any(_covered(figure, axes) for axes in figure.axes)


# Codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "linear", "elu", "gelu", "softsign"])
@pytest.mark.parametrize("shape", [(1, 1), (50, 8)])
def test_histogram_of_any_activation(check, activation, shape):
    torch.manual_seed(0)
    layer = nn.EncoderLayer(4, shape[1], activation)
    check(plots.code_histogram([layer(torch.randn(shape[0], 4))], [activation]))


def test_histogram_counts_every_code_once_and_saturated_ones_apart():
    code = torch.tensor([[0.0, 0.01, 0.5, 1.0, 1.0 + 1e-9]], dtype=torch.float64)
    (axes,) = plots.code_histogram([code], ["sigmoid"]).axes
    by_colour = {
        colour: sum(bar.get_height() for bar in axes.patches if same_color(bar.get_facecolor(), colour))
        for colour in COLOURS[:2]
    }
    assert list(by_colour.values()) == pytest.approx([0.2, 0.8])
    assert axes.get_legend().get_title().get_text() == "saturated: 80.0 %"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1.0 + 2**-52])
def test_histogram_of_constant_codes(check, value):
    check(plots.code_histogram([np.full((5, 3), value)] * 3, ["sigmoid", "relu", "linear"]))


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("units", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 12])
def test_map_of_any_codes(check, random, method, units, rows):
    check(plots.code_map(random.normal(size=(rows, units)), method=method))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map_of_equal_codes(check, method):
    figure = check(plots.code_map(np.ones((20, 4)), np.arange(20) % 2, method=method))
    assert "all codes are equal" in figure.axes[0].get_xlabel()


def test_map_by_label(check, random):
    codes = np.concatenate([random.normal(size=(20, 4)), 20 + random.normal(size=(10, 4))])
    figure = check(plots.code_map(codes, np.repeat([3, 7], [20, 10])))
    (axes,) = figure.axes
    sizes = {str(points.get_label()): len(points.get_offsets()) for points in axes.collections}
    assert sizes == {"3": 20, "7": 10}
    assert [text.get_text() for text in axes.texts] == ["3", "7"] and axes.get_legend() is None
    assert axes.get_xlabel().startswith("PCA 1 (9")  # nearly all of the variance lies between the groups


def test_map_of_many_classes(check, random):
    figure = check(plots.code_map(random.normal(size=(90, 4)), np.arange(90) % 30))
    (axes,) = figure.axes
    looks = {(tuple(one.get_facecolor()[0]), one.get_paths()[0].vertices.shape) for one in axes.collections}
    assert len(looks) == len(axes.collections) == 21  # no two classes look alike
    (legend,) = [axes.get_legend()]
    in_legend = {text.get_text() for text in legend.get_texts()}
    on_map = {text.get_text() for text in axes.texts}
    assert "10 others" in in_legend and len(in_legend | on_map) == 21 and not in_legend & on_map


def labelled_points(figure) -> tuple[dict[str, Bbox], dict[str, np.ndarray]]:
    """Boxes of the labels on a map, and the places of each named class's points, in pixels."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    points = {str(one.get_label()): axes.transData.transform(one.get_offsets()) for one in axes.collections}
    return boxes, points


def _maps() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    label = np.arange(2000) % 40
    separate = 8.0 * np.stack([label % 8, label // 8], 1) + random.normal(size=(2000, 2))
    mixed = random.normal(size=(40, 2))[label] * 2.0 + random.normal(size=(2000, 2))
    heaps = np.array([[0, 0], [20, 0], [10, 6], [10, -6]])[np.arange(400) % 4] + random.normal(size=(400, 2))
    return {
        "separate": (separate, label),
        "mixed": (mixed, label),
        "saturated": (1.0 / (1.0 + np.exp(-8.0 * mixed)), label % 10),
        "split": (heaps, np.array([0, 0, 1, 2])[np.arange(400) % 4]),
        "one point each": (random.normal(size=(15, 2)), np.arange(15)),
    }


@pytest.mark.parametrize("kind", _maps())
@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_labels_on_a_map_cover_nothing_and_stand_beside_what_they_name(check, kind, width):
    codes, labels = _maps()[kind]
    with figures_of(width):
        figure = check(plots.code_map(codes, labels))
    boxes, points = labelled_points(figure)
    everything = np.concatenate(list(points.values()))
    for (name, box), (_, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), name
    for name, box in boxes.items():
        assert not ((everything > box.min) & (everything < box.max)).all(1).any(), name
        close, near = (
            {
                label: np.all((places > box.min - pad) & (places < box.max + pad), axis=1).sum()
                for label, places in points.items()
            }
            for pad in (12.0, 22.0)
        )
        assert near[name] > 0 and close[name] == max(close.values()), (name, close)
    legend = figure.axes[0].get_legend()
    listed = {text.get_text() for text in legend.get_texts()} if legend else set()
    assert not listed & boxes.keys()
    coloured = min(20, len(np.unique(labels)))
    assert len({name for name in listed | boxes.keys() if "others" not in name}) == coloured
    if kind in ("separate", "split") and width == WIDTH:
        assert len(boxes) == coloured


def test_classes_are_named_by_their_names(check):
    codes = np.concatenate([np.zeros((5, 2)), np.ones((5, 2))]) + 0.01 * np.arange(10)[:, None]
    figure = check(plots.code_map(codes, np.arange(10) // 5, names=["$a$", "b_1"]))
    assert {text.get_text() for text in figure.axes[0].texts} == {r"\$a\$", "b_1"}
    with pytest.raises(ValueError, match=r"^names: expected one for each of the labels 0 to 1, got 1"):
        plots.code_map(codes, np.arange(10) // 5, names=["a"])


def test_tsne_says_so(random):
    (axes,) = plots.code_map(random.normal(size=(13, 4)), method="tsne").axes
    assert axes.get_xlabel() == "t-SNE 1"
    assert axes.get_title("left") == "t-SNE with perplexity 4; coordinates have no unit"


# Curves -----------------------------------------------------------------------------------------------------


TERMS = ("reconstruction", "contractive", "higher_order", "l1", "kl")


@pytest.mark.parametrize("stages", [("layer 1",), ("layer 1", "layer 2", "fine-tuning")])
@pytest.mark.parametrize("terms", [("reconstruction",), TERMS])
@pytest.mark.parametrize("epochs", [1, 40])
def test_learning_curves_of_any_run(check, stages, terms, epochs):
    figure = check(plots.learning_curves(history(stages, epochs, terms)))
    panels = 1 if len(terms) == 1 else 1 + len(terms)  # a total that is its only term is left out
    assert len(figure.axes) == len(stages) * panels


def test_headings_of_three_panels_fit(check):
    stages = ("layer 1", "layer 2", "fine-tuning")
    axes = check(plots.learning_curves(history(stages, 9, ("reconstruction",)))).axes
    assert axes[2].get_title(loc="left").split() == ["fine-tuning:", "reconstruction"]


def test_learning_curves_show_the_log_as_it_is_written():
    rows = [
        {
            "stage": "classifier",
            "epoch": "1",
            "train_total": "2.5",
            "train_error": "0.5",
            "validation_error": "",
        },
        {
            "stage": "classifier",
            "epoch": "2",
            "train_total": "1.5",
            "train_error": "0.25",
            "validation_error": "nan",
        },
        {"stage": "classifier", "epoch": "3", "train_total": None, "train_error": "0.1x"},
    ]
    total, error = plots.learning_curves(rows).axes
    np.testing.assert_allclose(lines(total)["training"], [2.5, 1.5])
    assert total.get_ylabel().startswith("cross-entropy")
    np.testing.assert_allclose(lines(error)["training"], [50.0, 25.0])
    assert "validation" not in lines(error)


def test_what_is_not_finite_breaks_its_curve_and_is_marked(check):
    rows = history(epochs=6, terms=("reconstruction", "kl"))
    rows[2]["train_total"], rows[4]["validation_total"] = "nan", float("inf")
    for row in rows:
        row["train_kl"] = row["validation_kl"] = "nan"
    total, reconstruction, kl = check(plots.learning_curves(rows)).axes
    for name, lost in (("training", 2), ("validation", 4)):
        assert np.flatnonzero(np.isnan(lines(total)[name])).tolist() == [lost]
    crosses = [line.get_xdata().tolist() for line in total.lines if line.get_label() == "not finite"]
    assert crosses == [[3.0], [5.0]]
    assert "not finite" not in lines(reconstruction) and set(lines(kl)) == {"not finite"}


@pytest.mark.parametrize("rows", [[{"epoch": 1}], [{"stage": "a"}], [{"stage": "a", "epoch": ""}]])
def test_a_row_of_the_history_needs_stage_and_epoch(rows):
    with pytest.raises(ValueError, match="history: row 0 needs a stage and an epoch"):
        plots.learning_curves(rows)


def test_one_epoch_is_one_tick(check):
    (axes,) = check(plots.learning_curves(history(epochs=1))).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1.0]


@pytest.mark.parametrize("rows", [[], [{"stage": "layer 1", "epoch": 1, "train_total": "nan"}]])
def test_no_learning_curves_without_values(rows):
    with pytest.raises(ValueError, match=r"^history: no finite value in \d rows"):
        plots.learning_curves(rows)


@pytest.mark.parametrize(
    "values", [[2.0], [3.0, 1.0, 0.0], [0.0, 0.0], np.geomspace(1e-9, 1, 100)[::-1], np.ones(5)]
)
def test_any_spectrum(check, values):
    check(plots.spectrum(values))
    check(plots.spectrum({"one": values, "another": values}))


def test_every_spectrum_has_a_floor_of_its_own(check):
    (axes,) = check(plots.spectrum({"a": [1.0, 0.5], "none": [0.0, 0.0], "tiny": [1e-8, 1e-9]})).axes
    np.testing.assert_allclose(lines(axes)["tiny"], [1e-8, 1e-9])
    assert "none (all are 0)" in lines(axes)


def test_what_is_counted_starts_at_1(check):
    for count in (1, 2, 9, 64, 700):
        (axes,) = check(plots.spectrum(np.geomspace(1.0, 0.1, count))).axes
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks[0] == 1 and len(ticks) <= 12 and ticks == sorted(set(ticks))


def test_the_first_epochs_do_not_set_the_scale(check):
    rows = history(epochs=40)
    rows[0]["train_reconstruction"] = 900.0
    for row in rows:
        row["validation_reconstruction"] = row["train_reconstruction"]
    (axes,) = check(plots.learning_curves(rows)).axes
    assert axes.get_ylim()[1] < 3.0
    assert [text.get_text() for text in axes.texts] == ["from 900"]
    np.testing.assert_allclose(lines(axes)["training"][0], 900.0)


@pytest.mark.parametrize("name", [r"cost $\foo$", "a $ and a $", "_hidden", "50 %", 61 * "$"])
def test_text_is_taken_as_it_is(check, name):
    figure = check(plots.spectrum({name: [1.0, 0.5], "b": [2.0, 1.0]}, title=name))
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    check(plots.learning_curves(history((name,)), title=name))
    check(plots.errors([1.0, 2.0], np.eye(2, 4), np.eye(2, 4), note=name, unit="mse"))


def test_a_spectrum_shows_its_values():
    (axes,) = plots.spectrum({"a": [3.0, 1.0, 1e-12]}).axes
    np.testing.assert_allclose(lines(axes)["a"], [3.0, 1.0, np.nan])  # rounding is not shown
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("ratios", [[0.5, 0.4], [0.0, 0.0]])
def test_any_contraction(check, ratios):
    check(plots.contraction([0.1, 10.0], ratios))
    check(plots.contraction(torch.tensor([0.1, 0.2]), {"plain": torch.tensor(ratios), "contractive": ratios}))
    check(plots.contraction([1.0], ratios[:1]))


def test_a_contraction_curve_goes_from_small_to_large():
    (axes,) = plots.contraction([3.0, 1.0, 2.0], [0.3, 0.1, 0.2]).axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.2, 0.3])


# Fields -----------------------------------------------------------------------------------------------------


def test_a_field_points_where_the_reconstruction_goes(check, random):
    data = random.normal(size=(40, 2))
    figure = check(plots.vector_field_2d(data, lambda x: -0.5 * x, grid=9))
    (quiver,) = [artist for artist in figure.axes[0].collections if isinstance(artist, Quiver)]
    places, arrows = quiver.get_offsets(), np.stack([quiver.U, quiver.V], 1)
    cosine = (places * arrows).sum(1) / np.linalg.norm(places, axis=1) / np.linalg.norm(arrows, axis=1)
    np.testing.assert_allclose(cosine, -1.0)
    np.testing.assert_allclose(quiver.get_array(), 0.5 * np.linalg.norm(places, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((1, 2)),
        np.array([[0.0, 1.0], [5.0, 1.0]]),
        3.0 * np.ones((3, 2)),
        1e9 * np.ones((3, 2)),
        np.array([[1.0, 2.0], [1.0 + 2**-52, 2.0]]),
    ],
)
def test_fields_over_points_and_lines(check, data):
    check(plots.vector_field_2d(data, lambda x: torch.zeros_like(x)))
    torch.manual_seed(0)
    check(plots.vector_field_2d(data, nn.Autoencoder(2, 3, loss="mse")))
