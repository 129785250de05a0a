"""The engine: what each stage trains on, learns and leaves alone."""

import copy
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train import (
    Stage,
    TrainConfig,
    TrainingError,
    dataset_from_arrays,
    engine,
    load_checkpoint,
    load_dataset,
    train,
)
from fastae.train import stage as stage_module
from fastae.train.batches import Resident, Streamed
from fastae.train.data import split
from fastae.train.reporting import COLUMNS

NONE = Stage(epochs=0)
STEPS = 32  # of the tiny run of two epochs: four stages of eight steps
STAGES = ["layer 1", "layer 2", "fine-tuning", "classifier"]


def training_rows(dataset, config) -> torch.Tensor:
    return torch.from_numpy(split(dataset.train, config.validation, config.seed)[0].read())


def validation_rows(dataset, config) -> torch.Tensor:
    return torch.from_numpy(split(dataset.train, config.validation, config.seed)[1].read())


def column(result, name: str, stage: str | None = None) -> list[float]:
    return [row[name] for row in result.history if stage in (None, row["stage"])]


def in_order(rows: torch.Tensor) -> np.ndarray:
    """Rows sorted, so that sets of rows can be compared."""
    values = rows.detach().double().numpy()
    return values[np.lexsort(values.T[::-1])]


@pytest.fixture
def seen(monkeypatch) -> dict[int, list[torch.Tensor]]:
    """Every training batch that a layer's objective is given, by the layer's input width."""
    inputs: dict[int, list[torch.Tensor]] = {}
    objective = engine.objective

    def spied(module):
        loss = objective(module)

        def watched(x, labels):
            if torch.is_grad_enabled():
                inputs.setdefault(x.shape[1], []).append(x.clone())
            return loss(x, labels)

        return watched

    monkeypatch.setattr(engine, "objective", spied)
    return inputs


@pytest.fixture
def sources(monkeypatch) -> list[type]:
    """The kinds of sources that the engine opened."""
    kinds: list[type] = []
    open_rows = engine.open_rows

    def watched(*args, **kwargs):
        source = open_rows(*args, **kwargs)
        kinds.append(type(source))
        return source

    monkeypatch.setattr(engine, "open_rows", watched)
    return kinds


# What is trained on what ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gib", [1.0, 0.0], ids=["cached", "streamed"])
def test_a_layer_is_trained_on_the_clean_codes_of_the_layers_below(tiny, make_config, seen, memory_gib):
    """Clean although the layers below were trained with corruption, code noise and dropout."""
    config = make_config(
        sizes=(6, 5, 4, 3),
        corruption=("gaussian:0.5",),
        dropout=(0.5,),
        code_noise=("gaussian",),
        finetune=NONE,
        classifier=False,
        memory_gib=memory_gib,
    )
    stack = train(config, dataset=tiny).stack
    x = training_rows(tiny, config)
    assert seen.keys() == {6, 5, 4}
    for depth, width in enumerate((6, 5, 4)):
        assert [len(batch) for batch in seen[width]] == [10, 10, 10, 6] * 2
        expected = in_order(stack.encode(x, depth))
        for epoch in (seen[width][:4], seen[width][4:]):
            np.testing.assert_allclose(in_order(torch.cat(epoch)), expected, atol=1e-6)
        assert not torch.equal(torch.cat(seen[width][:4]), torch.cat(seen[width][4:]))  # shuffled anew


def test_streamed_and_cached_runs_have_the_same_losses(tiny, make_config, sources):
    cached = train(make_config("cached", memory_gib=1.0), dataset=tiny)
    assert set(sources) == {Resident}
    sources.clear()
    streamed = train(make_config("streamed", memory_gib=0.0), dataset=tiny)
    assert set(sources) == {Streamed}
    for a, b in zip(cached.history, streamed.history, strict=True):
        assert a.keys() == b.keys() and (a["stage"], a["epoch"]) == (b["stage"], b["epoch"])
        for name in a.keys() - {"stage", "seconds", "rows_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name


def test_by_default_tiny_data_are_cached(tiny, make_config, sources):
    train(make_config(), dataset=tiny)
    assert set(sources) == {Resident}


def test_a_stage_changes_its_own_parameters_only(tiny, make_config, monkeypatch):
    """Snapshots of the stack at the start of each stage and at the end."""
    run_stage, snapshots = engine._Run._run_stage, []

    def recorded(run, number, log):
        snapshots.append(copy.deepcopy(run.stack.state_dict()))
        run_stage(run, number, log)

    monkeypatch.setattr(engine._Run, "_run_stage", recorded)
    snapshots.append(train(make_config(), dataset=tiny).stack.state_dict())

    def changed(before, after) -> set[str]:
        return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}

    assert [changed(*pair) for pair in itertools.pairwise(snapshots)] == [{"0"}, {"1"}, {"0", "1"}, set()]


