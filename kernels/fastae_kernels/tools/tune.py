"""Measure which plan is fastest on this device, and keep the answers (:mod:`.choices`).

A candidate counts only if its results are those of the reference, the split strategy in float32 and full
precision: its error is at most twice that of the library's product in the dtype itself, plus rounding. What
does not compile, does not fit the device or errs is dropped, and said so. A winner has to beat the
heuristic's own plan by more than noise.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import operators
from ..device import noise
from ..launch import Target, target_of
from ..plan import choices, config
from ..plan.calls import CALLS
from ..plan.choices import Choice, Entry, Key
from ..plan.schedules import GemmConfig, PassConfig, Plan

NOISE = 0.02
"""By which share a candidate must be faster than the heuristic's plan to be chosen."""

OPERATORS = ("encode", "decode_loss", "code_grad", "weight_grad", "corrupt")
"""Operators of a training step; the others keep the heuristic's plans."""

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

Run = Callable[[], object]
Timer = Callable[[list[Run]], list[float]]
"""Seconds of each of several runs of one function."""


# --- calls ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An operator's call on matrices of one shape, for ``tied`` weights or others."""

    operator: str
    M: int
    D: int
    H: int
    dtype: str  # of DTYPES
    tied: bool = False

    def key(self, target: Target) -> Key:
        """Key by which the call's plan is looked up."""
        call, dtype = CALLS[self.operator](self.M, self.D, self.H, self.tied), DTYPES[self.dtype]
        aligned = not call.K or call.aligned(dtype.itemsize)
        name, products = str(dtype).removeprefix("torch."), config.precision(dtype, target)
        return Key(self.operator, name, products, False, aligned, call.k_major, *call[:3])


def cases(
    shapes: Iterable[tuple[int, int, int]], dtypes: Iterable[str], names: Iterable[str] = OPERATORS
) -> list[Case]:
    """The calls of training steps on shapes (M, D, H), with tied weights and with others, each once."""
    dtypes, names = list(dtypes), list(names)
    found: dict[Any, Case] = {}
    for M, D, H in shapes:
        for dtype in dtypes:
            for name in names:
                some = [Case(name, M, D, H, dtype, tied) for tied in (True, False)]
                if name == "weight_grad":  # of tied weights, and of a decoder's own
                    some += [Case("weight_grad dual", M, D, H, dtype), Case(name, M, H, D, dtype)]
                for case in some:
                    call = CALLS[case.operator](case.M, case.D, case.H, case.tied)
                    found.setdefault((case.operator, dtype, call[:4]), case)
    return list(found.values())


