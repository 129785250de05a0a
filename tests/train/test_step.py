"""A captured training step does what the plain one does, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

import fastae
from fastae.train import Stage, TrainConfig, TrainingStep, train
from fastae.train import step as step_module
from fastae.train.rates import Rates
from fastae.train.step import steps_per_call
from tests.train.recording import RecordingCapture

OPTIMIZERS = {
    "Adam": {"fused": True},
    "AdamW": {"fused": True, "weight_decay": 0.1},
    "SGD": {"fused": True, "momentum": 0.9},
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch) -> torch.device:
    """With the stand-in for graphs on a CPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu":
        stand_in(monkeypatch)
    return torch.device(request.param)


def stand_in(monkeypatch) -> list[RecordingCapture]:
    captures: list[RecordingCapture] = []

    def capture_on(device):
        captures.append(RecordingCapture())
        return captures[-1], "recorded"

    monkeypatch.setattr(step_module, "capture_on", capture_on)
    return captures


def model_on(device: torch.device, **options) -> fastae.nn.Autoencoder:
    torch.manual_seed(0)
    options = {"corruption": fastae.Masking(0.25), "contractive": 0.1, **options}
    return fastae.nn.Autoencoder(7, 5, **options).to(device)


def batches(device: torch.device, number: int = 9, rows: int = 6) -> list[torch.Tensor]:
    return list(torch.rand(number, rows, 7, generator=torch.Generator().manual_seed(1)).to(device))


def both(module: nn.Module, **options) -> list[tuple[nn.Module, TrainingStep]]:
    """The plain step and the captured one, each on a copy; their rate is the same in float32."""
    pairs = []
    for graph in (False, True):
        own = copy.deepcopy(module)
        name = options.get("optimizer", "Adam")
        optimizer = getattr(torch.optim, name)(own.parameters(), lr=0.0625, **OPTIMIZERS[name])
        settings = {key: value for key, value in options.items() if key != "optimizer"}
        pairs.append((own, TrainingStep(own, optimizer, graph=graph, **settings)))
    assert not pairs[0][1].captured and pairs[1][1].captured
    return pairs


