"""The recipes of the papers' tables: what they train on, when the test part is read, and what they report."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks.papers import __main__ as command
from benchmarks.papers import protocol, spiral
from benchmarks.papers.learning import (
    Dropout,
    FineTuning,
    fine_tune,
    learn,
    percent_wrong,
    standardize,
)
from benchmarks.papers.protocol import Figure, Problem, Recipe, Row, changed, mean_and_deviation, run
from benchmarks.papers.tables import show
from fastae.train import Stage, TrainingError, dataset_from_arrays
from fastae.train.data import Rows
from tests.train.files import MNIST, needs_mnist

WIDTH, TRAIN, TEST = 12, 90, 30


def arrays() -> dict[str, np.ndarray]:
    """Three classes about centres in [0, 1]^12, far enough apart to be learnt in a moment."""
    rng = np.random.default_rng(3)
    centres = rng.random((3, WIDTH))

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        x = np.clip(centres[labels] + 0.1 * rng.normal(size=(count, WIDTH)), 0, 1)
        return x.astype(np.float32), labels

    (x, y), (x_test, y_test) = part(TRAIN), part(TEST)
    return {"x": x, "y": y, "x_test": x_test, "y_test": y_test}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "three.npz"
    np.savez(path, **arrays())
    return str(path)


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spiral that is trained on in a moment."""
    monkeypatch.setattr(spiral, "_ROWS", 120)
    monkeypatch.setattr(spiral, "_TEST_ROWS", 30)


def arguments(name: str, data: str, out: Path, *more: str) -> list[str]:
    """A command; the spiral's epochs are set, which takes a validation."""
    if name == "spiral":
        return [name, "--out", str(out), "--validate", "--set", "training.epochs=2", *more]
    return [name, "--data", data, "--out", str(out), *more]


def results(out: Path) -> list[dict[str, Any]]:
    return json.loads(out.read_text())["results"]


class Toy:
    """A recipe whose training is a draw, and which tells what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, int]] = []
        self.recipe = Recipe(
            title="toys",
            source="a shop",
            rows=(
                Row("best", FineTuning(dropout=0.1), {"error": 1.5}),
                Row("other", FineTuning(dropout=0.2), {}),
            ),
            figures=(Figure("error", "error %"), Figure("size", "size", "{:.0f}")),
            fit=self.fit,
            shrink=lambda settings: replace(settings, input_dropout=0.7),
            differences=("Only a toy.",),
        )

    def fit(self, settings: FineTuning, data: Any, seed: int) -> protocol.Measure:
        self.asked.append((settings.dropout, seed))
        assert data.test is None
        value = 10 * settings.dropout + seed + 0.001 * torch.rand(()).item()
        return lambda rows: {"error": value, "size": float(len(rows))}


@pytest.fixture
def toy() -> Toy:
    return Toy()


# --- the recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", command.RECIPES)
def test_a_recipe_fills_its_table(name: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "deep" / "out.json"
    assert command.main(arguments(name, data, out, "--seeds", "1")) == 0
    recipe, kept = command.RECIPES[name], json.loads(out.read_text())
    assert [(r["row"], r["seed"]) for r in kept["results"]] == [(row.name, 1) for row in recipe.rows]
    for result in kept["results"]:
        assert {figure.key for figure in recipe.figures} <= set(result["figures"])
        assert np.isfinite(list(result["figures"].values())).all()
    shown = capsys.readouterr().out
    assert all(word in shown for word in (recipe.rows[-1].name.split()[0], str(out.name)))
    if name != "spiral":
        figures = [result["figures"] for result in kept["results"]]
        wrong = [one["error"] if "error" in one else 100 - one["after"] for one in figures]
        assert min(wrong) < 10 and max(wrong) < 50  # two thirds are wrong by chance
        assert "NOT the data of the published table" in shown and not kept["published_data"]


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("name", command.RECIPES)
def test_the_test_part_is_read_once_and_after_training(
    name: str, validate: bool, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every row of it once, when everything is trained; and not at all to choose settings."""
    recipe, events = command.RECIPES[name], []
    test_values = spiral.make().test if name == "spiral" else None
    expected = arrays()["x_test"] if test_values is None else np.asarray(test_values.array)
    read = Rows.read

    def watched(self: Rows, index: Any = None) -> np.ndarray:
        if self.array.shape == expected.shape and np.array_equal(np.asarray(self.array), expected):
            events.append(len(np.arange(len(self))[slice(None) if index is None else index]))
        return read(self, index)

    def fit(settings: Any, dataset: Any, seed: int) -> protocol.Measure:
        measure = recipe.fit(settings, dataset, seed)
        events.append("fitted")
        return measure

    monkeypatch.setattr(Rows, "read", watched)
    shrunk = {"training": Stage(epochs=1)} if name == "spiral" else {}
    rows = tuple(replace(row, settings=replace(row.settings, **shrunk)) for row in recipe.rows[:1])
    source = None if name == "spiral" else data
    run(replace(recipe, fit=fit, rows=rows), source, tmp_path / "o.json", seeds=[0, 1], validate=validate)
    assert events == (["fitted"] if validate else ["fitted", len(expected)]) * 2