def _variants(case: Case, device: torch.device) -> Callable[[torch.dtype], list[Run]]:
    """Calls of the operator in a dtype on the same numbers: the one to time, and others to verify.

    Between them they have every part of the operator's epilogue, since a choice serves all of them.
    """
    M, D, H = case.M, case.D, case.H
    own = DTYPES[case.dtype]
    generator = torch.Generator(device).manual_seed(M + 3 * D + 5 * H)

    def normal(rows: int, columns: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(rows, columns, generator=generator, device=device)).to(own)

    x, code, grad = normal(M, D).sigmoid(), normal(M, H).sigmoid(), normal(M, D)
    weight, decoder = normal(H, D, D**-0.5), normal(D, H, H**-0.5)
    preact = normal(M, H)
    bias, decoder_bias, q = (
        normal(1, H)[0],
        normal(1, D)[0],
        torch.rand(H, generator=generator, device=device),
    )
    scale = torch.full((), 1.0 / M, device=device)
    seed = torch.tensor([7], device=device)
    mask = noise.Mask(seed, 0, 0, noise.BITS[16])
    dropout = mask._replace(stream=1, keep_scale=2.0)

    def calls(dtype: torch.dtype) -> list[Run]:
        def t(tensor: Tensor) -> Tensor:
            return tensor.to(dtype)

        w, b, c = t(weight), t(bias), t(decoder_bias)
        v = w.t() if case.tied else t(decoder)
        inputs, h, z, g = t(x), t(code), t(preact), t(grad)
        every: dict[str, list[Run]] = {
            "encode": [
                lambda: operators.encode(inputs, w, b, "sigmoid", sq_norms=q, reduction="mean"),
                lambda: operators.encode(
                    inputs,
                    w,
                    b,
                    "tanh",
                    sq_norms=q,
                    base_code=h,
                    l1=True,
                    code_sum=True,
                    dropout=dropout,
                    seed=seed,
                ),
            ],
            "decode_loss": [
                lambda: operators.decode_loss(h, v, c, inputs, "bce", column_sums=True, reduction="mean"),
                lambda: operators.decode_loss(
                    h, v, c, inputs, "mse", "sigmoid", mask=mask, corrupted=2.0, clean=0.5, column_sums=True
                ),
            ],
            "code_grad": [
                lambda: operators.code_grad(
                    g,
                    v,
                    h,
                    None,
                    "sigmoid",
                    scale=scale,
                    penalty_scale=scale,
                    sq_norms=q,
                    sums=torch.float32,
                    column_sums=c.float(),
                ),
                lambda: operators.code_grad(
                    g,
                    v,
                    h,
                    z,
                    "gelu",
                    scale=scale,
                    penalty_scale=scale.expand(M),
                    sq_norms=q,
                    l1_scale=scale,
                    column_grad=q,
                    extra=z,
                    sums=torch.float32,
                ),
                lambda: operators.code_grad(
                    g,
                    v,
                    h,
                    None,
                    "sigmoid",
                    dropout=dropout,
                    scale=scale,
                    penalty_scale=scale,
                    sq_norms=q,
                    l1_scale=scale,
                    column_grad=q,
                    extra=z,
                    sums=torch.float32,
                ),
            ],
            "weight_grad": [
                lambda: operators.weight_grad(h, inputs, scale),
                lambda: operators.weight_grad(z, inputs, None, w, q),
            ],
            "weight_grad dual": [
                lambda: operators.weight_grad(z, inputs, None, w, q, h, g, scale, scale, 2.0)
            ],
            "corrupt": [
                lambda: operators.corrupt(inputs, noise.Corruption(noise.CORRUPTIONS["masking"], *mask[:4]))
            ],
        }
        return every[case.operator]

    return calls


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """Precision of float32 products inside the kernels: ``ieee`` or ``tf32``."""
    matmul = torch.backends.cuda.matmul  # torch.get_float32_matmul_precision raises where settings differ
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


# --- candidates -------------------------------------------------------------------------------------------

_PASSES = (
    PassConfig(16, 128, 4),
    PassConfig(32, 64, 4),
    PassConfig(64, 64, 4),
    PassConfig(64, 64, 8),
    PassConfig(64, 128, 8),
    PassConfig(128, 64, 8),
)


def _fits(gemm: GemmConfig, dtype: torch.dtype, target: Target) -> bool:
    """True if a tile's operands fit shared memory, and its accumulators a thread's registers."""
    accumulators = gemm.block_m * gemm.block_n // (32 * gemm.warps)
    if gemm.epilogue_warps:  # which find a tile in shared memory, in parts of at most 128 bytes
        if not gemm.persistent or gemm.warps != 8:
            return False
        if gemm.epilogue_tile[1] * dtype.itemsize > 128:
            return False
    return config.fits(gemm, dtype, target) and 8 <= accumulators <= 128 and gemm.epilogue_tile[1] >= 16