def test_the_classifier_starts_from_the_stack_and_leaves_it_alone(tiny, make_config):
    without = train(make_config("without", classifier=False), dataset=tiny)
    result = train(make_config("with"), dataset=tiny)
    for a, b in zip(without.stack.parameters(), result.stack.parameters(), strict=True):
        assert torch.equal(a, b)
    assert result.classifier is not None and not result.classifier.training
    logits = result.classifier(torch.from_numpy(tiny.train.read()))
    assert logits.shape == (45, 3)
    assert not torch.equal(result.classifier.encoder1.weight, result.stack.layers[0].encoder.weight)
    frozen = train(make_config("frozen", supervised=Stage(epochs=1, lr=0.0)), dataset=tiny)
    assert torch.equal(frozen.classifier.encoder1.weight, frozen.stack.layers[0].encoder.weight)


def test_stages_without_epochs_are_left_out(tiny, make_config):
    def stages(**changes) -> list[str]:
        name = "-".join(changes) or "all"
        return list(dict.fromkeys(column(train(make_config(name, **changes), dataset=tiny), "stage")))

    assert stages() == STAGES
    assert stages(finetune=NONE) == ["layer 1", "layer 2", "classifier"]
    assert stages(pretrain=NONE) == ["fine-tuning", "classifier"]
    assert stages(supervised=NONE) == STAGES[:3]
    assert stages(classifier=False, pretrain=NONE, finetune=NONE) == []


def test_validation_rows_are_never_trained_on(tiny, make_config, seen):
    config = make_config(sizes=(6, 5), corruption=("none",), finetune=NONE, classifier=False)
    train(config, dataset=tiny)
    training, held_out = training_rows(tiny, config), validation_rows(tiny, config)
    assert (len(training), len(held_out)) == (36, 9)
    np.testing.assert_array_equal(in_order(torch.cat(seen[6][:4])), in_order(training))
    assert not {tuple(row.tolist()) for row in torch.cat(seen[6])} & {tuple(r.tolist()) for r in held_out}


def test_without_a_validation_share_all_rows_are_trained_on(tiny, one_layer, seen):
    result = train(one_layer(validation=0.0), dataset=tiny)
    assert sum(map(len, seen[6])) == 2 * 45
    assert not [name for row in result.history for name in row if name.startswith("validation")]


# Learning ---------------------------------------------------------------------------------------------------


def test_the_loss_of_every_stage_falls(tiny, make_config):
    result = train(make_config(epochs=25, corruption=("none",), supervised_dropout=0.0), dataset=tiny)
    for stage in STAGES:
        for name in ("train_total", "validation_total"):
            losses = column(result, name, stage)
            assert len(losses) == 25 and losses[-1] < losses[0] - 0.01, (stage, name)
    assert column(result, "train_error", "classifier")[-1] < 0.35  # chance is 2/3


def test_fine_tuning_improves_the_reconstruction_of_the_stack(tiny, make_config):
    x = torch.from_numpy(tiny.train.read())

    def error(**changes) -> float:
        config = make_config(f"run{len(changes)}", corruption=("none",), classifier=False, **changes)
        stack = train(config, dataset=tiny).stack
        return (stack.reconstruct(x) - x).square().mean().item()

    assert error(finetune=Stage(epochs=40, batch_size=10, lr=0.02)) < 0.9 * error(finetune=NONE, probes=1)


def test_a_linear_stack_on_digits_spans_the_principal_subspace(tmp_path):
    linalg = pytest.importorskip("scipy.linalg")
    digits = load_dataset("digits").train.read()
    x = digits - digits.mean(0)
    config = TrainConfig(
        sizes=(64, 8),
        activation=("linear",),
        loss=("mse",),
        validation=0.0,
        tensorboard=False,
        device="cpu",
        pretrain=Stage(epochs=200, batch_size=500, lr=0.01, schedule="CosineAnnealingLR"),
        out=str(tmp_path / "run"),
    )
    result = train(config, dataset=dataset_from_arrays("centred", x, scaling="none"))
    components = np.linalg.svd(x, full_matrices=False)[2][:8]
    weight = result.stack.autoencoders[0].encoder.weight.detach().numpy()
    angles = np.degrees(linalg.subspace_angles(components.T, weight.T))
    assert angles.max() < 1.0
    best = ((x - x @ components.T @ components) ** 2).sum(1).mean()
    assert result.history[-1]["train_reconstruction"] == pytest.approx(best, rel=0.01)


