"""Operators alone: the gate, costs that are those of their tensors, shares of the roofline."""

import math
import sys
from dataclasses import replace

import fastae_kernels.tools
import pytest
import torch
from torch import Tensor

from fastae import ops
from fastae.bench import pictures
from fastae.bench.gate import TOLERANCES
from fastae.bench.operators import OPERATORS, Call, Tensors, cost_of
from fastae.bench.problems import Problem, Shape
from fastae.bench.providers import Unavailable
from fastae.bench.report import compare, markdown
from fastae.bench.results import CaseResult, Results
from fastae.bench.suite import Case, Suite

CPU = torch.device("cpu")
SHAPE = Shape(67, 31, 23)
PEAKS = {"bytes_per_second": 1e10, "flops_per_second": 1e11}
TENSORS = Tensors.of(Problem.make(SHAPE))


def outputs(call: Call) -> list[Tensor]:
    results = call.forward()
    return [results] if isinstance(results, Tensor) else [r for r in results if r.numel()]


# --- the gate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OPERATORS)
def test_right_operators_pass(name, dtype):
    tensors = Tensors.of(Problem.make(SHAPE, getattr(torch, dtype)))
    assert Call(OPERATORS[name], tensors).error() <= TOLERANCES[dtype]


RESULTS = [(name, k) for name in OPERATORS for k in range(len(outputs(Call(OPERATORS[name], TENSORS))))]


@pytest.mark.parametrize(("name", "number"), RESULTS)
@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_wrong_result_does_not_pass(name, number, factor, monkeypatch):
    right = getattr(ops, OPERATORS[name].name)

    def wrong(**arguments):
        results = right(**arguments)
        if isinstance(results, Tensor):
            return results * factor
        full = [k for k, r in enumerate(results) if r.numel()]
        return tuple(r * factor if k == full[number] else r for k, r in enumerate(results))

    monkeypatch.setattr(ops, OPERATORS[name].name, wrong)
    assert not Call(OPERATORS[name], TENSORS).error() <= TOLERANCES["float32"]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operand_shows_in_a_result(name):
    operands = OPERATORS[name].arguments(TENSORS)
    tensors = {k: a for k, a in operands.items() if isinstance(a, Tensor) and a.is_floating_point()}
    for place, tensor in tensors.items():
        if tensor.numel():
            call = Call(OPERATORS[name], TENSORS)
            call._arguments = {**operands, place: 1.01 * tensor}
            assert call.error() > TOLERANCES["float32"], place


# --- the cost -------------------------------------------------------------------------------------------


def test_each_operand_and_each_result_is_counted_once():
    problem = Problem.make(Shape(256, 784, 1000))
    tensors = Tensors.of(problem)
    for name, operator in OPERATORS.items():
        call = Call(operator, tensors)
        operands = [a for a in operator.arguments(tensors).values() if isinstance(a, Tensor)]
        moved = sum(t.nbytes for t in (*operands, *outputs(call)) if t.numel() > 1)
        assert moved <= cost_of(operator, problem).bytes <= 1.05 * moved, name  # and sums by tiles


def test_costs_of_other_dtypes():
    assert cost_of(OPERATORS["corrupt"], Problem.make(SHAPE, torch.bfloat16)).bytes == 2 * 2 * 67 * 31
    with pytest.raises(Unavailable, match="16 and 32 bits"):
        cost_of(OPERATORS["corrupt"], Problem.make(SHAPE, torch.float64))


# --- in the suite ---------------------------------------------------------------------------------------


def measured(recorder, *dtypes: str) -> Results:
    results = Results({"device_type": "cpu"}, peaks={dtype: PEAKS for dtype in dtypes})
    cases = [Case("operators", dtype, str(SHAPE), tuple(OPERATORS)) for dtype in dtypes]
    Suite(CPU).run(cases, results, 60.0, save=lambda r: None, listener=recorder)
    return results


