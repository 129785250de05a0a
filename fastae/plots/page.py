"""One HTML page of pictures, tables and things to explore, which needs no network and no other file."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from ..optional import require
from .style import DARK, NARROW


@dataclass(frozen=True)
class Picture:
    """A picture with the words around it: SVG files for a wide page and, of :data:`NARROW`, for a phone.

    ``name`` is its anchor and the name of its file.
    """

    name: str
    title: str
    caption: str
    alt: str
    wide: bytes
    narrow: bytes


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``folded`` away until asked for, ``numbers`` to the right.

    ``meanings`` explains names of the table, in a list that unfolds below it.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: bool = True
    folded: bool = False
    meanings: Mapping[str, str] = field(default_factory=dict)


def render_page(
    title: str,
    subtitle: str,
    pictures: Sequence[Picture],
    tables: Sequence[Table],
    *,
    facts: Mapping[str, str] | None = None,
    explore: Mapping[str, Any] | None = None,
) -> str:
    """The page: facts, unfolded tables, what can be explored, pictures, folded tables. All text is escaped.

    Args:
        title, subtitle: of the page.
        pictures, tables: in the order of the page.
        facts: names and values of a line below the title, as the seed.
        explore: data of :func:`fastae.plots.explore.explore`; the page is one of pictures without.

    Raises:
        MissingPackageError: ``explore`` is given, and plotly is not installed.
    """
    anchors = {picture.name: picture.title for picture in pictures}
    links = ({"explore": "Explore", "units": "Units"} if explore else {}) | anchors
    contents = "".join(
        f'<li><a href="#{escape(name)}">{escape(text)}</a></li>' for name, text in links.items()
    )
    stated = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in (facts or {}).items())
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n',
            f"<title>{escape(title)}</title>\n<style>{_css()}</style>\n</head>\n<body>\n<main>\n",
            f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n",
            f'<dl class="facts">{stated}</dl>\n' if stated else "",
            f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n',
            *(_table(table) for table in tables if not table.folded),
            _asset("explore.html") if explore else "",
            *(_figure(picture) for picture in pictures),
            *(_table(table) for table in tables if table.folded),
            '</main>\n<dialog id="zoom" aria-label="Enlarged picture"><form method="dialog">',
            "<button>Close</button></form><div></div></dialog>\n",
            _data(explore) if explore else "",
            f"<script>{_asset('report.js')}</script>\n",
            f"<script>{_asset('explore.js')}</script>\n" if explore else "",
            "</body>\n</html>\n",
        ]
    )


def inline_svg(content: bytes, prefix: str) -> str:
    """An SVG file of matplotlib's as a part of a page.

    Its ids begin with ``prefix``, so that those of several pictures differ, colours of :data:`DARK` are
    variables with the light colour as default, and coordinates have two decimals.
    """
    svg = content.decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(photo[^"]*)"', r' class="photo" id="\1"', svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match.group()), svg)
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group()), svg)
    return re.sub(r"(<svg [^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"", r"\1", svg, count=1)


def _variable(colour: str) -> str:
    return f"var(--c{colour[1:]},{colour})" if colour in DARK else colour


def _figure(picture: Picture) -> str:
    # the picture shows its title itself; the heading is for those who do not see it
    name, drawn = escape(picture.name), ""
    for kind, content in (("wide", picture.wide), ("narrow", picture.narrow)):
        svg = inline_svg(content, f"{name}-{kind}")
        label = f'<svg class="{kind}" role="img" aria-label="{escape(picture.alt)}" '
        drawn += svg.replace("<svg ", label, 1) + "\n"
    return (
        f'<section id="{name}"><h2 class="unseen">{escape(picture.title)}</h2>\n<figure>'
        f'<div class="picture">{drawn}</div><figcaption>{escape(picture.caption)} '
        f'<button type="button" class="enlarge">Enlarge</button></figcaption></figure></section>\n'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in table.rows
    )
    kind = "numbers" if table.numbers else "text"
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
    )
    if len(table.header) > 3:
        body += '<p class="hint" aria-hidden="true">Swipe the table for more columns →</p>'
    if table.meanings:
        meanings = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in table.meanings.items()
        )
        body += f"<details><summary>What these mean</summary><dl>{meanings}</dl></details>"
    if table.folded:
        return f"<section><details><summary>{escape(table.title)}</summary>{body}</details></section>\n"
    return f"<section><h2>{escape(table.title)}</h2>{body}</section>\n"


def _data(explore: Mapping[str, Any]) -> str:
    """The scripts' input: the data, and plotly.js compressed to a third of its size."""
    # "<" could end the element, and is written as JSON allows
    values = json.dumps(explore, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="explore-data">{values}</script>\n'
        f'<script type="text/plain" id="plotly">{_plotly()}</script>\n'
    )


@cache
def _plotly() -> str:
    source = require("plotly.offline", "report.html", "report").get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode("ascii")


def _css() -> str:
    night = "; ".join(f"--c{light[1:]}: {dark}" for light, dark in DARK.items())
    width = round(NARROW * 96)
    return _asset("report.css").replace("/* dark colours */", night).replace("/* narrow */", f"{width}px")


@cache
def _asset(name: str) -> str:
    return files(__name__.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")
