"""Tables, fits and pictures, from results that were never measured."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from fastae.bench import pictures
from fastae.bench.providers import FLOOR
from fastae.bench.report import Fit, compare, markdown, points_of, print_sheets, sheets, sweeps
from fastae.bench.results import CaseResult, Results


def test_fit_of_a_line():
    sizes = [1.0, 2.0, 5.0, 9.0]
    fit = Fit.of(sizes, [3.0 + 0.5 * size for size in sizes])
    assert (fit.offset, fit.slope, fit.r_squared) == pytest.approx((3.0, 0.5, 1.0))


def test_fit_of_noise_and_of_a_parabola():
    noise = np.random.default_rng(0).normal(size=400)
    assert Fit.of(range(400), noise).r_squared < 0.05
    x = np.arange(-5.0, 6.0)
    assert Fit.of(x, x**2).r_squared == pytest.approx(0.0, abs=1e-9)
    bent = Fit.of(range(5), [0.0, 1.0, 4.0, 9.0, 16.0])
    assert bent.slope == pytest.approx(4.0) and bent.r_squared == pytest.approx(160 / 174)
    with pytest.raises(ValueError, match=r"^sizes"):
        Fit.of([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])


def test_sweeps_are_found_among_the_cases(results):
    made = results(fastae=2.0)
    cases = [case for case in made.cases.values() if case.group == "sweep"]
    found = dict(sweeps(cases))
    assert {axis: [size for size, _ in line] for axis, line in found.items()} == {
        "M": [2, 4, 8, 16, 32],
        "D": [1, 2, 4, 8, 16],
        "H": [1, 2, 4, 8, 16],
    }
    line = points_of(found["M"], "fastae")
    fit = Fit.of(*zip(*line, strict=True))
    assert (fit.offset, fit.slope) == pytest.approx((2e-6 * 16, 2e-6))  # floor is 1e-6 (8 + M + 4 + 4)
    assert points_of(found["M"], "eager") == []


def test_every_figure_is_on_the_page_and_wrong_ones_are_not(results):
    made = results(fastae=1.25, eager=1.75)
    made.cases["step float32 8x4x4"].errors["eager"] = math.nan
    made.cases["encode float32 8x4x4"].notes["compile"] = "torch.compile does not run here"
    made.cases["encode float32 8x4x4"].rows["eager"] = 2
    made.cases["encode float32 8x4x4"].peak_bytes["fastae"] = 3 << 20
    page = markdown(made)
    step, encode = (page[page.index(f"## {name}") :].split("\n## ")[0] for name in ("Step", "Encode"))
    assert "1.25 ±0.06" in step and "1.75" not in step and "wrong" in step and "off by nan" in step
    assert "1.75 ±0.09" in encode and "torch.compile does not run here (8x4x4)" in encode
    assert "measured on 2 rows" in encode
    assert "| 8x4x4 | 3.0 |" in page
    assert "a machine" in page and "copy 10.0 GB/s, product 100 GFLOP/s" in page

    console = Console(record=True, width=40, file=io.StringIO())
    print_sheets(console, sheets(made))
    text = console.export_text()
    assert "1.75 ±0.09" in text and "…" not in text.replace("2…32", "").replace("1…16", "")
    assert console.width == 40


def test_times_that_vary_are_said_to_tell_little(results):
    made = results(fastae=1.25)
    assert "the machine was busy" not in markdown(made)
    times = made.cases["encode float32 8x4x4"].times["full"]["fastae"]
    times["high"] = 2.0 * times["median"]
    assert markdown(made).count("the machine was busy, and ratios with a large ± tell little (8x4x4)") == 1


@pytest.mark.parametrize(("high", "said"), [(1.1, True), (2.5, False)])
def test_whole_runs_are_compared_only_where_the_difference_is_no_noise(high, said):
    case = CaseResult("stack", "float32", "8-4", 1.0, [FLOOR, "fastae", "script"], 1.0)
    seconds = {FLOOR: (1.0, 1.0, 1.0), "fastae": (0.9, 1.0, high), "script": (1.9, 2.0, 2.1)}
    case.times["full"] = {
        name: dict(zip(("low", "median", "high"), values, strict=True)) for name, values in seconds.items()
    }
    case.errors = dict.fromkeys(seconds, 0.0)
    sheet, *_ = sheets(Results({}, {}, {}, {case.key: case}))
    assert any("takes 2.00 times as long" in remark for remark in sheet.remarks) is said


def test_comparison(results):
    before, after = results(fastae=2.0, eager=3.0, compile=2.0), results(fastae=1.5, eager=3.1)
    after.head["torch"] = "3.0"
    after.cases.pop("encode float32 8x4x4")
    sheet = compare(before, after)
    rows = {(row[0], row[2]): row[3:] for row in sheet.rows}
    assert rows["step float32 8x4x4", "fastae"] == ["2.00", "1.50", "0.750", "faster"]
    assert rows["step float32 8x4x4", "eager"] == ["3.00", "3.10", "1.033", ""]  # within the quartiles
    assert not any(key.startswith("encode") or name == "compile" for key, name in rows)
    assert sheet.remarks == ["torch: None in A, 3.0 in B"]
    after.cases.clear()
    with pytest.raises(ValueError, match=r"^compare"):
        compare(before, after)


def test_pictures(results):
    made = results(fastae=1.25, eager=1.75)
    drawn = pictures.draw(made)
    assert set(drawn) == {"ratios", "roofline-float32", "scaling-float32"}
    assert all(image.startswith(b"\x89PNG") for _, image in drawn.values())
    made.cases = {}
    assert pictures.draw(made) == {}


def test_the_scaling_picture_shows_the_fit(results):
    cases = [case for case in results(fastae=2.0).cases.values() if case.group == "sweep"]
    figure = pictures.scaling(cases, "float32")
    assert [axes.get_xlabel() for axes in figure.axes] == ["rows M", "features D", "units H"]
    for axes in figure.axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["products, R² 1.0000", "fastae, R² 1.0000"]
        assert axes.get_title(loc="left").count("=") == 2


def test_a_dictionary_crosses_over_where_times_are_equal():
    eager = [(256, 1.0), (1024, 4.0), (4096, 16.0)]
    ours = [(256, 2.0), (1024, 4.0), (4096, 8.0)]
    assert pictures.crossover(ours, eager) == pytest.approx(1024.0)
    assert pictures.crossover([(256, 4.0), (1024, 8.0), (4096, 8.0)], eager) == pytest.approx(2048.0)
    assert pictures.crossover(eager, ours) is None and pictures.crossover(ours, []) is None
