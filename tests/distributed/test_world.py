"""What processes agree on: errors, values, signals, and sums of gradients."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastae.distributed import Sums, World, joined
from fastae.errors import DataError
from fastae.train import TrainingStep
from fastae.train import step as step_module
from tests.distributed.runs import config, trained
from tests.processes import Failed
from tests.train.recording import RecordingCapture

WIDTH, STEPS = 5, 8


def with_world(function: Any, *args: Any) -> Any:
    with joined("cpu", 60.0) as world:
        return function(world, *args)


# --- agreement ------------------------------------------------------------------------------------------


def fail(world: World, ranks: tuple[int, ...]) -> str:
    with world.agreed():
        if world.rank in ranks:
            raise DataError(f"rows: cannot be read by {world.rank}")
    return "fine"


@pytest.mark.parametrize("ranks", [(), (0,), (1,), (0, 1)])
def test_an_error_of_one_process_is_raised_by_all_and_told_by_one(two, ranks):
    if not ranks:
        assert two.run(with_world, fail, ranks) == ["fine", "fine"]
        return
    with pytest.raises(Failed) as failed:
        two.run(with_world, fail, ranks)
    kinds, messages, elsewhere, _ = zip(*failed.value.args[0], strict=True)
    assert kinds == ("DataError", "DataError") and messages[0] == messages[1]
    assert f"cannot be read by {ranks[0]}" in messages[0]
    assert ("process 1 on " in messages[0]) == (ranks == (1,))
    assert elsewhere == tuple(rank != ranks[0] for rank in (0, 1))


def differ(world: World) -> None:
    world.check_same(data="same", options=min(world.rank, 1))


def test_values_that_differ_are_refused(two):
    with pytest.raises(Failed) as failed:
        two.run(with_world, differ)
    assert {error[:2] for error in failed.value.args[0]} == {
        ("ValueError", "options: expected the same on all processes, got another on process 1")
    }


def signal(world: World) -> list[int]:
    """The calls at which a signal of the second process is seen."""
    seen = []
    for call in range(50):
        (value,) = world.poll(15 * (world.rank == 1 and call >= 3))
        if value:
            seen.append(call)
    return seen


def test_processes_see_a_signal_at_the_same_call(two):
    first, second = two.run(with_world, signal)
    assert first == second


@pytest.mark.parametrize("device", ["cpu:0", "cuda:0", "meta"])
def test_several_processes_choose_their_devices(two, tmp_path, device):
    with pytest.raises(Failed) as failed:
        two.run(trained, config(tmp_path / "run", device=device))
    assert all("device: expected auto, cuda or cpu" in error[1] for error in failed.value.args[0])


def test_a_compiled_step_is_of_one_process(two, tmp_path):
    with pytest.raises(Failed, match="compile: expected one process, got 2"):
        two.run(trained, config(tmp_path / "run", compile=True))


# --- sums -----------------------------------------------------------------------------------------------


def steps(
    world: World | None, bucket_bytes: int | None, capture: bool
) -> tuple[dict[str, Tensor], list[float]]:
    """Parameters and sums after steps of a batch of 7 rows and one of 4, in turn."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = torch.rand(11, WIDTH, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return net(x).square().sum(1).mean()

    with pytest.MonkeyPatch.context() as patch:
        recording = RecordingCapture()
        if bucket_bytes is not None:
            patch.setattr(step_module, "Sums", partial(Sums, bucket_bytes=bucket_bytes))
        if capture:
            patch.setattr(step_module, "capture_on", lambda device: (recording, "a stand-in"))
        step = TrainingStep(loss, torch.optim.SGD(net.parameters(), lr=0.125, fused=True), world=world)
    for k in range(STEPS):
        index = torch.arange(7) if k % 2 else torch.arange(7, 11)
        if world is None:
            step(data[index])
        else:
            step(data[world.part(index)], total=len(index))
    if capture:
        assert step.captured == (bucket_bytes is None), step.reason
        assert recording.replayed == (2 if bucket_bytes is None else 0)
    return copy.deepcopy(net.state_dict()), list(step.sums().values())


@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("bucket_bytes", [None, 100], ids=["at once", "in buckets"])
def test_steps_of_two_processes_are_those_of_one(two, bucket_bytes, capture):
    expected, sums = steps(None, None, False)
    for parameters, ours in two.run(with_world, steps, bucket_bytes, capture):
        assert ours == pytest.approx(sums, rel=1e-12)
        for name, value in parameters.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("version", "handling", "problem"),
    [
        ((2, 9, 5), "0", "NCCL before 2.9.6 cannot be captured"),
        ((2, 27, 3), None, "a graph of collectives needs TORCH_NCCL_ASYNC_ERROR_HANDLING=0"),
        ((2, 27, 3), "0", None),
    ],
)
def test_a_step_is_captured_where_nccl_can_be(monkeypatch, version, handling, problem):
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: version)
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    if handling is not None:
        monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", handling)
    parameter: Any = SimpleNamespace(numel=lambda: 1, element_size=lambda: 4, device=torch.device("cuda"))
    assert Sums(World(0, 2), torch.sum, [parameter]).capture_problem() == problem


def with_no_total(world: World) -> None:
    net = nn.Linear(WIDTH, 2)
    step = TrainingStep(lambda x: net(x).square().mean(), torch.optim.SGD(net.parameters()), world=world)
    step(torch.rand(3, WIDTH))


def test_a_step_needs_the_rows_of_the_whole_batch(two):
    with pytest.raises(Failed, match="total: expected with several processes, and only then"):
        two.run(with_world, with_no_total)
