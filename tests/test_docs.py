"""The pages agree with the code and with each other: links, pictures, tables of names."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from fastae.activations import ACTIVATIONS
from fastae.corruption import CORRUPTIONS
from fastae.losses import LOSSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
API = sorted((DOCS / "api").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_picture_is_shown_and_small():
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in links(page.read_text(encoding="utf-8"))
    }
    pictures = list((DOCS / "images").iterdir())
    assert set(pictures) <= shown
    sizes = [picture.stat().st_size for picture in pictures]
    assert max(sizes) < 120_000 and sum(sizes) < 600_000


def test_readme_shows_on_a_package_index():
    """An index has no files of a checkout, so no picture and no link may need one."""
    assert "![" not in README and "<img" not in README
    assert not [link for link in links(README) if not link.startswith("https://")]
    for path in re.findall(r"`((?:docs|benchmarks|examples)[\w/.-]*|[A-Z]+\.md)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "row, names", [("Activations", ACTIVATIONS), ("Losses", LOSSES), ("Corruption", CORRUPTIONS)]
)
def test_readme_lists_everything_that_can_be_chosen(row: str, names: dict[str, object]):
    (text,) = re.findall(rf"^\| {row} \| (.*) \|$", README, re.MULTILINE)
    assert set(names) <= set(re.findall(r"\w+", text))


def test_api_reference_has_every_public_name():
    pytest.importorskip("matplotlib")
    listed = set(
        re.findall(r"^::: fastae\.(?:\w+\.)*(\w+)$", "\n".join(map(Path.read_text, API)), re.MULTILINE)
    )
    for name in ("fastae", *(f"fastae.{part}" for part in ("nn", "sparse", "train", "diagnostics", "plots"))):
        module = importlib.import_module(name)
        public = {n for n in module.__all__ if n[0] != "_" and not inspect.ismodule(getattr(module, n))}
        assert public <= listed, name