def _neighbours(plan: Plan, dtype: torch.dtype, target: Target) -> list[Plan]:
    """Fused plans one step away from one: in warps, stages, or a block's size."""
    if plan.strategy == "split":
        return []
    g = plan.gemm
    found = [replace(g, stages=g.stages + step) for step in (-1, 1) if g.stages + step >= 1]
    found += [replace(g, warps=warps) for warps in (g.warps // 2, 2 * g.warps) if 4 <= warps <= 8]
    found += [replace(g, block_k=size) for size in (g.block_k // 2, 2 * g.block_k) if 32 <= size <= 128]
    found += [replace(g, block_m=size) for size in (g.block_m // 2, 2 * g.block_m) if 64 <= size <= 256]
    found += [replace(g, subtiles=parts) for parts in (g.subtiles // 2, 2 * g.subtiles) if parts >= 1]
    found += [replace(g, group=size) for size in (4, 8, 16) if size != g.group]
    found += [replace(g, persistent=not g.persistent)] if g.tma else []
    return [replace(plan, gemm=gemm) for gemm in found if _fits(gemm, dtype, target)]


def candidates(key: Key, dtype: torch.dtype, target: Target) -> list[Plan]:
    """The library's product with every pass, and every default configuration of the target, fused.

    An epilogue in many parts is tried in half as many, too, which may need more registers than there are.
    """
    default = config.heuristic(key, dtype, target)
    passes = dict.fromkeys((default.elementwise, *_PASSES))
    found = [replace(default, strategy="split", elementwise=elementwise) for elementwise in passes]
    if not key.K:
        return found
    configs = config.configurations(target, dtype, operator=key.operator, aligned=key.aligned)
    configs += tuple(replace(gemm, subtiles=gemm.subtiles // 2) for gemm in configs if gemm.subtiles >= 4)
    configs = tuple(dict.fromkeys(configs))
    return found + [replace(default, strategy="fused", gemm=gemm) for gemm in configs]


# --- verification -----------------------------------------------------------------------------------------


def _results(run: Run) -> list[Tensor]:
    """Results of a run, tensor by tensor, in float32."""
    outcome = run()
    tensors = outcome if isinstance(outcome, tuple) else (outcome,)
    return [tensor.float() for tensor in tensors if isinstance(tensor, Tensor)]


class _Reference(NamedTuple):
    """Exact results, and which error each may have."""

    exact: list[Tensor]
    allowed: list[float]

    @staticmethod
    def of(
        calls: Callable[[torch.dtype], list[Run]], number: int, dtype: torch.dtype, terms: int
    ) -> _Reference:
        """Of the ``number``-th call, whose results are sums of up to ``terms`` terms."""
        with config.using(strategy="split", elementwise=PassConfig()):
            with _float32_products("ieee"):
                exact = _results(calls(torch.float32)[number])
            own = _results(calls(dtype)[number])
        # rounding of a result, and of the sum that makes it
        unit = 8.0 * torch.finfo(dtype).eps + terms**0.5 * torch.finfo(torch.float32).eps
        allowed = [
            2.0 * float((a - b).abs().max()) + unit * float(a.abs().max())
            for a, b in zip(exact, own, strict=True)
        ]
        return _Reference(exact, allowed)

    def error(self, results: list[Tensor]) -> str | None:
        """Description of the first fault of the results, if any."""
        for number, (exact, allowed) in enumerate(zip(self.exact, self.allowed, strict=True)):
            error = float((results[number] - exact).abs().max())
            if not error <= allowed:  # nan is none
                return f"result {number} is off by {error:.2g}, allowed are {allowed:.2g}"
        return None


# --- time -------------------------------------------------------------------------------------------------


def gpu_timer(device: torch.device, rounds: int = 25) -> Timer:
    """Medians of graph replays, the runs of a round one after another, the second-level cache flushed."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    side = torch.cuda.Stream(device)

    def captured(run: Run, pool: Any) -> Run:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=side):
            run()
        return graph.replay

    def seconds(runs: list[Run]) -> list[float]:
        with torch.cuda.device(device):
            # one for all: graphs take turns, and nobody reads their results. It dies with the last of them
            pool = torch.cuda.graph_pool_handle()
            graphs = [captured(run, pool) for run in runs]
            times: list[list[float]] = [[] for _ in runs]
            for _ in range(rounds):
                for graph, own in zip(graphs, times, strict=True):
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    flush.zero_()
                    start.record()
                    graph()
                    end.record()
                    end.synchronize()
                    own.append(start.elapsed_time(end) * 1e-3)
        return [statistics.median(own) for own in times]

    return seconds


def wall_timer(rounds: int = 3) -> Timer:
    """Medians of the clock on the wall, for the interpreter."""

    def seconds(runs: list[Run]) -> list[float]:
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            for run, own in zip(runs, times, strict=True):
                start = time.perf_counter()
                run()
                own.append(time.perf_counter() - start)
        return [statistics.median(own) for own in times]

    return seconds


# --- choosing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Result for a case. ``chosen`` is ``None`` where it was measured before, or nothing ran."""

    case: Case
    key: Key
    default: Plan
    chosen: Plan | None = None
    seconds: float | None = None
    default_seconds: float | None = None
    tried: int = 0
    dropped: tuple[tuple[Plan, str], ...] = ()

    @property
    def skipped(self) -> bool:
        return not self.tried

    @property
    def gain(self) -> float:
        """By which share of the default's time the chosen plan is faster; 0 where the default stays."""
        if self.chosen is None or self.seconds is None or self.default_seconds is None:
            return 0.0
        return 1.0 - self.seconds / self.default_seconds


def _run(plan: Plan, run: Run) -> object:
    with config.using(strategy=plan.strategy, gemm=plan.gemm, elementwise=plan.elementwise):
        return run()


def _fastest(times: dict[Plan, float]) -> Plan:
    """The first of the plans that no other beats by more than noise."""
    least = min(times.values())
    return next(plan for plan, seconds in times.items() if least >= (1.0 - NOISE) * seconds)


def choose(case: Case, device: torch.device, timer: Timer) -> Outcome:
    """The fastest plan of those whose results are right.

    First the defaults are timed, then the neighbours of the best of them. The best is verified with the
    operator's other options, too, and timed beside the heuristic's own plan once more: that one stays unless
    it is beaten by more than ``NOISE``.
    """
    target, dtype = target_of(device), DTYPES[case.dtype]
    with _float32_products("tf32" if case.dtype == "tf32" else "ieee"):
        key = case.key(target)
        default = config.heuristic(key, dtype, target)
        calls = _variants(case, device)
        runs, terms = calls(dtype), max(key[-3:])
        first = _Reference.of(calls, 0, dtype, terms)
        times: dict[Plan, float] = {}
        dropped: dict[Plan, str] = {}

        def right(plan: Plan, number: int, reference: _Reference) -> bool:
            try:
                problem = reference.error(_results(functools.partial(_run, plan, runs[number])))
            except Exception as error:  # whatever a compiler or a launch raises: it cannot be chosen
                problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if problem is not None:
                dropped[plan] = problem
            return problem is None

        def measure(plans: list[Plan]) -> None:
            if plans:
                seconds = timer([functools.partial(_run, plan, runs[0]) for plan in plans])
                times.update(zip(plans, seconds, strict=True))

        measure([p for p in dict.fromkeys([default, *candidates(key, dtype, target)]) if right(p, 0, first)])
        if times:
            new = [p for p in _neighbours(_fastest(times), dtype, target) if p not in {**times, **dropped}]
            measure([plan for plan in new if right(plan, 0, first)])
        tried, best = len(times) + len(dropped), None
        others = [_Reference.of(calls, number, dtype, terms) for number in range(1, len(runs))]
        while times and best is None:
            best = _fastest(times)
            if not all(right(best, number, reference) for number, reference in enumerate(others, 1)):
                del times[best]
                best = None
        if best is not None and best != default and default in times:
            measure([default, best])  # side by side
            best = _fastest({plan: times[plan] for plan in (default, best)})
    return Outcome(
        case,
        key,
        default,
        best,
        None if best is None else times[best],
        times.get(default),
        tried,
        tuple(dropped.items()),
    )


def _entry(outcome: Outcome) -> Entry:
    plan = outcome.chosen
    assert plan is not None and outcome.seconds is not None
    if plan == outcome.default:
        choice = Choice()
    elif plan.strategy == "fused":
        choice = Choice("fused", gemm=plan.gemm)
    else:
        choice = Choice("split", elementwise=plan.elementwise)
    return Entry(outcome.key, choice, outcome.seconds, outcome.default_seconds)


def tune(
    given: Iterable[Case], device: torch.device, timer: Timer | None = None, *, again: bool = False
) -> Iterator[Outcome]:
    """The outcome of each case as it comes, saved before: an interruption loses nothing that was done.

    What the user's table has for these versions is skipped unless ``again``; shapes of one bucket are one.
    """
    target = target_of(device)
    timer = timer or (gpu_timer(device) if device.type == "cuda" else wall_timer())
    done: set[Key] = set()
    for case in given:
        with _float32_products("tf32" if case.dtype == "tf32" else "ieee"):
            key = case.key(target)
        if key.bucket in done or (not again and choices.lookup(target.device, key) is not None):
            yield Outcome(case, key, config.heuristic(key, DTYPES[case.dtype], target))
            continue
        try:
            outcome = choose(case, device, timer)
        except torch.OutOfMemoryError:
            default = config.heuristic(key, DTYPES[case.dtype], target)
            outcome = Outcome(case, key, default, tried=1, dropped=((default, "out of memory"),))
        if outcome.chosen is not None:
            done.add(key.bucket)
            choices.save(target.device, [_entry(outcome)])
            config.forget_choices()
        yield outcome