def assert_equal(plain: nn.Module, captured: nn.Module) -> None:
    for (name, a), (_, b) in zip(plain.named_parameters(), captured.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("changes", [{}, {"clip_norm": 0.1}, {"autocast": torch.bfloat16}], ids=str)
def test_a_captured_step_equals_the_plain_one(device, optimizer, changes):
    (plain, step), (captured, graphed) = both(model_on(device), optimizer=optimizer, **changes)
    for number, x in enumerate(batches(device)):
        losses = []
        for call in (step, graphed):
            torch.manual_seed(number)
            losses.append(call(x))
        assert torch.equal(losses[0].total, losses[1].total), number
        assert torch.equal(losses[0].contractive, losses[1].contractive)
        assert losses[1].l1 is None and not losses[1].total.requires_grad
        assert_equal(plain, captured)
    assert graphed.captured and step.sums() == graphed.sums()
    assert set(step.sums()) == {"total", "reconstruction", "contractive"}


def test_the_learning_rate_may_change_at_any_time(device):
    (plain, step), (captured, graphed) = both(model_on(device))
    schedules = [torch.optim.lr_scheduler.StepLR(s.optimizer, 2, 0.5) for s in (step, graphed)]
    for number, x in enumerate(batches(device)):
        for call, schedule in zip((step, graphed), schedules, strict=True):
            torch.manual_seed(number)
            call(x)
            schedule.step()
    for (name, a), (_, b) in zip(plain.named_parameters(), captured.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert float(graphed.optimizer.param_groups[0]["lr"]) == pytest.approx(0.0625 * 0.5**4)


@pytest.mark.parametrize("bytes_at_once", [1, 2**24])
def test_rates_of_several_steps_in_one_call(device, bytes_at_once, monkeypatch):
    monkeypatch.setattr(step_module, "_GATHERED_BYTES", bytes_at_once)
    data = torch.rand(40, 7, generator=torch.Generator().manual_seed(2)).to(device)
    (plain, step), (captured, graphed) = both(model_on(device), data=[data], optimizer="SGD")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).to(device)
    for number in range(7):
        rates = [2.0**-number, 2.0 ** -(number + 1)]
        for call in (step, graphed):
            torch.manual_seed(number)
            call(order.view(4, 10)[number % 3 : number % 3 + 2], rates=rates)
        assert_equal(plain, captured)
    again = model_on(device)
    by_hand = torch.optim.SGD(again.parameters(), lr=1.0, momentum=0.9)
    for number in range(7):
        torch.manual_seed(number)
        for k in range(2):
            by_hand.param_groups[0]["lr"] = 2.0 ** -(number + k)
            by_hand.zero_grad()
            again(data[order.view(4, 10)[number % 3 + k]]).total.backward()
            by_hand.step()
    for a, b in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_single_rows_of_indices_and_ragged_batches(device):
    data, labels = torch.rand(10, 7).to(device), torch.arange(10).to(device) % 3
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 8), nn.Dropout(0.5), nn.Linear(8, 3)).to(device)
    modules, steps = [copy.deepcopy(net) for _ in range(2)], []
    for module, graph in zip(modules, (False, True), strict=True):

        def loss(x, y, module=module):
            return nn.functional.cross_entropy(module(x), y)

        optimizer = torch.optim.Adam(module.parameters(), fused=True)
        steps.append(TrainingStep(loss, optimizer, data=[data, labels], graph=graph))
    for epoch in range(5):
        for part in torch.randperm(10).to(device).split(4):
            values = []
            for call in steps:
                torch.manual_seed(epoch)
                values.append(float(call(part)))
            assert values[0] == pytest.approx(values[1], rel=1e-6)
    for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        # where in memory a row begins may change how the library rounds
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert steps[1].sums() == pytest.approx(steps[0].sums(), rel=1e-6) and list(steps[1].sums()) == ["total"]


def test_sums_weigh_rows_and_begin_where_told(device):
    (_, step), (_, graphed) = both(model_on(device, corruption=None))
    for call in (step, graphed):
        totals = [6.0 * float(call(x).total) for x in batches(device)]
        assert call.sums()["total"] == pytest.approx(sum(totals), rel=1e-6)
        call.reset()
        assert call.sums()["total"] == 0.0
        call.reset({"total": 5.0, "reconstruction": 1.0, "contractive": 0.5})
        last = float(call(batches(device, 1, 2)[0]).total)
        assert call.sums()["total"] == pytest.approx(5.0 + 2.0 * last, rel=1e-6)


def test_what_cannot_be_captured_runs_on_and_says_why(device):
    module = model_on(device)
    seen = []

    def looks(x):
        terms = module(x)
        seen.append(terms.total.item())
        return terms

    step = TrainingStep(looks, torch.optim.Adam(module.parameters(), lr=0.01, fused=True))
    with pytest.warns(UserWarning, match=r"cannot be captured \(.*captur.*it runs as it is") as caught:
        for x in batches(device):
            step(x)
    ours = [warning for warning in caught if "captured" in str(warning.message)]
    assert len(ours) == 1 and not step.captured and "cannot be captured" in step.reason
    assert len([value for value in seen if value == value]) >= 9
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.01) and isinstance(
        step.optimizer.param_groups[0]["lr"], float
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(batches(device)[0], rates=[0.5])
    assert step.optimizer.param_groups[0]["lr"] == 0.5


def test_optimizers_that_read_their_rate_back_are_not_captured(monkeypatch):
    stand_in(monkeypatch)
    module = model_on(torch.device("cpu"))
    step = TrainingStep(module, torch.optim.SGD(module.parameters(), lr=0.1))  # not fused
    with pytest.warns(UserWarning, match="cannot be captured"):
        for x in batches(torch.device("cpu")):
            step(x)
    assert not step.captured


def test_an_optimizer_with_state_can_be_captured(device):
    (plain, step), (captured, graphed) = both(model_on(device))
    more = []
    for module, call in ((plain, step), (captured, graphed)):
        for x in batches(device, 2):
            torch.manual_seed(0)
            call(x)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.0625, fused=True)
        optimizer.load_state_dict(call.optimizer.state_dict())
        more.append(TrainingStep(module, optimizer, graph=call.captured))
    for x in batches(device):
        for call in more:
            torch.manual_seed(0)
            call(x)
    assert_equal(plain, captured)


