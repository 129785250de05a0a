"""Files of results: kept whole, never mixed, and clear about what is wrong with one."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastae.bench.results import CaseResult, Results, describe, open_results


def test_written_and_read(results, tmp_path):
    made = results(fastae=1.5)
    made.save(tmp_path / "new" / "r.json")
    assert Results.load(tmp_path / "new" / "r.json") == made
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "cut off"),
        (lambda text: "[]", "format"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "format"),
        (lambda text: text.replace('"cases"', '"other"'), "cases"),
        (lambda text: text.replace('"tolerance"', '"other"', 1), "other"),
    ],
)
def test_a_damaged_file_is_named(change, message, results, tmp_path):
    path = tmp_path / "r.json"
    results(fastae=1.5).save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        Results.load(path)


def test_results_of_another_version_are_kept_beside(results, tmp_path):
    path = tmp_path / "r.json"
    old = results(fastae=1.5)
    old.save(path)
    same, remark = open_results(path, old.head)
    assert same == old and remark is None
    new, remark = open_results(path, {**old.head, "torch": "3.0"})
    assert not new.cases and "torch" in remark and not path.exists()
    (kept,) = tmp_path.iterdir()
    assert Results.load(kept) == old and kept.name in remark


def test_ratios_only_of_what_is_right(results):
    case = results(fastae=1.5, eager=2.0).cases["step float32 8x4x4"]
    assert case.ratio("full", "eager") == pytest.approx(2.0)
    assert case.ratio("full", "eager", "low") == pytest.approx(1.9)
    assert case.ratio("full", "compile") is None and case.ratio("forward", "eager") is None
    for error in (1e-3, math.inf, math.nan):
        case.errors["eager"] = error
        assert case.ratio("full", "eager") is None and set(case.bad) == {"eager"}


def test_what_covers_a_new_measurement():
    case = CaseResult("step", "float32", "8x4x4", 1e-5, ["products", "fastae"], 2.0)
    assert case.covers(["fastae"], 2.0)
    assert not case.covers(["fastae", "eager"], 2.0) and not case.covers(["fastae"], 3.0)
    assert not replace(case, out_of_time=True).covers(["fastae"], 2.0)
    assert not replace(case, errors={"fastae": 1.0}).covers(["fastae"], 2.0)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_the_setting_of_float32_products_is_told(setting: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert describe(torch.device("cpu"))["float32_products"] == setting
    finally:
        torch.set_float32_matmul_precision(before)


def test_settings_that_differ_from_each_other_are_told():
    """torch.get_float32_matmul_precision raises there."""
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        assert describe(torch.device("cpu"))["float32_products"] == "medium"
    finally:
        matmul.fp32_precision = before


def test_the_machine_is_described():
    head = describe(torch.device("cpu"))
    assert json.loads(json.dumps(head)) == head
    assert head["threads"] == torch.get_num_threads() and head["torch"] == torch.__version__
