"""Layers whose units are spread over processes train as whole layers do: losses and parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Emphasis, Gaussian, Masking, Swap
from fastae.activations import ACTIVATIONS
from fastae.distributed import World, full_state_dict, gather_units, make_mesh, shard_units
from fastae.distributed.mesh import PARTS
from fastae.nn import Autoencoder, StackedAutoencoder
from fastae.train import Stage, TrainingStep, load_checkpoint
from fastae.train import step as step_module
from tests.distributed.runs import STAGE, assert_same, config, of_one_process, train_until_saved
from tests.distributed.runs import WIDTH as RUN_WIDTH
from tests.distributed.runs import trained as trained_run
from tests.distributed.test_world import with_world
from tests.processes import Failed
from tests.train.recording import RecordingCapture

ROWS, WIDTH, UNITS, TOLERANCE = 9, 7, 50, 1e-10  # 50 units are 16, 32 or 2 per process

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} {loss}": {"activation": name, "loss": loss, "contractive": 0.1}
        for name, loss in zip(ACTIVATIONS, ("bce", "mse", "huber") * len(ACTIVATIONS), strict=False)
    },
    "untied": {"tied": False, "contractive": 0.1, "dropout": 0.3},
    "no biases": {"bias": False, "l1": 0.1},
    "tanh output": {"loss": "mse", "output_activation": "tanh", "tied": False},
    "masking": {"corruption": Masking(0.3), "emphasis": Emphasis(1.0, 0.5)},
    "swap": {"corruption": Swap(0.4), "l1": 0.1},
    "gaussian": {"corruption": Gaussian(0.1), "higher_order": 0.2, "higher_order_samples": 2},
    "dropout": {"dropout": 0.4, "activation": "silu", "contractive": 0.1, "l1": 0.1},
    "gaussian code": {"code_noise": "gaussian", "dropout": 0.2, "loss": "mse"},
    "bernoulli code": {"code_noise": "bernoulli"},
    "kl": {"kl": 0.5, "kl_target": 0.2, "l1": 0.1, "contractive": 0.1},
}


def layer(options: dict[str, Any]) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(WIDTH, UNITS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


def rows() -> Tensor:
    return torch.rand(3, ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


Trained = tuple[list[Tensor], dict[str, Tensor]]


def trained(module: Any, reduction: str = "mean") -> Trained:
    """Losses of three steps, gradients to rows, and the parameters in the end."""
    optimizer, seen = torch.optim.AdamW(module.parameters(), 0.05, weight_decay=0.1), []
    corruption = module.options.corruption
    entry_weight = None if reduction == "mean" else torch.linspace(0.0, 2.0, WIDTH, dtype=torch.float64)
    for step, x in enumerate(rows()):
        torch.manual_seed(step)
        x.requires_grad_(corruption is None or corruption.kind != "swap")
        optimizer.zero_grad()
        terms = module(x, entry_weight=entry_weight, reduction=reduction)
        terms.total.sum().backward()
        optimizer.step()
        seen += [term.detach() for term in (*terms, x.grad) if term is not None]
    return seen, full_state_dict(module)


def spread(options: dict[str, Any], reduction: str = "mean") -> Trained:
    module = shard_units(layer(options))
    assert len(module.encoder.weight) < UNITS and module.code_features == UNITS
    return trained(module, reduction)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_layer_of_one(two, case):
    expected = trained(layer(CASES[case]))
    for result in two.run(spread, CASES[case]):
        torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", ["untied", "gaussian", "dropout", "kl"])
def test_four_processes_train_the_layer_of_one(four, case, reduction):
    expected = trained(layer(CASES[case]), reduction)
    for result in four.run(spread, CASES[case], reduction):
        torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


def round_trip() -> bool:
    module = gather_units(shard_units(layer(CASES["untied"])))
    return module.shard is None and all(
        map(torch.equal, module.parameters(), layer(CASES["untied"]).parameters())
    )


def refused(name: str) -> None:
    module: Any = Autoencoder(WIDTH, 16 if name == "few" else UNITS)
    if name == "later hooks":
        shard_units(module).encoder.register_forward_hook(lambda *args: None)
        module(rows()[0].float())
    if name == "hooks in a stack":
        module = shard_units(StackedAutoencoder([WIDTH, 40, 30]))
        module.autoencoders[1].decoder.register_forward_hook(lambda *args: None)
        module(rows()[0].float())
    if name == "hooks":
        module.decoder.register_forward_hook(lambda *args: None)
    shard_units(
        shard_units(module) if name == "twice" else torch.nn.Linear(3, 40) if name == "bare" else module
    )


REFUSED = {
    "few": "code_features: expected at least 17 to split over 2 processes, got 16",
    "hooks": "module: expected layers without hooks",
    "later hooks": "module: expected no hooks of an encoder or a decoder whose units are spread",
    "hooks in a stack": "module: expected no hooks of an encoder or a decoder whose units are spread",
    "twice": "module: expected whole layers, got one that is sharded",
    "bare": "module: expected one with an Autoencoder, got Linear",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_spread_is_refused(two, name):
    with pytest.raises(Failed, match=REFUSED[name]):
        two.run(refused, name)


def test_layers_are_made_whole_again(two):
    assert two.run(round_trip) == [True, True]


# --- steps ----------------------------------------------------------------------------------------------


def steps(world: World | None, parts: int, capture: bool) -> tuple[dict[str, Tensor], list[float]]:
    """Parameters and sums of clipped steps, of 9 rows or 5, by a grid of copies of ``parts`` processes."""
    torch.manual_seed(0)
    stack = StackedAutoencoder(
        [WIDTH, UNITS], tied=False, dropout=0.2, kl=0.1, contractive=0.1, corruption=Swap(0.2)
    )
    stack = stack.double()
    if world is not None:
        mesh = make_mesh(world, "units", parts)
        assert mesh is not None
        world.share_rows(mesh)
        shard_units(stack, mesh.get_group(PARTS))
    with pytest.MonkeyPatch.context() as patch:
        recording = RecordingCapture()
        if capture:
            patch.setattr(step_module, "capture_on", lambda device: (recording, "a stand-in"))
        optimizer = torch.optim.AdamW(
            stack.parameters(), 2**-7, fused=True
        )  # a float32, as captured rates are
        step = TrainingStep(stack, optimizer, clip_norm=0.5, world=world)
    for number, x in enumerate(rows().repeat(3, 1, 1)[:8]):
        torch.manual_seed(number)
        x = x[: 5 if number % 2 else ROWS]
        if world is None:
            step(x)
        else:
            step(x[world.part(torch.arange(len(x)))], total=len(x))
    assert recording.replayed == (2 if capture else 0), step.reason
    return full_state_dict(stack), list(step.sums().values())


@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("parts", [2, 4])
def test_steps_of_four_processes_are_those_of_one(four, parts, capture):
    expected = steps(None, 1, False)
    for result in four.run(with_world, steps, parts, capture):
        torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


# --- runs -----------------------------------------------------------------------------------------------

DEEP: dict[str, Any] = {
    "sizes": (RUN_WIDTH, 70, 50),
    "pretrain": Stage(epochs=1, batch_size=10),
    "finetune": STAGE,
}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "a layer": (
        2,
        {
            "sizes": (RUN_WIDTH, 50),
            "dropout": (0.3,),
            "kl": (0.1,),
            "pretrain": replace(STAGE, clip_norm=0.05),
        },
    ),
    "a grid": (4, {"sizes": (RUN_WIDTH, 50), "shard_size": 2, "corruption": ("swap:0.3",), "tied": (False,)}),
    "a stack": (
        2,
        {
            **DEEP,
            "pretrain": Stage(epochs=3, batch_size=10, lr=0.2, patience=1),
            "corruption": ("masking:0.2",),
        },
    ),
    "deep penalties": (
        2,
        {**DEEP, "contractive": (0.1,), "dropout": (0.2,), "l1": (0.01,), "loss": ("mse",)},
    ),
    "a classifier": (
        2,
        {
            **DEEP,
            "classifier": True,
            "supervised": STAGE,
            "supervised_input_dropout": 0.2,
            "memory_gib": 0.0,
        },
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_are_those_of_one_process(request, tmp_path, case):
    size, options = RUNS[case]
    settings = config(tmp_path / "run", **options)
    group = request.getfixturevalue({2: "two", 4: "four"}[size])
    first, *others = group.run(trained_run, replace(settings, shard="units"))
    for other in others:
        assert_same(first, other, 0.0)
    assert_same(first, of_one_process(replace(settings, shard_size=0)), TOLERANCE)


@pytest.mark.parametrize("begun", ["units", "weights"])
def test_a_run_goes_on_with_another_number_of_processes(two, four, tmp_path, begun):
    stage = Stage(epochs=3, batch_size=10, lr=0.01, patience=2)
    settings = config(tmp_path / "run", sizes=(RUN_WIDTH, 50), dropout=(0.2,), pretrain=stage)
    four.run(train_until_saved, replace(settings, shard=begun, shard_size=2), 1)
    saved = load_checkpoint(tmp_path / "run", with_state=True).state
    assert saved.values["epoch"] == 1 and saved.tensors["optimizer.0.exp_avg"].shape == (50, RUN_WIDTH)
    expected = of_one_process(settings)
    for result in two.run(trained_run, replace(settings, resume=True, shard="units", shard_size=2)):
        assert_same(result, expected, TOLERANCE)


REFUSED_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "few units": ({"sizes": (RUN_WIDTH, 16)}, "shard: code_features: expected at least 17 to split over 2"),
    "an optimizer": (
        {"pretrain": replace(STAGE, optimizer="adafactor")},
        "pretrain.optimizer: expected one that updates each entry by itself with shard units, got adafactor",
    ),
}


@pytest.mark.parametrize("case", REFUSED_RUNS)
def test_runs_that_cannot_be_spread_are_refused(two, tmp_path, case):
    options, message = REFUSED_RUNS[case]
    settings = config(tmp_path / "run", **{"sizes": (RUN_WIDTH, 50), "shard": "units", **options})
    with pytest.raises(Failed, match=message):
        two.run(trained_run, settings)
    assert not (tmp_path / "run").exists()