def test_validation_rows_are_training_rows_that_are_held_out(data: str):
    problem = Problem.make(command.RECIPES["rifai2011"], data, validate=True)
    train, held_out = problem.train.train.read(), problem.held_out.read()
    together = np.concatenate([train, held_out])
    assert len(held_out) == TRAIN // 6
    assert np.array_equal(np.sort(together, axis=0), np.sort(arrays()["x"], axis=0))


def test_the_basic_table_trains_on_the_first_rows(data: str):
    recipe = replace(command.RECIPES["rifai2011-basic"], train_rows=20)
    problem = Problem.make(recipe, data, validate=False)
    assert np.array_equal(problem.train.train.read(), arrays()["x"][:20])
    assert command.RECIPES["rifai2011-basic"].train_rows == 10_000


@needs_mnist
def test_mnist_is_known_as_the_published_data():
    problem = Problem.make(command.RECIPES["rifai2011"], str(MNIST), validate=False)
    assert problem.published and not problem.small
    assert (len(problem.train.train), len(problem.held_out)) == (60_000, 10_000)
    assert Problem.make(command.RECIPES["rifai2011-basic"], str(MNIST), validate=False).published


def test_the_field_of_a_projection_points_to_the_curve(monkeypatch: pytest.MonkeyPatch):
    class Projection(nn.Linear):
        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            return spiral.nearest(x)

    class Flight(Projection):
        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x - spiral.nearest(x)

    dataset = spiral.make()
    for model, cosine in ((Projection, 1.0), (Flight, -1.0)):
        monkeypatch.setattr(spiral, "learn", lambda *args, model=model: model(1, 1))
        figures = spiral.fit(spiral.TABLE.rows[0].settings, dataset, 0)(dataset.train)
        assert list(figures.values()) == pytest.approx([cosine] * 3, abs=1e-3)


def test_the_nearest_point_of_the_spiral():
    angle = np.linspace(4.0, 14.0, 9)
    on_curve = torch.from_numpy(spiral.curve(angle))
    outward = on_curve / on_curve.norm(dim=1, keepdim=True)
    assert (spiral.nearest(on_curve) - on_curve).norm(dim=1).max() < 1e-3
    found = spiral.nearest(on_curve + 0.3 * outward)
    assert ((found - on_curve).norm(dim=1) < 0.1).all()


# --- the run --------------------------------------------------------------------------------------------


def test_a_second_run_trains_only_what_is_missing(toy: Toy, data: str, tmp_path: Path):
    out = tmp_path / "out.json"
    first = run(toy.recipe, data, out, seeds=[0])
    second = run(toy.recipe, data, out, seeds=[0, 1])
    run(toy.recipe, data, out, seeds=[0], rows=["other"])
    assert toy.asked == [(0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1)]
    assert set(json.loads(out.read_text())["summary"]) == {"best", "other"}
    assert second.results[:2] == first.results
    assert [r["figures"] for r in results(out)] == [r.figures for r in second.results]