# Figures ----------------------------------------------------------------------------------------------------


def test_means_over_an_epoch_weigh_rows_alike(tiny, one_layer, monkeypatch):
    """With a rate of 0 the means over batches of 10, 10, 10 and 6 rows are those over all 36 at once; the 9
    validation rows come in 4, 4 and 1."""
    monkeypatch.setattr(stage_module, "_EVALUATION_ROWS", 4)
    still = Stage(epochs=2, batch_size=10, lr=0.0, optimizer="sgd")
    config = one_layer(pretrain=still, contractive=(0.3,), l1=(0.2,), higher_order=(0.0,))
    result = train(config, dataset=tiny)
    layer = result.stack.autoencoders[0]
    for part, x in (("train", training_rows(tiny, config)), ("validation", validation_rows(tiny, config))):
        terms = {name: term.item() for name, term in layer(x)._asdict().items() if term is not None}
        assert {"total", "reconstruction", "contractive", "l1"} <= terms.keys()
        for row in result.history:
            for name, value in terms.items():
                assert row[f"{part}_{name}"] == pytest.approx(value, rel=1e-5), (part, name)


def test_the_classifiers_error_is_a_share_of_rows(tiny, make_config):
    still = Stage(epochs=1, batch_size=10, lr=0.0)
    config = make_config(supervised=still)
    result = train(config, dataset=tiny)
    training, validation = split(tiny.train, config.validation, config.seed)
    row = result.history[-1]
    for name, rows in (("train", training), ("validation", validation)):  # logits of 0 vote for class 0
        assert row[f"{name}_error"] == pytest.approx(np.mean(rows.labels != 0))
        assert row[f"{name}_total"] == pytest.approx(math.log(3), rel=1e-5)


def test_the_classifier_is_validated_without_dropout(tiny, make_config):
    config = make_config(supervised_dropout=0.5, supervised_input_dropout=0.5)
    result = train(config, dataset=tiny)
    rows = split(tiny.train, config.validation, config.seed)[1]
    logits = result.classifier(torch.from_numpy(rows.read()))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels)).item()
    assert result.history[-1]["validation_total"] == pytest.approx(loss, rel=1e-6)


def test_validation_repeats_the_same_noise(tiny, one_layer):
    """Or early stopping would follow the noise: with a rate of 0 only the training loss moves."""
    still = Stage(epochs=3, batch_size=10, lr=0.0)
    result = train(one_layer(pretrain=still, corruption=("masking:0.5",), dropout=(0.3,)), dataset=tiny)
    assert len(set(column(result, "validation_total"))) == 1
    assert len(set(column(result, "train_total"))) == 3


def test_history_has_one_row_an_epoch_with_known_columns(tiny, make_config):
    result = train(
        make_config(contractive=(0.1,), l1=(0.1,), kl=(0.1,), higher_order=(0.1, 0.0)), dataset=tiny
    )
    assert [(row["stage"], row["epoch"], row["step"]) for row in result.history] == [
        (stage, epoch, 4 * epoch) for stage in STAGES for epoch in (1, 2)
    ]
    for row in result.history:
        assert row.keys() <= set(COLUMNS)
        assert row["seconds"] > 0 and row["rows_per_second"] > 0 and row["lr"] == 0.01
        assert row.keys() >= {"train_total", "validation_total"}
    assert result.history[0].keys() >= {
        f"train_{name}" for name in ("contractive", "higher_order", "l1", "kl")
    }
    assert "train_higher_order" not in result.history[2]
    assert {"train_error", "validation_error"} <= result.history[-1].keys()
    json.dumps(result.history)


def test_progress_is_told_of_every_stage_step_and_epoch(tiny, make_config, updates):
    progress = updates()
    result = train(make_config(), dataset=tiny, progress=progress)
    assert progress.stages == STAGES and progress.steps == STEPS
    assert progress.rows == result.history


# Stopping, clipping, schedules ------------------------------------------------------------------------------


def test_early_stopping_goes_back_to_the_best_parameters(tiny, make_config):
    """Labels without any meaning: the validation loss of the classifier has to rise."""
    rng = np.random.default_rng(0)
    data = dataset_from_arrays(
        "noise", rng.random((45, 6), dtype=np.float32), rng.integers(0, 3, 45), scaling="none"
    )
    stage = Stage(epochs=200, batch_size=10, lr=0.05, patience=3)
    config = make_config(pretrain=NONE, finetune=NONE, supervised=stage, supervised_dropout=0.0)
    result = train(config, dataset=data)
    losses = column(result, "validation_total")
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 200
    rows = split(data.train, config.validation, config.seed)[1]
    logits = result.classifier(torch.from_numpy(rows.read()))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels)).item()
    assert loss == pytest.approx(losses[best], rel=1e-6)
    assert loss < losses[-1] - 1e-4


