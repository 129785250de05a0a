"""The report in a browser: what can be explored, enlarged and read on a phone and in the dark."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api")

from fastae.cli import main  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """Reports of a run on images with labels and of one on a table without."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    header = ",".join(f"column {n}" for n in range(5))
    np.savetxt(folder / "table.csv", random.normal(size=(300, 5)), header=header, delimiter=",", comments="")
    for name, options in {
        "images": "--sizes 64 12 6",
        "table": f"--data {folder / 'table.csv'} --sizes 5 3",
    }.items():
        train = f"train {options} --pretrain.epochs 2 --no-tensorboard --device cpu --out {folder / name}"
        assert main(shlex.split(train)) == 0
        assert main(shlex.split(f"plot {folder / name} --formats png --rows 60 --projection pca")) == 0
    return {name: folder / name / "plots" / "report.html" for name in ("images", "table")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, reports):
    """Opens a report; at the end there was no error, no message and no request but for the file."""
    faults: list[str] = []
    contexts = []

    def opened(name: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        address = reports[name].as_uri()
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", "blob:", address)) or faults.append(request.url),
        )
        page.goto(address)
        page.wait_for_selector("html[data-explore=ready]", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


@pytest.mark.parametrize("name", ["images", "table"])
def test_rows_units_and_curves_answer(open_page, name):
    page = open_page(name)
    assert page.inner_text("#row p").startswith("row 0")
    page.locator("#map").scroll_into_view_if_needed()
    point = page.locator("#map .scatterlayer .point").nth(7).bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_function("document.getElementById('row').dataset.row !== '0'")
    assert page.locator("#row .tile" if name == "images" else "#row tr").count() == (
        2 if name == "images" else 6
    )

    page.fill("#find", "2")
    assert page.locator("#unit-list button").count() == 1
    assert page.get_attribute("#unit", "data-unit") == "2"
    assert page.locator("#unit .histogram rect").count() == 24
    assert page.locator("#strongest button").count() == 12
    page.locator("#strongest button").nth(3).click()
    assert page.get_attribute("#row", "data-row") == page.locator("#strongest button").nth(3).get_attribute(
        "data-row"
    )
    page.get_by_text("Colour the map by it").click()
    assert page.input_value("#map-colour").startswith("unit.0.")
    page.fill("#find", "")
    page.select_option("#order", "number")
    assert page.locator("#unit-list button").nth(0).inner_text() == "1"

    lines = page.locator("#curves .scatterlayer .trace")
    assert lines.count() == 2
    page.get_by_label("validation", exact=True).uncheck()
    assert lines.count() == 1
    page.get_by_label("logarithmic").check()


def test_pictures_open_and_close(open_page):
    page = open_page("images")
    page.locator("#errors .picture").click()
    assert page.locator("#zoom svg").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('#zoom svg').length === 0")
    assert page.locator("#errors svg.wide").is_visible()


@pytest.mark.parametrize("name", ["images", "table"])
def test_a_phone_shows_narrow_pictures_and_does_not_scroll_sideways(open_page, name):
    page = open_page(name, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#codes svg.narrow").is_visible() and not page.locator("#codes svg.wide").is_visible()
    # pixels per unit of the drawing, in points: its smallest text has 8
    scale = page.evaluate(
        "(() => { const svg = document.querySelector('#codes svg.narrow');"
        " return svg.getBoundingClientRect().width / svg.viewBox.baseVal.width })()"
    )
    assert 8.0 * scale >= 10.5
    assert page.locator(".hint").first.is_visible()


LEAST_CONTRAST = """() => {
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, base) => base.map((value, k) => top[k] * top[3] + value * (1 - top[3]));
  const luminance = rgb => rgb.map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0.05);
  let least = 21;
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!text || element.closest("svg") || !element.checkVisibility()) continue;
    const parents = [];
    for (let e = element; e; e = e.parentElement) parents.unshift(rgba(getComputedStyle(e).backgroundColor));
    const paper = parents.reduce((base, top) => over(top, base), [255, 255, 255]);
    const pair = [luminance(paper), luminance(over(rgba(getComputedStyle(element).color), paper))];
    least = Math.min(least, Math.max(...pair) / Math.min(...pair));
  }
  return least;
}"""
"""The least contrast of visible text outside of drawings, by WCAG 2."""


def test_pictures_are_dark_on_a_dark_page_and_texts_can_be_read(open_page):
    def paper(scheme: str) -> str:
        page = open_page("images", color_scheme=scheme)
        assert 4.5 <= page.evaluate(LEAST_CONTRAST) < 21.0
        return page.evaluate(
            "getComputedStyle(document.querySelector('#codes svg.wide #codes-wide-patch_1 path')).fill"
        )

    assert paper("light") == "rgb(255, 255, 255)"
    assert paper("dark") == "rgb(22, 27, 34)"