def test_on_a_cpu_the_step_is_plain_and_a_loss_that_is_not_finite_changes_nothing():
    module = model_on(torch.device("cpu"), corruption=None)
    step = TrainingStep(module, torch.optim.Adam(module.parameters()))
    assert not step.captured and "cpu has no graphs" in step.reason
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        step(torch.full((3, 7), torch.nan))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert step.sums() == {}


@pytest.mark.parametrize("clip", [-1.0, float("nan"), float("inf")])
def test_a_bad_norm_is_named(clip):
    module = model_on(torch.device("cpu"))
    with pytest.raises(ValueError, match="clip_norm: must be a finite number >= 0"):
        TrainingStep(module, torch.optim.Adam(module.parameters()), clip_norm=clip)


def test_bad_calls_are_named():
    module = model_on(torch.device("cpu"))
    step = TrainingStep(module, torch.optim.Adam(module.parameters()), data=[torch.rand(9, 7)])
    index = torch.arange(6)
    for batch in ((index, index), (None,), (torch.rand(3),), (index.view(1, 2, 3),), ()):
        with pytest.raises(ValueError, match="batch: with data, expected the indices of its rows alone"):
            step(*batch)
    with pytest.raises(ValueError, match="rates: expected one for each of 2 steps, got 3"):
        step(index.view(2, 3), rates=[0.1, 0.1, 0.1])
    for rows in (index[:0], index.view(2, 3)[:, :0]):
        with pytest.raises(ValueError, match="batch: needs at least one row"):
            step(rows)
    without = TrainingStep(module, torch.optim.Adam(module.parameters()))
    for batch in ((torch.rand(0, 7),), (None,), ()):
        with pytest.raises(ValueError, match="batch: needs at least one row"):
            without(*batch)
    with pytest.raises(ValueError, match="data: expected a sequence of tensors, got a tensor"):
        TrainingStep(module, torch.optim.Adam(module.parameters()), data=torch.rand(9, 7))
    with pytest.raises(ValueError, match="optimizer: LBFGS runs the forward pass several times per step"):
        TrainingStep(module, torch.optim.LBFGS(module.parameters()))
    for loss in (lambda x: {"loss": x.sum()}, lambda x: [x.sum()], lambda x: None):
        with pytest.raises(ValueError, match="loss: expected a scalar tensor, or a NamedTuple or dict"):
            TrainingStep(loss, torch.optim.Adam(module.parameters()))(torch.rand(3, 7))


BAD_TERMS = {
    "codes": (lambda total, x: {"total": total, "codes": x}, r"float32 of shape \[3, 7\] as 'codes'"),
    "one element": (lambda total, x: {"total": total, "one": x[0, :1]}, r"shape \[1\] as 'one'"),
    "a number": (lambda total, x: {"total": total, "rows": 3.0}, "got float as 'rows'"),
    "a total per row": (lambda total, x: total + x.sum(1), r"shape \[3\] as 'total'"),
    "complex": (lambda total, x: {"total": total, "c": total * 1j}, "complex64 .* as 'c'"),
    "a constant": (lambda total, x: {"total": total.detach()}, "does not depend on any parameter"),
    "a term less": (lambda total, x: {"total": total}, r"the calls before \(total, part\), got total"),
    "a term more": (lambda total, x: {"total": total, "part": total, "new": total}, "got total, part, new"),
    "a term that is None": (lambda total, x: {"total": total, "part": None}, "got total$"),
}


