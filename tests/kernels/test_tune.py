"""Tuning: the fastest plan is chosen of those that are right, and no other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastae_kernels.launch import target_of
from fastae_kernels.operators import run as kernels
from fastae_kernels.plan import choices, config
from fastae_kernels.plan.choices import Choice
from fastae_kernels.plan.schedules import PassConfig, Plan
from fastae_kernels.tools import cost, tune
from fastae_kernels.tools.aot import TARGETS
from fastae_kernels.tools.tune import Case, Outcome, Run

from tests.kernels.support import DEVICE, ON_GPU

CASE = Case("encode", 33, 24, 40, "float32")
QUICK = replace(CASE, operator="corrupt")
FAST = PassConfig(128, 64, 8)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache and no shipped tables; products are fused by default, on every device."""
    monkeypatch.setattr(config, "_strategy", lambda key, *_: "fused" if key.K else "split")
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    config.forget_choices()
    yield
    config.forget_choices()


class Clock:
    """A timer by a rule: seconds of a plan, and the how-manieth time it is timed."""

    def __init__(self, rule: Callable[[Plan, int], float]) -> None:
        self.rule = rule
        self.timed: Counter[Plan] = Counter()

    def __call__(self, runs: list[Run]) -> list[float]:
        times = []
        for run in runs:
            plan = run.args[0]  # pyright: ignore[reportFunctionMemberAccess]
            self.timed[plan] += 1
            times.append(self.rule(plan, self.timed[plan]))
        return times


def by_pass(seconds: dict[PassConfig, float], otherwise: float = 1.0) -> Clock:
    """Passes take their seconds, and fused plans ``otherwise``."""
    return Clock(
        lambda plan, _: seconds.get(plan.elementwise, 0.9) if plan.strategy == "split" else otherwise
    )


def run(clock: tune.Timer, *cases: Case, again: bool = False) -> list[Outcome]:
    return list(tune.tune(cases or (CASE,), DEVICE, clock, again=again))


def planned(case: Case = CASE) -> Plan:
    """The plan of a call now."""
    key, dtype = case.key(target_of(DEVICE)), tune.DTYPES[case.dtype]
    return config.plan(
        *key[-3:], dtype, target_of(DEVICE), operator=key.operator, aligned=key.aligned, k_major=key.k_major
    )


def entries() -> list[dict[str, Any]]:
    path = choices.paths(target_of(DEVICE).device)["cache"]
    return json.loads(path.read_text())["entries"] if path.exists() else []


# --- choosing ---------------------------------------------------------------------------------------------


def test_the_fastest_right_plan_is_chosen_and_used():
    default = planned()
    (outcome,) = run(by_pass({FAST: 0.25}))
    assert outcome.dropped == () and (outcome.seconds, outcome.default_seconds) == (0.25, 1.0)
    assert outcome.gain == 0.75 and outcome.default == default
    assert outcome.chosen == replace(default, strategy="split", elementwise=FAST) == planned()


def test_a_fused_winner_is_kept_with_its_tiles():
    fast = tune._neighbours(planned(), torch.float32, target_of(DEVICE))[0]
    (outcome,) = run(Clock(lambda plan, _: 0.5 if plan.gemm == fast.gemm and plan.strategy == "fused" else 1))
    assert outcome.chosen == fast == planned() and fast.gemm != outcome.default.gemm


@pytest.mark.parametrize(("seconds", "chosen"), [(1.0, False), (0.985, False), (0.975, True)])
def test_a_winner_beats_the_default_by_more_than_noise(seconds: float, chosen: bool):
    (outcome,) = run(by_pass(dict.fromkeys(tune._PASSES, seconds)))
    assert (outcome.chosen != outcome.default) == chosen
    if not chosen:
        assert choices.lookup(target_of(DEVICE).device, outcome.key) == Choice()
        assert planned() == outcome.default and outcome.gain == 0.0


def test_of_winners_as_fast_as_each_other_the_simplest_is_chosen():
    (outcome,) = run(by_pass({PassConfig(): 0.5, FAST: 0.499}))
    assert outcome.chosen is not None and outcome.chosen.elementwise == PassConfig()


def test_one_lucky_time_is_not_enough():
    """The winner and the default are timed once more, side by side."""
    clock = Clock(lambda plan, time: 0.5 if plan.strategy == "split" and time == 1 else 1.0)
    (outcome,) = run(clock)
    assert outcome.chosen == outcome.default == planned()
    assert clock.timed[outcome.default] == 2


