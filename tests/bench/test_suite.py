"""The suite: every group, provider and mode, the gate before ratios, resuming, and the budget of time."""

from dataclasses import replace

import pytest
import torch

from fastae.bench import runs
from fastae.bench import suite as suite_module
from fastae.bench.groups import ENCODE, GROUPS
from fastae.bench.measure import Clock, Task, peak_bytes, summary
from fastae.bench.problems import Shape
from fastae.bench.providers import Provider, Unavailable, make_provider
from fastae.bench.results import Results
from fastae.bench.runs import Run
from fastae.bench.suite import NAMES, Case, Suite, sweep_shapes
from fastae.train import load_dataset

CPU = torch.device("cpu")
PEAKS = {"float32": {"bytes_per_second": 1e10, "flops_per_second": 1e11}}
SHAPES = (Shape(16, 12, 8), Shape(9, 7, 5))


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(load_dataset("digits"), (64, 256, 128), 8)


def empty() -> Results:
    return Results({"device_type": "cpu"}, peaks=dict(PEAKS))


@pytest.fixture(autouse=True)
def small_dictionaries(monkeypatch):
    monkeypatch.setitem(suite_module.SPARSE_SHAPES, "quick", (Shape(8, 10, 40), Shape(8, 10, 80)))


def cases(suite: Suite, run: Run, *groups: str, shapes=SHAPES) -> list[Case]:
    found = suite.cases(groups or NAMES, shapes, ["float32"], run, compiled=False, all_compiled=False)
    return [replace(case, peaks=()) for case in found]


def test_every_group_provider_and_mode(run, recorder):
    suite, results = Suite(CPU), empty()
    todo = cases(suite, run, shapes=SHAPES[:1])
    assert not suite.run(todo, results, 60.0, save=lambda r: None, listener=recorder, run=run)
    assert {case.group for case in todo} == set(NAMES)
    for case in todo:
        result = results.cases[case.key]
        assert not result.bad and not result.notes
        other = ("forward",) if case.group == "operators" else ("full",)
        modes = GROUPS[case.group].modes if case.group in GROUPS else other
        assert tuple(result.times) == modes
        for mode in modes:
            assert set(result.times[mode]) == set(case.providers)
            assert all(result.ratio(mode, name) > 0.0 for name in case.providers)
            assert "products" not in case.providers or result.ratio(mode, "products") == 1.0
    stack = next(r for r in results.cases.values() if r.group == "stack")
    assert set(stack.losses) == {"fastae", "script"} and len(stack.losses["script"]) == 2


def test_runs_of_the_same_work_end_with_the_same_losses(run):
    ours = runs.by_engine(run, "float32", CPU)
    assert ours == pytest.approx(runs.by_script(run, "float32", CPU), rel=runs.TOLERANCE)
    other = replace(run, epochs=4)  # the tolerance tells other work from the same
    assert ours != pytest.approx(runs.by_script(other, "float32", CPU), rel=runs.TOLERANCE)


def test_a_run_that_learns_something_else_is_wrong(run, recorder, monkeypatch):
    monkeypatch.setattr(runs, "by_engine", lambda *_: [1.0, 2.0])
    suite, results = Suite(CPU), empty()
    todo = cases(suite, run, "stack")
    suite.run(todo, results, 60.0, save=lambda r: None, listener=recorder, run=run)
    (result,) = results.cases.values()
    assert "fastae" in result.bad and result.ratio("full", "fastae") is None


def test_a_wrong_provider_gets_no_time(recorder, run):
    def make(name, group, problem):
        if name != "eager":
            return make_provider(name, group, problem)
        return Provider(
            lambda *inputs: (ENCODE.eager(*inputs)[0] * 1.01, ENCODE.eager(*inputs)[1]), ENCODE, problem
        )

    suite, results = Suite(CPU, provider=make), empty()
    suite.run(cases(suite, run, "encode"), results, 60.0, save=lambda r: None, listener=recorder)
    for result in results.cases.values():
        assert result.errors["eager"] == pytest.approx(0.01, rel=0.1)
        assert "eager" in result.bad and "fastae" not in result.bad
        for mode in ("forward", "backward", "full"):
            assert "eager" not in result.times[mode] and result.ratio(mode, "eager") is None
            assert result.ratio(mode, "fastae") > 0.0