@pytest.mark.parametrize("case", BAD_TERMS)
def test_terms_that_do_not_fit_are_refused_before_anything_changes(device, case):
    terms, message = BAD_TERMS[case]
    module, bad = model_on(device, corruption=None), []

    def loss(x):
        total = module(x).total
        return terms(total, x) if bad else {"total": total, "part": total}

    step = TrainingStep(loss, torch.optim.SGD(module.parameters(), lr=0.1, fused=True))
    x = batches(device, 1, 3)[0]
    step(x)
    before, sums = copy.deepcopy(module), step.sums()
    bad.append(True)
    with pytest.raises(ValueError, match=f"^loss: .*{message}"):
        step(x)
    assert_equal(before, module)
    assert step.sums() == sums


def test_losses_may_be_mappings_with_the_total_anywhere():
    weight = torch.ones(3, requires_grad=True)

    def loss(x):
        return {"part": (x @ weight).mean(), "none": None, "total": (x @ weight).square().mean()}

    step = TrainingStep(loss, torch.optim.SGD([weight], lr=0.1), graph=False)
    terms = step(torch.eye(3))
    assert list(step.sums()) == ["total", "part"] and terms["none"] is None
    assert torch.allclose(weight.detach(), torch.full((3,), 1.0 - 0.1 * 2.0 / 3.0))


@pytest.mark.parametrize("inner", [None, torch.bfloat16])
def test_an_autocast_around_the_calls_sees_every_update(device, inner):
    torch.manual_seed(0)
    net = nn.Linear(7, 7).to(device)
    losses = []
    for graph, outer in ((False, False), (False, True), (True, True)):
        own = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.5, fused=True)
        step = TrainingStep(
            lambda x, own=own: nn.functional.mse_loss(own(x).float(), x),
            optimizer,
            graph=graph,
            autocast=inner if outer else torch.bfloat16,
        )
        with torch.autocast(device.type, torch.bfloat16) if outer else contextlib.nullcontext():
            losses.append([float(step(x)) for x in batches(device)])
    assert losses[0] == losses[1] == losses[2] and losses[0][-1] < losses[0][0]


def test_sums_go_on_by_name():
    module = model_on(torch.device("cpu"), corruption=None)
    x = batches(torch.device("cpu"), 1)[0]
    step = TrainingStep(module, torch.optim.SGD(module.parameters(), lr=0.0))
    step(x)
    once = step.sums()
    step.reset(dict(reversed(once.items())))
    step(x)
    assert step.sums() == {name: 2.0 * value for name, value in once.items()}


def test_small_steps_go_together():
    assert steps_per_call(784_000, 256) == 32
    assert steps_per_call(4_000_000, 512) == 16
    assert steps_per_call(784_000, 8192) == 5
    assert steps_per_call(67_000_000, 8192) == 4
    assert steps_per_call(0, 0) == 32