# --- verification -----------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, harm: Callable[[torch.Tensor], None]) -> None:
    """Passes of the fast tile go wrong."""
    run_pass = kernels.elementwise_pass

    def spoilt(source: Any, out: torch.Tensor, epilogue: Any, args: Any, plan: Plan) -> None:
        run_pass(source, out, epilogue, args, plan)
        if plan.elementwise == FAST:
            harm(out)

    monkeypatch.setattr(kernels, "elementwise_pass", spoilt)


def fail(out: torch.Tensor) -> None:
    raise RuntimeError("out of resource: shared memory\nRequired: 9, Hardware limit: 8")


HARMS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "wrong": (lambda out: out[-1, -1].add_(0.01), "is off by 0.01"),
    "nan": (lambda out: out[0, 0].fill_(float("nan")), "is off by nan"),
    "failing": (fail, "RuntimeError: out of resource: shared memory"),
}


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, "wrong") for name in (*tune.OPERATORS, "weight_grad dual")]
    + [("corrupt", "nan"), ("corrupt", "failing")],
)
def test_a_wrong_or_failing_candidate_never_wins(name: str, harm: str, monkeypatch):
    case, (does, reason) = replace(CASE, operator=name), HARMS[harm]
    spoil(monkeypatch, does)
    clock = by_pass({FAST: 0.1, PassConfig(16, 128, 4): 0.2})
    (outcome,) = run(clock, case)
    ((plan, why),) = outcome.dropped
    assert plan.elementwise == FAST and reason in why and "\n" not in why
    assert outcome.chosen is not None and outcome.chosen.elementwise == PassConfig(16, 128, 4)
    assert not any(timed.elementwise == FAST for timed in clock.timed)


def test_a_candidate_that_is_wrong_with_other_options_never_wins(monkeypatch):
    """A choice serves every epilogue of its operator: here the one with dropout is wrong."""
    run_pass = kernels.elementwise_pass

    def spoilt(source: Any, out: torch.Tensor, epilogue: Any, args: Any, plan: Plan) -> None:
        run_pass(source, out, epilogue, args, plan)
        if plan.elementwise == FAST and getattr(args, "dropped", None) is not None:
            args.dropped.zero_()

    monkeypatch.setattr(kernels, "elementwise_pass", spoilt)
    (outcome,) = run(by_pass({FAST: 0.1}))
    assert [plan.elementwise for plan, _ in outcome.dropped] == [FAST]


def test_where_the_default_does_not_run_the_best_of_the_others_is_chosen(monkeypatch):
    def broken(*args: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "fused", broken)
    (outcome,) = run(by_pass({}))
    assert outcome.chosen is not None and outcome.chosen.strategy == "split"
    assert outcome.default_seconds is None and outcome.gain == 0.0
    assert (outcome.default, "RuntimeError: no such instruction") in outcome.dropped
    assert planned() == outcome.chosen


def test_where_nothing_is_right_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(tune._Reference, "error", lambda *_: "result 0 is off")
    (outcome,) = run(by_pass({}))
    assert outcome.chosen is None and not outcome.skipped and entries() == []


def test_a_shape_that_does_not_fit_is_reported_and_the_next_goes_on(monkeypatch):
    variants = tune._variants

    def full(case: Case, device: torch.device) -> Any:
        if case == CASE:
            raise torch.OutOfMemoryError("tried to allocate")
        return variants(case, device)

    monkeypatch.setattr(tune, "_variants", full)
    first, second = run(by_pass({}), CASE, replace(CASE, operator="corrupt"))
    assert first.chosen is None and first.dropped == ((first.default, "out of memory"),)
    assert second.chosen is not None and len(entries()) == 1


# --- what is kept -----------------------------------------------------------------------------------------


def test_what_was_measured_is_skipped_unless_again():
    run(by_pass({FAST: 0.5}), QUICK)
    (outcome,) = run(Clock(lambda plan, _: pytest.fail("it was measured")), QUICK)  # pyright: ignore[reportArgumentType]
    assert outcome.skipped and outcome.chosen is None and len(entries()) == 1
    (outcome,) = run(by_pass({}), QUICK, again=True)
    assert not outcome.skipped and len(entries()) == 1
    assert planned(QUICK) == outcome.chosen


def test_other_versions_are_measured_anew(monkeypatch):
    run(by_pass({FAST: 0.5}), QUICK)
    now = choices.versions()
    monkeypatch.setattr(choices, "versions", lambda: {**now, "triton": "another"})
    config.forget_choices()
    (outcome,) = run(by_pass({}), QUICK)
    assert not outcome.skipped and len(entries()) == 2