def test_without_patience_the_last_parameters_are_kept(tiny, one_layer):
    config = one_layer(pretrain=Stage(epochs=4, batch_size=10, lr=1.0))
    result = train(config, dataset=tiny)
    loss = result.stack.autoencoders[0](validation_rows(tiny, config)).total.item()
    assert loss == pytest.approx(result.history[-1]["validation_total"], rel=1e-6)


def test_clipping_bounds_what_a_step_changes(tiny, one_layer):
    start = train(one_layer("start", pretrain=Stage(epochs=0)), dataset=tiny).stack

    def moved(clip_norm: float) -> float:
        stage = Stage(epochs=1, batch_size=10, optimizer="sgd", lr=1.0, clip_norm=clip_norm)
        stack = train(one_layer(f"clip{clip_norm}", pretrain=stage), dataset=tiny).stack
        pairs = zip(start.parameters(), stack.parameters(), strict=True)
        return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))

    unclipped = moved(0.0)
    assert unclipped > 0.1 and moved(1e6) == unclipped
    assert 1e-4 < moved(1e-3) <= 4 * 1e-3 * 1.001


@pytest.mark.parametrize(
    ("schedule", "options", "end"),
    [
        ("none", (), 0.25),
        ("CosineAnnealingLR", (), 0.0),
        ("CosineAnnealingLR", ("eta_min=0.125",), 0.125),
        ("PolynomialLR", (), 0.0),
        ("LinearLR", (), 0.25),
        ("LinearLR", ("end_factor=0.5",), 0.125),
        ("ConstantLR", (), 0.25),
        ("ExponentialLR", ("gamma=0.5",), 0.25 * 0.5**12),
        ("StepLR", ("step_size=5", "gamma=0.5"), 0.25 * 0.5**2),
        ("MultiStepLR", ("milestones=[2,5,11]", "gamma=0.5"), 0.25 * 0.5**3),
    ],
)
def test_a_schedule_goes_by_steps_and_reaches_its_end(tiny, one_layer, schedule, options, end):
    stage = Stage(
        epochs=3, batch_size=10, lr=0.25, optimizer="sgd", schedule=schedule, schedule_options=options
    )
    result = train(one_layer(pretrain=stage), dataset=tiny)
    assert result.history[-1]["lr"] == pytest.approx(end, abs=1e-12)


def test_the_last_step_of_one_cycle_has_its_lowest_rate(tiny, one_layer, monkeypatch):
    rates = []
    make_optimizer = Stage.make_optimizer

    def watched(self, parameters):
        optimizer = make_optimizer(self, parameters)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    stage = Stage(epochs=5, batch_size=10, lr=0.25, schedule="OneCycleLR")
    config = one_layer(pretrain=stage)
    monkeypatch.setattr(Stage, "make_optimizer", watched)
    train(config, dataset=tiny)
    rates = rates[-20:]  # those before are of the trial steps that check the options
    assert max(rates) == pytest.approx(0.25)
    assert rates[0] == pytest.approx(0.25 / 25) and rates[-1] == pytest.approx(0.25 / 25 / 1e4)


def test_the_schedule_ends_where_training_does_even_if_batches_do_not_divide_the_rows(tiny, one_layer):
    stage = Stage(epochs=3, batch_size=7, lr=0.25, schedule="CosineAnnealingLR")
    result = train(one_layer(pretrain=stage), dataset=tiny)
    assert result.history[-1]["step"] == 3 * 6
    assert result.history[-1]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert result.history[0]["lr"] > 0.1


# Precision --------------------------------------------------------------------------------------------------


def test_bfloat16_keeps_float32_parameters(tiny, make_config):
    full = train(make_config("full"), dataset=tiny)
    mixed = train(make_config("mixed", precision="bfloat16"), dataset=tiny)
    assert {p.dtype for p in (*mixed.stack.parameters(), *mixed.classifier.parameters())} == {torch.float32}
    loaded = load_checkpoint(mixed.path)
    assert {p.dtype for p in loaded.stack.parameters()} == {torch.float32}
    for a, b in zip(full.history, mixed.history, strict=True):
        assert a["train_total"] == pytest.approx(b["train_total"], rel=0.05)
    assert column(full, "train_total") != column(mixed, "train_total")