# The engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_engine_on_a_captured_step_equals_the_plain_one(
    monkeypatch, tiny, make_config, assert_same_run, together, streamed
):
    """Steps in one replay share a seed; the plain run then does the same."""
    stage = Stage(epochs=5, batch_size=8, lr=0.05, schedule="CosineAnnealingLR", clip_norm=1.0)
    stages = {"pretrain": stage, "finetune": stage, "supervised": stage}
    if streamed:
        stages["memory_gib"] = 0.0
    captures = stand_in(monkeypatch)
    monkeypatch.setattr(step_module, "_MOST_STEPS", together)
    captured = train(make_config("captured", **stages), dataset=tiny)
    assert len(captures) == 4 and all(c.recorded and c.replayed for c in captures)

    class Plain(RecordingCapture):
        def record(self, run):
            return run, None  # a replay runs everything again

    monkeypatch.setattr(step_module, "capture_on", lambda device: (Plain(), "run"))
    plain = train(make_config("plain", **stages), dataset=tiny)
    assert_same_run(captured, plain)
    if together == 1:
        off = train(make_config("off", graph=False, **stages), dataset=tiny)
        for a, b in zip(captured.stack.parameters(), off.stack.parameters(), strict=True):
            # the rate is a float32 on the device and a Python float on the host
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", [2, 7, 15, 21])
def test_a_captured_run_resumes_exactly(
    monkeypatch, tiny, make_config, interrupt, resume, assert_same_run, after
):
    stand_in(monkeypatch)
    monkeypatch.setattr(step_module, "_MOST_STEPS", 4)
    stage = Stage(
        epochs=5,
        batch_size=4,
        lr=0.3,
        patience=2,
        schedule="OneCycleLR",
        schedule_options=("cycle_momentum=false",),
    )
    stages = {"pretrain": stage, "finetune": stage, "supervised": stage}
    whole = train(make_config("whole", **stages), dataset=tiny)
    config = make_config(**stages)
    interrupt(config, after)
    assert_same_run(whole, resume(config))


def test_a_captured_run_can_go_on_without_graphs(monkeypatch, tiny, make_config, interrupt, resume):
    stand_in(monkeypatch)
    config = make_config(epochs=5)
    interrupt(config, 4)
    monkeypatch.undo()
    result = resume(config)
    assert result.history[-1]["stage"] == "classifier"


def test_a_schedule_of_momenta_runs_as_it_is(monkeypatch, tiny, one_layer):
    captures = stand_in(monkeypatch)
    stage = Stage(epochs=3, batch_size=8, lr=0.1, schedule="OneCycleLR")
    train(one_layer(pretrain=stage), dataset=tiny)
    assert not captures


def test_a_loss_that_is_not_finite_is_found_at_the_next_report(monkeypatch, tiny, one_layer):
    stand_in(monkeypatch)
    stage = Stage(epochs=20, batch_size=8, lr=1e30)
    with pytest.raises(fastae.train.TrainingError, match=r"the loss is (nan|inf) at epoch"):
        train(one_layer(pretrain=stage, loss=("mse",), activation=("linear",)), dataset=tiny)


@pytest.mark.parametrize("schedule", ["none", "CosineAnnealingLR", "ExponentialLR", "OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_rates_are_those_of_a_schedule_on_the_optimizer_itself(schedule, optimizer):
    options = {"ExponentialLR": ("gamma=0.9",), "CyclicLR": ("base_lr=0.01", "step_size_up=3")}.get(
        schedule, ()
    )
    momentum = ("momentum=0.8",) if optimizer == "sgd" else ()
    stage = Stage(
        lr=0.1, optimizer=optimizer, schedule=schedule, schedule_options=options, optimizer_options=momentum
    )
    rates = Rates(stage, 20)
    real = stage.make_optimizer([torch.zeros(2, requires_grad=True)])
    attached = stage.make_schedule(real, 20)
    follower = stage.make_optimizer([torch.zeros(2, requires_grad=True)])
    momenta = [name for name in ("betas", "momentum") if name in real.param_groups[0]]
    assert rates.cycles == (schedule in ("OneCycleLR", "CyclicLR"))
    for _ in range(18):
        group = real.param_groups[0]
        assert rates.current == group["lr"]
        rates.set_momenta(follower)
        assert all(group[name] == follower.param_groups[0].get(name) for name in momenta)
        taken = rates.take(1)
        assert (taken is None) == (attached is None)
        assert taken is None or taken == [group["lr"]]
        real.step()
        if attached is not None:
            attached.step()


def test_config_says_whether_to_capture():
    assert TrainConfig().graph