def test_shapes_of_one_bucket_are_measured_once_even_again():
    clock = by_pass({})
    first, second = run(clock, QUICK, replace(QUICK, M=QUICK.M + 1), again=True)
    assert not first.skipped and second.skipped


def test_an_interruption_keeps_what_is_done():
    cases = [replace(QUICK, D=D) for D in (24, 48, 96)]
    clock = by_pass({FAST: 0.5})

    def interrupted(runs: list[Run]) -> list[float]:
        if len(entries()) == 2:
            raise KeyboardInterrupt
        return clock(runs)

    done = []
    with pytest.raises(KeyboardInterrupt):
        done += tune.tune(cases, DEVICE, interrupted)
    assert [raw["key"]["N"] for raw in entries()] == [24, 48]
    assert config._override == config._Override()
    rest = run(clock, *cases)
    assert [outcome.skipped for outcome in rest] == [True, True, False]


# --- what is measured -------------------------------------------------------------------------------------

CASES = tune.cases([(24, 32, 40), (33, 35, 29)], ["float32", "float16"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_is_looked_up_as_its_call_is(case: Case, monkeypatch):
    """Tuning, the roofline and the operator itself ask for one and the same plan."""
    asked: list[choices.Key] = []
    monkeypatch.setattr(choices, "lookup", lambda device, key: asked.append(key))
    target, dtype = target_of(DEVICE), tune.DTYPES[case.dtype]
    for run_ in tune._variants(case, DEVICE)(dtype):
        config.forget_choices()
        run_()
    name, dual = case.operator.split(" ")[0], case.operator.endswith("dual")
    config.forget_choices()
    cost.of(name, case.M, case.D, case.H, dtype, target, tied=case.tied, **({"dual": True} if dual else {}))
    assert set(asked) == {case.key(target)} and len(asked) >= 2


def test_a_training_step_asks_for_nothing_but_cases(monkeypatch):
    from fastae import Masking, functional

    asked: set[choices.Key] = set()
    monkeypatch.setattr(choices, "lookup", lambda device, key: asked.add(key))
    config.forget_choices()
    M, D, H = 24, 32, 40
    for tied in (True, False):
        x, weight = torch.rand(M, D, device=DEVICE), torch.rand(H, D, device=DEVICE, requires_grad=True)
        decoder = None if tied else torch.rand(D, H, device=DEVICE, requires_grad=True)
        functional.autoencoder_loss(
            x, weight, None, decoder, None, corruption=Masking(0.2), contractive=0.1
        ).total.backward()
    assert asked == {case.key(target_of(DEVICE)) for case in tune.cases([(M, D, H)], ["float32"])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_candidates_are_every_default_and_the_library_s(target, dtype):
    key = CASE.key(target)._replace(M=4096, N=4096, K=2048)
    found = tune.candidates(key, dtype, target)
    fused = [plan for plan in found if plan.strategy == "fused"]
    defaults = config.configurations(target, dtype)
    assert [plan.gemm for plan in fused[: len(defaults)]] == list(defaults)
    assert {plan.elementwise for plan in found if plan.strategy == "split"} >= set(tune._PASSES)
    assert len(set(found)) == len(found)
    for plan in fused:
        near = tune._neighbours(plan, dtype, target)
        assert 4 <= len(near) <= 12 and len(set(near)) == len(near)
        assert all(tune._fits(other.gemm, dtype, target) for other in near)


def test_inputs_are_random():
    for case in CASES[:9]:
        for call in tune._variants(case, DEVICE)(torch.float32):
            for result in tune._results(call):
                assert result.unique().numel() > result.numel() // 4


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_a_gpu_s_times_grow_with_the_work():
    small, large = (torch.randn(n, n, device=DEVICE) for n in (256, 4096))
    times = tune.gpu_timer(DEVICE)([lambda: torch.mm(small, small), lambda: torch.mm(large, large)])
    assert 0.0 < times[0] < times[1] < 1.0


def test_the_clock_on_the_wall_times_every_run():
    called: list[int] = []
    times = tune.wall_timer(rounds=3)([lambda: called.append(0), lambda: called.append(1)])
    assert called == [0, 1] * 3 and all(0.0 <= seconds < 1.0 for seconds in times)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_setting_of_float32_products_comes_back(before: str):
    matmul = torch.backends.cuda.matmul
    kept, matmul.fp32_precision = matmul.fp32_precision, before
    try:
        with pytest.raises(KeyboardInterrupt), tune._float32_products("tf32" if before == "ieee" else "ieee"):
            assert matmul.fp32_precision != before
            raise KeyboardInterrupt
        assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = kept
