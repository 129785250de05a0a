"""Functions that are run, then recorded, then replayed: on a stand-in, and on CUDA where there is one."""

from __future__ import annotations

import pytest
import torch

from fastae.train.graph import CudaCapture, Graphed, capture_on
from tests.train.recording import RecordingCapture


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def capture(device):
    return RecordingCapture() if device.type == "cpu" else CudaCapture(device)


def test_a_function_with_state_goes_on_across_capture(device, capture):
    total = torch.zeros((), device=device)

    def add(x):
        total.add_(x.sum())
        return x * total

    run = Graphed(add, capture, warm_up=2)
    expected = 0.0
    for number in range(1, 8):
        x = torch.full((3,), float(number), device=device)
        expected += 3.0 * number
        assert run(x).tolist() == [number * expected] * 3
        assert float(total) == expected
    assert run.problem is None


def test_warm_up_calls_count_and_recording_computes_nothing():
    capture = RecordingCapture()
    calls = []
    run = Graphed(lambda x: calls.append(1) or x + 1, capture, warm_up=3)
    for number in range(6):
        assert float(run(torch.tensor(float(number)))) == number + 1
    # three for real, one while recording, and the host has no part in the replays
    assert (len(calls), capture.warmed_up, capture.recorded, capture.replayed) == (4, 3, 1, 3)


def test_every_signature_is_captured_apart(device, capture):
    run = Graphed(lambda x, y: (x * 2, None if y is None else y + 1), capture, warm_up=1)
    for number in range(4):
        for size in (3, 5):
            for dtype in (torch.float32, torch.float64):
                x = torch.full((size,), float(number), dtype=dtype, device=device)
                doubled, none = run(x, None)
                assert doubled.dtype == dtype and doubled.tolist() == [2.0 * number] * size and none is None
    doubled, added = run(torch.ones(3, device=device), torch.zeros(2, device=device))
    assert added is not None and added.tolist() == [1.0, 1.0]


def test_beyond_the_limit_everything_runs_as_it_is():
    capture = RecordingCapture()
    run = Graphed(lambda x: x + 1, capture, warm_up=1, limit=2)
    for _ in range(3):
        for size in range(1, 6):
            assert run(torch.zeros(size)).tolist() == [1.0] * size
    assert capture.recorded == 2


def test_the_arguments_are_copied_and_the_outputs_overwritten(device, capture):
    run = Graphed(lambda x: x * 2, capture, warm_up=1)
    x = torch.ones(2, device=device)
    run(x)
    first = run(x)
    x.fill_(7.0)
    assert first.tolist() == [2.0, 2.0]
    second = run(torch.full((2,), 3.0, device=device))
    assert first.data_ptr() == second.data_ptr() and first.tolist() == [6.0, 6.0]
    assert x.tolist() == [7.0, 7.0]


def test_what_cannot_be_captured_is_run_and_says_why(device, capture):
    total = torch.zeros((), device=device)

    def looks(x):
        total.add_(1.0)
        return x * float(x.sum())

    run = Graphed(looks, capture, warm_up=2)
    for number in range(1, 6):
        assert run(torch.full((2,), float(number), device=device)).tolist() == [2.0 * number**2] * 2
        assert float(total) == number  # the failed attempt has left no trace
    assert run.problem is not None and "captur" in run.problem


def test_noise_is_drawn_anew_and_follows_the_seed(device, capture):
    run = Graphed(lambda x: x + torch.rand(4, device=device), capture, warm_up=1)
    zeros = torch.zeros(4, device=device)
    torch.manual_seed(3)
    plain = [run(zeros).clone()]
    for _ in range(3):
        torch.manual_seed(3)
        plain.append(run(zeros).clone())
    assert all(torch.equal(plain[0], other) for other in plain[1:])
    assert not torch.equal(run(zeros).clone(), plain[0])


def test_cpu_has_no_graphs():
    capture, reason = capture_on(torch.device("cpu"))
    assert capture is None and "cpu has no graphs" in reason


def test_the_stand_in_restores_and_repeats_views_and_lists():
    parameters = [torch.ones(3), torch.ones(2)]
    rows = torch.arange(6.0).view(2, 3)

    def work():
        torch._foreach_add_(parameters, 1.0)
        rows[0].add_(parameters[0])
        return rows.sum()

    replay, total = RecordingCapture().record(work)
    assert [p.tolist() for p in parameters] == [[1.0] * 3, [1.0] * 2]
    assert rows.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    replay()
    assert rows[0].tolist() == [2.0, 3.0, 4.0] and float(total) == 21.0
    replay()
    assert rows[0].tolist() == [5.0, 6.0, 7.0] and parameters[1].tolist() == [3.0, 3.0]