def test_an_interrupted_run_keeps_what_was_finished(toy: Toy, data: str, tmp_path: Path):
    def interrupt(result: protocol.Result) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        run(toy.recipe, data, out, seeds=[0, 1], finished=interrupt)
    assert [result["row"] for result in results(out)] == ["best"]
    run(toy.recipe, data, out, seeds=[0, 1])
    assert len(results(out)) == 4 and toy.asked.count((0.1, 0)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_same_seed_gives_the_same_figures(data: str, tmp_path: Path):
    recipe = replace(command.RECIPES["sdae"], rows=command.RECIPES["sdae"].rows[:1])
    torch.manual_seed(1)
    first = run(recipe, data, tmp_path / "1.json", seeds=[4, 5]).results
    torch.manual_seed(2)
    second = run(recipe, data, tmp_path / "2.json", seeds=[5]).results
    assert second[0].figures == first[1].figures
    assert first[0].figures["jacobian"] != first[1].figures["jacobian"]


def test_the_budget_stops_what_has_not_begun(
    toy: Toy, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every training takes a minute of the clock: within 2.5 of them three are begun."""
    clock = [0.0]
    monkeypatch.setattr(protocol.time, "monotonic", lambda: clock[0])
    fit = toy.recipe.fit

    def slow(*args: Any) -> protocol.Measure:
        clock[0] += 60.0
        return fit(*args)

    report = run(replace(toy.recipe, fit=slow), data, tmp_path / "o.json", seeds=[0, 1, 2], budget=2.5)
    assert toy.asked == [(0.1, 0), (0.2, 0), (0.1, 1)]
    assert report.left_out == [("other", 1), ("best", 2), ("other", 2)]
    assert [result.seconds for result in report.results] == [60.0] * 3
    assert "Left out, as the time was over: other, seed 1." in text(report)


def test_settings_are_scaled_down_for_small_data_only(
    toy: Toy, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small = run(toy.recipe, data, tmp_path / "small.json", seeds=[0])
    assert small.rows[0].settings.input_dropout == 0.7 and "scaled down" in text(small)
    monkeypatch.setattr(protocol, "SMALL", TRAIN)
    large = run(toy.recipe, data, tmp_path / "large.json", seeds=[0])
    assert large.rows[0].settings.input_dropout == 0.0 and "scaled down" not in text(large)
    assert "NOT the data" in text(large)


def test_settings_are_changed_for_validation_only(toy: Toy, data: str, tmp_path: Path):
    out = tmp_path / "o.json"
    run(toy.recipe, data, out, seeds=[0], rows=["other"], validate=True, changes=["dropout=0.4"])
    assert toy.asked == [(0.4, 0)]
    assert json.loads(out.read_text())["measured_on"] == "validation rows"
    with pytest.raises(ValueError, match="set: needs validate"):
        run(toy.recipe, data, out, changes=["dropout=0.4"])


def test_changed_reaches_into_parts_and_options():
    settings = command.RECIPES["sdae"].rows[0].settings
    assert changed(settings, "layers=[5, 4]").layers == (5, 4)
    assert changed(settings, "supervised.stage.lr=0.5").supervised.stage.lr == 0.5
    assert changed(settings, "supervised.stage.optimizer=sgd").supervised.stage.optimizer == "sgd"
    deeper = changed(settings, 'autoencoder.corruption=["swap:0.1"]')
    assert deeper.autoencoder == {"corruption": ("swap:0.1",)}
    assert settings.autoencoder != deeper.autoencoder


# --- the report -----------------------------------------------------------------------------------------


def text(report: protocol.Report) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    show(console, report)
    return console.export_text()


def test_ours_stand_beside_theirs(toy: Toy, data: str, tmp_path: Path):
    report = run(toy.recipe, data, tmp_path / "o.json", seeds=[0, 1, 2], rows=["best"])
    line = next(line for line in text(report).splitlines() if line.strip().startswith("best"))
    assert line.split() == ["best", "2.00", "±", "1.00", "1.50", "30", "±", "0", "3", "0.0"]
    shown = text(report)
    assert "Only a toy." in shown and "90 rows to train on" in shown and "30 rows of the test part" in shown
    assert "other" not in shown


@pytest.mark.parametrize("width", [30, 60, 200])
def test_no_figure_is_cut_off_on_a_narrow_terminal(width: int, toy: Toy, data: str, tmp_path: Path):
    report = run(toy.recipe, data, tmp_path / "o.json", seeds=[0, 1, 2])
    console = Console(width=width, record=True, file=io.StringIO())
    show(console, report)
    shown = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert "2.00 ± 1.00" in shown and "30 ± 0" in shown


def test_means_and_deviations_stand_in_the_file(toy: Toy, data: str, tmp_path: Path):
    out = tmp_path / "o.json"
    run(toy.recipe, data, out, seeds=[0, 1], rows=["best"])
    summary = json.loads(out.read_text())["summary"]
    assert summary["best"]["error"] == pytest.approx([1.5, 0.5**0.5], abs=2e-3)
    assert mean_and_deviation([3.0]) == [3.0, None]


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rows", "CAE", "CEA"), "rows: 'CEA'"),
        (("--seeds", "1", "1"), "seeds:"),
        (("--seeds", "-1"), "seeds:"),
        (("--budget", "0"), "budget:"),
        (("--set", "layers=[3]"), "set: needs validate"),
        (("--validate", "--set", "layer=[3]"), "set: 'layer'"),
        (("--validate", "--set", "layers"), "set: expected name=value"),
        (("--validate", "--set", "layers.first=3"), "set: nothing has the name"),
        (("--data", "mnits"), "did you mean 'mnist'"),
    ],
)
def test_a_bad_argument_ends_with_code_2(
    more: tuple[str, ...], message: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "o.json"
    assert command.main(arguments("rifai2011", data, out, *more)) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_an_unknown_recipe_ends_with_code_2(capsys: pytest.CaptureFixture[str]):
    assert command.main(["rifai1911"]) == 2
    assert "rifai2011" in capsys.readouterr().err


def test_data_that_do_not_fit_are_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "no-test.npz", **{k: v for k, v in arrays().items() if k in ("x", "y")})
    np.savez(tmp_path / "no-labels.npz", **{k: v for k, v in arrays().items() if k[0] == "x"})
    for more, message in (
        (["sdae"], "a name or path is needed"),
        (["spiral", "--data", data], "made by this recipe"),
        (["sdae", "--data", "no-test.npz"], "needs a test part with labels"),
        (["sdae", "--data", "no-labels.npz"], "needs a test part with labels"),
    ):
        assert command.main(more) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda toy, kept: kept.update(recipe="dolls"), "another recipe"),
        (lambda toy, kept: kept.update(data="other"), "another data"),
        (lambda toy, kept: kept.update(measured_on="validation rows"), "another measured_on"),
        (lambda toy, kept: kept["results"][0]["settings"].update(dropout=0.3), "with other settings"),
        (lambda toy, kept: kept["results"][0].pop("seed"), "not a file of results"),
    ],
)
def test_results_of_something_else_are_not_mixed_in(
    change: Callable[[Toy, dict[str, Any]], None], message: str, toy: Toy, data: str, tmp_path: Path
):
    out = tmp_path / "o.json"
    run(toy.recipe, data, out, seeds=[0])
    kept = json.loads(out.read_text())
    change(toy, kept)
    out.write_text(json.dumps(kept))
    before = out.read_text()
    with pytest.raises(ValueError, match=f"out: .*{message}"):
        run(toy.recipe, data, out, seeds=[0, 1])
    assert out.read_text() == before


# --- learning -------------------------------------------------------------------------------------------


@pytest.fixture
def dataset():
    parts = arrays()
    return dataset_from_arrays("three", parts["x"], parts["y"], scaling="none")


def test_fine_tuning_leaves_the_stack_alone_and_classifies(dataset):
    stage = Stage(epochs=40, batch_size=15, lr=0.03)
    stack = learn(dataset, (8, 6), {"corruption": ("masking:0.1",)}, 0, Stage(epochs=2, batch_size=15))
    before = copy.deepcopy(stack.state_dict())
    classifier = fine_tune(stack.encoder(), dataset.train, FineTuning(stage, 0.1, 0.1), 0)
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
    x, labels = torch.from_numpy(dataset.train.read()), torch.from_numpy(dataset.train.labels)
    assert not classifier.training
    assert (classifier(x).argmax(1) == labels).float().mean() > 0.9
    *encoders, head = [module for module in classifier if isinstance(module, nn.Linear)]
    assert [module.out_features for module in (*encoders, head)] == [8, 6, 3]


def test_a_frozen_encoder_stays_and_only_the_last_layer_learns(dataset):
    stage = Stage(epochs=40, batch_size=15, lr=0.05)
    stack = learn(dataset, (8,), {}, 0, Stage(epochs=5, batch_size=15, lr=0.01))
    for encoders, width in ((stack.encoder(), 8), ((), WIDTH)):
        classifier = fine_tune(encoders, dataset.train, FineTuning(stage), 0, frozen=True)
        *kept, head = [module for module in classifier if isinstance(module, nn.Linear)]
        for encoder, before in zip(kept, encoders, strict=True):
            assert torch.equal(encoder.weight, before.weight)
            assert before.weight.requires_grad and not encoder.weight.requires_grad
        assert head.in_features == width
        x = torch.from_numpy(dataset.train.read())
        assert percent_wrong(classifier, x, dataset.train.labels) < 10


def test_codes_are_standardised_for_a_frozen_encoder(dataset):
    stack = learn(dataset, (8,), {}, 0, Stage(epochs=2, batch_size=15))
    encoder = nn.Sequential(*stack.encoder())
    rows = dataset.train
    codes = standardize(encoder, rows)(encoder(torch.from_numpy(rows.read()))).detach()
    assert codes.mean(0).abs().max() < 1e-4
    expected = encoder(torch.from_numpy(rows.read())).detach().std(0, correction=0)
    assert torch.allclose(codes.std(0, correction=0), expected / (expected + 0.01), atol=1e-4)


def test_features_that_never_change_are_standardised_to_zero(dataset):
    features = nn.Linear(WIDTH, 2)
    nn.init.zeros_(features.weight)
    codes = features(torch.from_numpy(dataset.train.read()))
    assert standardize(features, dataset.train)(codes).abs().max() < 1e-4


def test_learning_goes_layer_by_layer_and_then_as_a_whole(dataset):
    stage = Stage(epochs=1, batch_size=15)
    greedy = learn(dataset, (8, 6), {}, 0, stage)
    whole = learn(dataset, (8, 6), {}, 0, stage, stage)
    assert greedy.sizes == [WIDTH, 8, 6]
    assert not torch.equal(greedy.autoencoders[0].encoder.weight, whole.autoencoders[0].encoder.weight)


def test_a_loss_that_is_not_finite_is_reported(dataset):
    stack = learn(dataset, (4,), {}, 0, Stage(epochs=0))
    nn.init.constant_(stack.autoencoders[0].encoder.weight, float("nan"))
    with pytest.raises(TrainingError, match="supervised"):
        fine_tune(stack.encoder(), dataset.train, FineTuning(Stage(epochs=1)), 0)


def test_dropout_keeps_the_mean_and_only_trains():
    torch.manual_seed(0)
    x, dropout = torch.ones(500, 400), Dropout(0.3)
    y = dropout(x)
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert y.max().item() == pytest.approx(1 / 0.7)
    assert dropout.eval()(x) is x and Dropout(0.0).train()(x) is x
