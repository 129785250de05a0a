"""Evaluation: every figure against brute force, by hand or with the true Jacobian."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastae.commands.tables import as_json
from fastae.nn import StackedAutoencoder
from fastae.train import dataset_from_arrays, evaluation, yardstick
from fastae.train.data import split
from fastae.train.evaluation import encode_rows, evaluate, evaluation_parts

ROWS = 60


def rows_of(x: Any, labels: Any = None) -> Any:
    return dataset_from_arrays("rows", np.asarray(x, np.float32), labels, scaling="none").train


def make_stack(sizes: list[int], seed: int = 0, **options: Any) -> StackedAutoencoder:
    """Float64 with weights and biases of size 1: a wrong factor shows."""
    stack = StackedAutoencoder(sizes, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in stack.parameters():
        parameter.data.normal_(generator=generator)
    return stack.eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(2).random((ROWS, 6), dtype=np.float32)


PLAIN = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "linear": lambda z: z,
}


def penalties(layers: list[Any], x: torch.Tensor) -> torch.Tensor:
    """||dcode/dx||_F^2 of each row, from the whole Jacobian of PyTorch's own operators."""

    def encode(row: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            row = PLAIN[layer.options.activation](F.linear(row, layer.encoder.weight, layer.encoder.bias))
        return row

    return torch.func.vmap(torch.func.jacrev(encode))(x).square().sum((1, 2))


# Reconstruction and penalty ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "loss", "output_activation"),
    [
        ("sigmoid", "bce", "linear"),
        ("tanh", "mse", "linear"),
        ("softplus", "mse", "sigmoid"),
        ("gelu", "bce", "linear"),
        ("linear", "mse", "tanh"),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("tied", [True, False])
def test_the_figures_of_one_layer_are_those_of_brute_force(
    x, monkeypatch, chunk, tied, activation, loss, output_activation
):
    monkeypatch.setattr(evaluation, "_CHUNK", chunk)
    stack = make_stack(
        [6, 4], activation=activation, loss=loss, output_activation=output_activation, tied=tied
    )
    result = evaluate(stack, rows_of(x))
    layer, rows = stack.autoencoders[0], torch.from_numpy(x).double()
    with torch.no_grad():
        reconstruction = layer.reconstruct(rows)
        penalty = penalties([layer], rows).mean().item()
        squares = (reconstruction - rows).square()
        cross = (
            -(rows * reconstruction.log() + (1 - rows) * (-reconstruction).log1p())
            if loss == "bce"
            else squares
        )
    assert (result["rows"], result["loss"]) == (ROWS, loss)
    assert result["reconstruction"] == pytest.approx(cross.sum(1).mean().item(), rel=1e-9)
    assert result["mse"] == pytest.approx(squares.mean().item(), rel=1e-9)
    assert result["contractive_penalty"] == pytest.approx(penalty, rel=1e-9)
    (own,) = result["layers"]
    assert (own["units"], own["loss"]) == (4, loss)
    assert own["reconstruction"] == pytest.approx(result["reconstruction"], rel=1e-9)
    assert own["contractive_penalty"] == pytest.approx(penalty, rel=1e-9)
    norms = layer.encoder.weight.square().sum(1)
    assert own["mean_squared_norm"] == pytest.approx(norms.mean().item(), rel=1e-9)
    assert own["mean_activation"] == pytest.approx(layer.encode(rows).mean().item(), rel=1e-9)


def test_each_layer_is_measured_on_its_own_input_and_the_stack_on_the_data(x):
    stack = make_stack([6, 5, 4], activation=["sigmoid", "tanh"], loss=["bce", "mse"])
    result = evaluate(stack, rows_of(x))
    rows = torch.from_numpy(x).double()
    with torch.no_grad():
        reconstruction = stack.reconstruct(rows)
        cross = F.binary_cross_entropy(reconstruction, rows, reduction="none").sum(1).mean().item()
        mse = (reconstruction - rows).square().mean().item()
        inputs = [rows, stack.encode(rows, 1)]
        second = stack.autoencoders[1]
        own = (second.reconstruct(inputs[1]) - inputs[1]).square().sum(1).mean().item()
        squares = [
            penalties([layer], given).mean().item()
            for layer, given in zip(stack.autoencoders, inputs, strict=True)
        ]
    assert result["reconstruction"] == pytest.approx(cross, rel=1e-9)
    assert result["mse"] == pytest.approx(mse, rel=1e-9)
    assert [layer["contractive_penalty"] for layer in result["layers"]] == pytest.approx(squares, rel=1e-9)
    assert result["layers"][1]["reconstruction"] == pytest.approx(own, rel=1e-9)
    assert [layer["loss"] for layer in result["layers"]] == ["bce", "mse"]


def test_the_penalty_of_a_deep_encoder_is_that_of_its_whole_jacobian():
    x = np.random.default_rng(1).random((3000, 6), dtype=np.float32)
    stack = make_stack([6, 5, 4], activation=["sigmoid", "tanh"], loss=["bce", "mse"])
    with torch.no_grad():
        exact = penalties(stack.autoencoders, torch.from_numpy(x).double()).mean().item()
    assert evaluate(stack, rows_of(x))["contractive_penalty"] == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("bias", [True, False])
def test_sigmoid_penalty_is_slopes_times_norms(x, bias):
    """The parts of the penalty that are reported, where all units are alike: their product over units."""
    stack = make_stack([6, 4], bias=bias)
    weight = stack.autoencoders[0].encoder.weight
    weight.data[:] = weight.data[:1]
    if bias:
        stack.autoencoders[0].encoder.bias.data.zero_()
    (layer,) = evaluate(stack, rows_of(x))["layers"]
    product = 4 * layer["mean_squared_slope"] * layer["mean_squared_norm"]
    assert layer["contractive_penalty"] == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_wrong_reconstructions_cost_what_they_cost(dtype):
    """Logits of -30, 30 and 60 where the data say 1, 0 and 0; a sigmoid rounded to 1 would cost 100."""
    stack = StackedAutoencoder([3, 2], tied=False, dtype=dtype)
    for parameter in stack.parameters():
        parameter.data.zero_()
    stack.autoencoders[0].decoder.bias.data = torch.tensor([-30.0, 30.0, 60.0], dtype=dtype)
    result = evaluate(stack, rows_of([[1.0, 0.0, 0.0]] * 5))
    assert result["layers"][0]["reconstruction"] == pytest.approx(120.0, rel=1e-6)
    assert result["reconstruction"] == pytest.approx(120.0, rel=1e-6)


@pytest.mark.parametrize("sizes", [[3, 2], [3, 2, 2]])
def test_rows_that_the_loss_is_not_defined_for_are_measured_by_mse(sizes):
    """A test part may go beyond what the scaling saw in the training part; its bce could be negative."""
    stack = make_stack(sizes)
    x = np.array([[0.5, 1.25, -0.25]] * 3 + [[0.1, 0.2, 0.3]], np.float32)
    result = evaluate(stack, rows_of(x))
    rows = torch.from_numpy(x).double()
    with torch.no_grad():
        for figures, model in ((result, stack), (result["layers"][0], stack.autoencoders[0])):
            expected = (model.reconstruct(rows) - rows).square().sum(1).mean().item()
            assert figures["loss"] == "mse"
            assert figures["reconstruction"] == pytest.approx(expected, rel=1e-6)
    assert [layer["loss"] for layer in result["layers"][1:]] == ["bce"] * (len(sizes) - 2)
    assert evaluate(stack, rows_of(x[3:]))["loss"] == "bce"


# Yardsticks -------------------------------------------------------------------------------------------------


def test_r2_is_the_share_of_the_variance(x):
    stack = make_stack([6, 4])
    result = evaluate(stack, rows_of(x))
    assert result["r2"] == pytest.approx(1.0 - result["mse"] / x.astype(float).var(0).mean(), rel=1e-9)
    assert math.isnan(evaluate(stack, rows_of(np.ones((5, 6))))["r2"])
    stack.autoencoders[0].decoder.bias.data += 9.0
    assert evaluate(stack, rows_of(x))["r2"] < 0.0
    without_length = evaluate(make_stack([6, 4], loss="cosine"), rows_of(x), training=rows_of(x))
    assert {"r2", "pca_mse"}.isdisjoint(without_length) and 0.0 <= without_length["reconstruction"] <= 2.0


@pytest.mark.parametrize("units", [1, 4, 6, 9])
def test_pca_of_the_same_width_is_that_of_scikit_learn(x, units):
    decomposition = pytest.importorskip("sklearn.decomposition")
    training, rows = x[:20], x[20:]
    errors = [np.square(training.astype(float).mean(0) - rows).mean()]
    for k in range(1, 7):
        pca = decomposition.PCA(k).fit(training.astype(float))
        errors.append(np.square(pca.inverse_transform(pca.transform(rows)) - rows).mean())
    stack = make_stack([6, units])
    result = evaluate(stack, rows_of(rows), training=rows_of(training))
    np.testing.assert_allclose(yardstick.pca_errors(rows_of(training), rows_of(rows)), errors, atol=1e-9)
    assert result["pca_mse"] == pytest.approx(errors[min(units, 6)], abs=1e-9)
    assert result["pca_components"] == next(k for k in range(7) if errors[k] <= result["mse"])
    assert "pca_mse" not in evaluate(stack, rows_of(rows))


def test_wide_rows_have_no_pca(x, monkeypatch):
    monkeypatch.setattr(yardstick, "_WIDEST", 5)
    assert "pca_mse" not in evaluate(make_stack([6, 4]), rows_of(x), training=rows_of(x))


def test_rows_that_were_not_trained_on_are_evaluated(tiny):
    assert evaluation_parts(tiny, 0.2, 3) == (tiny.test, "test part", tiny.train)
    single = dataset_from_arrays("single", tiny.train.read(), scaling="none")
    rows, name, training = evaluation_parts(single, 0.2, 3)
    ours, held_out = split(single.train, 0.2, 3)
    assert np.array_equal(rows.read(), held_out.read()) and "validation" in name
    assert training is not None and np.array_equal(training.read(), ours.read())
    assert evaluation_parts(single) == (single.train, "all rows, none of them held out", None)


# Units ------------------------------------------------------------------------------------------------------


def units(activation: str, z: list[list[float]]) -> dict[str, Any]:
    """The figures of a layer whose pre-activations are z [N, 3]."""
    stack = StackedAutoencoder([3, 3], activation=activation, loss="mse", dtype=torch.float64)
    stack.autoencoders[0].encoder.weight.data = torch.eye(3, dtype=torch.float64)
    return evaluate(stack, rows_of(z))["layers"][0]


@pytest.mark.parametrize(
    ("activation", "z", "share"),
    [
        # logit(.95) = 2.944; h < .05 or h > .95
        ("sigmoid", [[3.0, -3.0, 2.8], [0.0, 2.8, -2.8]], 2 / 6),
        # atanh(.9) = 1.472
        ("tanh", [[1.5, -1.5, 1.4], [-1.4, 0.0, 5.0]], 3 / 6),
        ("relu", [[-1.0, -0.1, 0.1], [2.0, -3.0, 0.5]], 3 / 6),
        ("linear", [[9.0, -9.0, 0.0], [1.0, 2.0, 3.0]], 0.0),
    ],
)
def test_saturated_codes_are_those_whose_slope_is_nearly_flat(activation, z, share):
    assert units(activation, z)["saturated_share"] == pytest.approx(share)


def test_dead_units_are_those_that_do_not_move(monkeypatch):
    """In all chunks together: unit 0 never moves, 1 by less than 0.001, 2 only between two chunks."""
    monkeypatch.setattr(evaluation, "_CHUNK", 2)
    z = [[0.5, 0.0, 1.0], [0.5, 0.0009, 1.0], [0.5, 0.0, 2.0], [0.5, 0.0005, 2.0]]
    assert units("linear", z)["dead_units"] == 2
    z[3][1] = 0.0011
    assert units("linear", z)["dead_units"] == 1
    assert units("relu", [[-1.0, -2.0, -3.0], [-2.0, 4.0, -1.0]])["dead_units"] == 2


def test_means_of_units_by_hand():
    figures = units("sigmoid", [[0.0, 0.0, 0.0], [math.log(3), math.log(3), -math.log(3)]])
    assert figures["mean_activation"] == pytest.approx((3 * 0.5 + 0.75 + 0.75 + 0.25) / 6)
    assert figures["mean_squared_slope"] == pytest.approx((3 * 0.25**2 + 3 * 0.1875**2) / 6)
    assert figures["mean_squared_norm"] == pytest.approx(1.0)


# Classification ---------------------------------------------------------------------------------------------


class Constant(torch.nn.Module):
    """Votes for the class that the first column names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.one_hot(x[:, 0].round().long(), 3).to(x)


def test_the_classifiers_error_is_the_share_of_wrong_votes(monkeypatch):
    monkeypatch.setattr(evaluation, "_CHUNK", 3)
    votes, labels = [0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 1, 1, 0, 0, 2]
    x = np.zeros((8, 6))
    x[:, 0] = votes
    stack = make_stack([6, 4], loss="mse")
    assert evaluate(stack, rows_of(x, np.array(labels)), classifier=Constant())["classifier_error"] == 3 / 8


def separable(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 2
    x = np.random.default_rng(seed).random((n, 6)) * 0.2
    x[:, 0] = labels
    return x, labels


def test_the_probe_finds_what_the_codes_separate():
    stack = make_stack([6, 4], activation="linear", loss="mse")
    train, test = rows_of(*separable(100)), rows_of(*separable(40, 1))
    assert evaluate(stack, test, probe_rows=train)["probe_error"] == 0.0
    x, labels = separable(40, 1)
    labels[:10] = 1 - labels[:10]
    assert evaluate(stack, rows_of(x, labels), probe_rows=train)["probe_error"] == pytest.approx(0.25)


def test_the_probe_is_blind_to_what_the_codes_lose():
    stack = make_stack([6, 4], activation="linear", loss="mse")
    stack.autoencoders[0].encoder.weight.data[:, 0] = 0.0  # the only column that knows the class
    train, test = rows_of(*separable(400)), rows_of(*separable(400, 1))
    assert 0.35 < evaluate(stack, test, probe_rows=train)["probe_error"] < 0.65


def test_the_probe_sees_as_many_rows_as_its_limit(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "_probe_error", lambda stack, train, test: seen.append(train) or 0.0)
    x, labels = separable(300)
    x[:, 1] = np.arange(300)
    for limit in (50, 50, 1000):
        evaluate(make_stack([6, 4]), rows_of(x, labels), probe_rows=rows_of(x, labels), probe_limit=limit)
    first, again, every = ([int(row) for row in rows.read()[:, 1]] for rows in seen)
    assert first == again == sorted(set(first)) and len(first) == 50
    assert max(first) > 250 and every == list(range(300))
    assert np.array_equal(seen[0].labels, labels[first])


def test_the_probe_sees_every_class_of_sorted_rows():
    stack = make_stack([6, 4], activation="linear", loss="mse")
    x, labels = separable(600)
    order = np.argsort(labels, kind="stable")
    train = rows_of(x[order], labels[order])
    assert evaluate(stack, rows_of(x, labels), probe_rows=train, probe_limit=100)["probe_error"] == 0.0


def test_no_rows_are_named(x):
    stack, none = make_stack([6, 4]), rows_of(x).subset(slice(0, 0))
    with pytest.raises(ValueError, match=r"^rows: needs at least one row"):
        evaluate(stack, none)
    with pytest.raises(ValueError, match=r"^probe_rows: needs at least one row"):
        evaluate(stack, rows_of(x), probe_rows=none)
    assert encode_rows(stack, none).shape == (0, 4)


@pytest.mark.parametrize("labelled", ["neither", "train", "test", "both"])
def test_error_rates_are_given_where_there_are_labels(x, labelled):
    labels = np.arange(ROWS) % 3
    train = rows_of(x, labels if labelled in ("train", "both") else None)
    test = rows_of(x, labels if labelled in ("test", "both") else None)
    result = evaluate(make_stack([6, 4]), test, classifier=Constant(), probe_rows=train)
    assert ("classifier_error" in result) == (labelled in ("test", "both"))
    assert ("probe_error" in result) == (labelled == "both")
    assert "probe_error" not in evaluate(make_stack([6, 4]), test)


# What it leaves alone ---------------------------------------------------------------------------------------


def test_noise_is_off_and_nothing_random_is_drawn_or_changed(x):
    options = {"corruption": "masking:0.5", "dropout": 0.5, "code_noise": "gaussian"}
    stack, clean = make_stack([6, 5, 4], **options), make_stack([6, 5, 4])
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    state = torch.get_rng_state()
    result = evaluate(stack.train(), rows_of(x))
    assert torch.equal(state, torch.get_rng_state())
    assert result == evaluate(stack, rows_of(x)) == evaluate(clean, rows_of(x))
    assert all(torch.equal(before[name], value) for name, value in stack.state_dict().items())
    assert all(parameter.grad is None for parameter in stack.parameters())
    assert all(module.training for module in stack.modules())


def test_the_classifiers_dropout_is_off_and_its_mode_stays(x):
    stack, labels = make_stack([6, 4]), np.arange(ROWS) % 3
    classifier = nn.Sequential(nn.Dropout(0.9), nn.Linear(6, 3), nn.Dropout(0.9)).double()
    expected = evaluate(stack, rows_of(x, labels), classifier=classifier.eval())
    classifier.train()[2].eval()
    modes = [module.training for module in classifier.modules()]
    assert evaluate(stack, rows_of(x, labels), classifier=classifier) == expected
    assert [module.training for module in classifier.modules()] == modes

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        evaluate(stack.train(), rows_of(x, labels), classifier=Broken())
    assert stack.training


def test_figures_that_are_no_numbers_are_null_in_json(x):
    stack = make_stack([6, 4])
    stack.autoencoders[0].encoder.weight.data.fill_(np.nan)
    figures = evaluate(stack, rows_of(x))
    assert math.isnan(figures["layers"][0]["saturated_share"])
    assert math.isnan(figures["layers"][0]["mean_sparsity"])
    read = json.loads(as_json(figures), parse_constant=lambda name: pytest.fail(name))
    assert read["reconstruction"] is None and read["layers"][0]["units"] == 4


def test_the_figures_are_plain_json(x):
    result = evaluate(
        make_stack([6, 4]),
        rows_of(x, np.arange(ROWS) % 3),
        classifier=Constant(),
        probe_rows=rows_of(x, np.arange(ROWS) % 3),
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# Codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(None, 3), (1, 5), (2, 4), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_of_every_depth_in_order(x, monkeypatch, depth, width, dtype):
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    stack = make_stack([6, 5, 4, 3], dropout=0.5).to(dtype)
    codes = encode_rows(stack.train(), rows_of(x), depth)
    assert codes.dtype == np.float32 and codes.shape == (ROWS, width)
    expected = stack.encode(torch.from_numpy(x).to(dtype), depth).detach().float().numpy()
    np.testing.assert_allclose(codes, expected, atol=1e-6)


def test_codes_of_sparse_rows_are_those_of_dense_ones(x):
    sparse = pytest.importorskip("scipy.sparse")
    x = np.where(x > 0.6, x, 0).astype(np.float32)
    stack = make_stack([6, 5])
    rows = dataset_from_arrays("sparse", sparse.csr_array(x), scaling="none").train
    np.testing.assert_array_equal(encode_rows(stack, rows), encode_rows(stack, rows_of(x)))