def test_providers_that_raise_say_so_and_the_others_go_on(recorder, run):
    def make(name, group, problem):
        if name == "eager":
            raise Unavailable("not here")
        if name == "jacobian":
            raise RuntimeError("broken\nby this")
        return make_provider(name, group, problem)

    suite, results = Suite(CPU, provider=make), empty()
    suite.run(
        cases(suite, run, "step", shapes=SHAPES[:1]), results, 60.0, save=lambda r: None, listener=recorder
    )
    (result,) = results.cases.values()
    assert result.notes == {"eager": "not here", "jacobian": "failed: RuntimeError: broken"}
    assert set(result.bad) == {"jacobian"}
    assert result.ratio("full", "fastae") > 0.0


def test_what_is_done_is_skipped(ticks, recorder, run):
    now = ticks(1e-4)
    suite, results = Suite(CPU, now=now, clock=Clock(CPU, now)), empty()
    todo = cases(suite, run, "encode", "inference")
    saved: list[int] = []
    suite.run(todo, results, 0.4, save=lambda r: saved.append(len(r.cases)), listener=recorder)
    assert saved == [1, 2, 3, 4]  # after every case
    suite.run(todo, results, 0.4, save=lambda r: saved.append(-1), listener=recorder)
    assert len(recorder.measured) == 4 and len(saved) == 4
    assert set(recorder.skipped.values()) == {"done before"}
    more = [replace(todo[0], providers=(*todo[0].providers, "jacobian")), *todo[1:]]
    suite.run(more, results, 0.4, save=lambda r: None, listener=recorder)
    assert recorder.measured[4:] == [todo[0].key]
    suite.run(todo, results, 1.2, save=lambda r: None, listener=recorder)
    assert len(recorder.measured) == 9  # to be measured for longer


def test_the_budget_of_time_is_kept(ticks, recorder, run):
    now = ticks(0.05)
    suite, results = Suite(CPU, now=now, clock=Clock(CPU, now)), empty()
    todo = cases(suite, run, "encode", "reconstruction_loss", "inference", "sweep")
    left = suite.run(todo, results, 6.0, save=lambda r: None, listener=recorder)
    assert recorder.measured and left
    assert recorder.measured + [case.key for case in left] == [case.key for case in todo]
    least = 3 * 5 * 4 * 2 * 0.05  # modes, rounds, providers, readings: what one case takes at least
    assert now.time <= 6.0 + 2.0 * least
    assert set(recorder.skipped.values()) == {"out of time"}


def test_sweeps_vary_one_size():
    base = Shape(256, 784, 1000)
    for axis, (name, shapes) in enumerate(sweep_shapes(base).items()):
        assert name == "MDH"[axis] and base in shapes and len({s[axis] for s in shapes}) == 5
        assert all(s[:axis] + s[axis + 1 :] == base[:axis] + base[axis + 1 :] for s in shapes)


def test_a_clock_times_what_runs_and_not_what_comes_before(ticks):
    now = ticks(0.0)

    def work(seconds: float):
        return lambda: setattr(now, "time", now.time + seconds)

    tasks = {"a": Task(work(2.0), work(5.0)), "b": Task(work(3.0))}
    times = Clock(CPU, now).interleaved(tasks, 95.0)
    assert times == {"a": [2.0] * 10, "b": [3.0] * 10}
    assert summary(times["a"], 4.0) == {"median": 8.0, "low": 8.0, "high": 8.0, "rounds": 10}


def test_peak_memory_of_the_encoder():
    shape = Shape(1024, 256, 1024)  # 4 MiB a code
    ours, eager = (peak_bytes(name, "encode", shape, "float32", CPU) for name in ("fastae", "eager"))
    assert 4 << 20 <= ours <= eager <= 128 << 20
    with pytest.raises(Unavailable, match="nothing"):
        peak_bytes("nothing", "encode", shape, "float32", CPU)