def test_shares_are_of_the_least_time(recorder):
    (result,) = measured(recorder, "float32").cases.values()
    assert not result.bad and not result.notes and result.covers(list(OPERATORS), 1.0)
    assert list(result.times["forward"]) == list(result.errors) == list(OPERATORS)
    for name, (moved, flops) in result.cost.items():
        assert result.least[name] == max(moved / 1e10, flops / 1e11)
        time = result.times["forward"][name]["median"]
        assert result.ratio("forward", name) == pytest.approx(time / result.least[name])
    assert result.cost["corrupt"][1] == 0 < result.cost["encode"][1] == 2 * 67 * 31 * 23


def test_a_wrong_operator_gets_no_share_and_the_others_do(recorder, monkeypatch):
    right = ops.squared_norms
    monkeypatch.setattr(ops, "squared_norms", lambda weight: 1.01 * right(weight))
    results = measured(recorder, "float32")
    (result,) = results.cases.values()
    assert set(result.bad) == {"squared_norms"} and result.ratio("forward", "squared_norms") is None
    assert "squared_norms" not in result.times["forward"] and result.ratio("forward", "encode") > 0.0
    page = markdown(results)
    assert "squared_norms: off by 1.0e-02" in page and page.count("wrong |") == 1
    assert "operators-float32" in pictures.draw(results)


def test_without_triton_the_group_says_so(recorder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastae_kernels.tools.cost", None)
    monkeypatch.delattr(fastae_kernels.tools, "cost", raising=False)
    results = measured(recorder, "float32", "bfloat16")
    for result in results.cases.values():
        assert not result.bad and not result.times and set(result.notes) == set(OPERATORS)
        assert "Triton" in result.notes["encode"]
    assert len(recorder.measured) == 2 and markdown(results).count("without Triton") == 2
    assert pictures.draw(results) == {}


# --- tables and pictures --------------------------------------------------------------------------------


@pytest.fixture
def made() -> Results:
    """By memory 4 ms of 8, by products 5 ms of 20, at two shapes; made up."""
    results = Results({"device": "a machine"}, peaks={"float32": PEAKS})
    for shape in ("8x4x4", "16x4x4"):
        case = CaseResult("operators", "float32", shape, 1e-5, ["corrupt", "encode"], 1.0)
        case.cost = {"corrupt": [40_000_000, 0], "encode": [10_000_000, 500_000_000]}
        case.least = {"corrupt": 4e-3, "encode": 5e-3}
        case.times["forward"] = {
            name: {"median": t, "low": 0.9 * t, "high": 1.1 * t, "rounds": 9}
            for name, t in (("corrupt", 8e-3), ("encode", 20e-3))
        }
        case.errors = {"corrupt": 0.0, "encode": 1e-7}
        results.cases[case.key] = case
    return results


def test_the_table(made):
    page = markdown(made)
    assert "| 8x4x4 | corrupt | 40 | 0 | memory | 4 | 8 ±0.8 | 5 | 0 | 50% |" in page
    assert "| 16x4x4 | encode | 10 | 0.5 | products | 5 | 20 ±2 | 0.5 | 25 | 25% |" in page
    assert "each operand read once" in page


def test_the_picture(made):
    cases = list(made.cases.values())
    figure = pictures.operator_roofline(cases, *PEAKS.values(), "float32")
    under, shares = figure.axes
    points = [line.get_xydata()[0].tolist() for line in under.lines if len(line.get_xdata()) == 1]
    assert points == [[50.0, 2.5e10]] * 2  # corruption has no products
    rows = [bar.lines[0].get_xydata()[0].tolist() for bar in shares.containers]
    assert [share for share, _ in rows] == pytest.approx([0.5, 0.25] * 2)
    assert [round(row) for _, row in rows] == [0, 1] * 2
    assert [label.get_text() for label in shares.get_yticklabels()] == ["corrupt", "encode"]


def test_comparison(made):
    after = replace(made, cases={key: replace(case) for key, case in made.cases.items()})
    case = after.cases["operators float32 8x4x4"]
    case.times = {
        "forward": {**case.times["forward"], "corrupt": dict.fromkeys(("median", "low", "high"), 6e-3)}
    }
    rows = {(row[0], row[2]): row[3:] for row in compare(made, after).rows}
    assert rows["operators float32 8x4x4", "corrupt"] == ["2.00", "1.50", "0.750", "faster"]
    assert rows["operators float32 16x4x4", "encode"] == ["4.00", "4.00", "1.000", ""]