def test_float64_is_float64_all_the_way(tiny, make_config, seen):
    result = train(make_config(precision="float64"), dataset=tiny)
    assert {x.dtype for batches in seen.values() for x in batches} == {torch.float64}
    assert {p.dtype for p in (*result.stack.parameters(), *result.classifier.parameters())} == {torch.float64}
    assert next(load_checkpoint(result.path).stack.parameters()).dtype == torch.float64


# Losses that are not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "option", "message"),
    [
        ("pretrain", "pretrain.lr", r"layer 1: the loss is (nan|inf) at epoch 1, step 2;"),
        ("finetune", "finetune.lr", r"fine-tuning: the loss is (nan|inf) at epoch 1, step 2;"),
        ("supervised", "supervised.lr", r"classifier: .*(nan|inf|not finite)"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tiny, make_config, stage, option, message):
    stages = {stage: Stage(epochs=2, batch_size=10, lr=1e30, optimizer="sgd")}
    linear = {"activation": ("linear",), "loss": ("mse",), "corruption": ("none",), "supervised_dropout": 0.0}
    config = make_config(checkpoint_seconds=0.0, **linear, **stages)
    with pytest.raises(TrainingError, match=message) as error:
        train(config, dataset=tiny)
    assert option in str(error.value) and config.out in str(error.value)
    if stage == "pretrain":  # the first step was enough to destroy the parameters
        return
    checkpoint = load_checkpoint(config.out)
    for module in (checkpoint.stack, checkpoint.classifier):
        assert module is None or all(bool(p.isfinite().all()) for p in module.parameters())


def test_a_run_that_never_had_a_checkpoint_does_not_speak_of_checkpoints(tiny, one_layer):
    config = one_layer(pretrain=Stage(epochs=2, lr=1e30), loss=("mse",), activation=("linear",))
    with pytest.raises(TrainingError) as error:
        train(config, dataset=tiny)
    assert not list(Path(config.out).glob("checkpoint-*"))
    assert "checkpoints" not in str(error.value)


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "supervised"])
def test_parameters_that_the_last_step_destroyed_are_never_called_a_finished_run(tiny, make_config, stage):
    """No loss comes after the last step of a stage, only a validation."""
    only = {name: NONE for name in ("pretrain", "finetune", "supervised")}
    far = Stage(epochs=1, batch_size=100, optimizer="sgd", lr=3e38, optimizer_options=("weight_decay=1e38",))
    config = make_config(**{**only, stage: far})
    with pytest.raises(TrainingError, match=r"not finite|nan|inf"):
        train(config, dataset=tiny)


# Randomness -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_one_another(tiny, make_config, assert_same_run):
    noisy = {
        "corruption": ("swap:0.2", "gaussian:0.1"),
        "dropout": (0.2,),
        "code_noise": ("bernoulli", "gaussian"),
    }
    first = train(make_config("first", seed=3, **noisy), dataset=tiny)
    torch.manual_seed(99)
    assert_same_run(first, train(make_config("again", seed=3, **noisy), dataset=tiny))
    other = train(make_config("other", seed=4, **noisy), dataset=tiny)
    for a, b in zip(first.history, other.history, strict=True):
        assert a["train_total"] != b["train_total"]


def test_every_epoch_has_noise_of_its_own(one_layer):
    """A noise that repeats can be learned. All rows are alike, so that their order makes no difference."""
    alike = dataset_from_arrays("alike", np.full((45, 6), 0.7, np.float32), scaling="none")
    still = Stage(epochs=3, batch_size=36, lr=0.0)
    result = train(one_layer(pretrain=still, corruption=("masking:0.5",)), dataset=alike)
    assert len(set(column(result, "train_total"))) == 3


def test_every_step_has_noise_of_its_own(one_layer, updates):
    alike = dataset_from_arrays("alike", np.full((45, 6), 0.7, np.float32), scaling="none")
    still = Stage(epochs=1, batch_size=9, lr=0.0)
    means = []

    class Means(updates):
        def update(self, done, terms, rows_per_second):
            means.append(done * terms["total"])

    train(one_layer(pretrain=still, corruption=("masking:0.5",)), dataset=alike, progress=Means())
    losses = np.diff([0.0, *means])
    assert len(losses) == 4 and len(set(losses.round(4))) == 4


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_the_callers_random_state_is_untouched(tiny, make_config, fails):
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    if fails:
        broken = make_config(
            pretrain=Stage(epochs=2, batch_size=10, lr=1e30), loss=("mse",), activation=("linear",)
        )
        with pytest.raises(TrainingError):
            train(broken, dataset=tiny)
    else:
        train(make_config(), dataset=tiny)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()
