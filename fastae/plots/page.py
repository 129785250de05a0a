"""One HTML page of pictures and tables that needs nothing but itself: no script, network or other file."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes with what stands around it; ``name`` is its anchor and file name."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``folded`` away until asked for, ``numbers`` to the right."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: bool = True
    folded: bool = False


def render_page(title: str, subtitle: str, pictures: Sequence[Picture], tables: Sequence[Table]) -> str:
    """The page: unfolded tables, pictures, folded tables. All text is escaped."""
    contents = "".join(f'<li><a href="#{escape(p.name)}">{escape(p.title)}</a></li>' for p in pictures)
    above = "".join(_table(table) for table in tables if not table.folded)
    below = "".join(_table(table) for table in tables if table.folded)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n<nav aria-label="Pictures">'
        f"<ul>{contents}</ul></nav>\n{above}{''.join(_figure(p) for p in pictures)}{below}"
        "</main>\n</body>\n</html>\n"
    )


def _figure(picture: Picture) -> str:
    # the picture shows its title itself; the heading is for those who do not see it
    width, height = struct.unpack(">II", picture.png[16:24])  # of the IHDR chunk, which comes first
    source = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<section id="{escape(picture.name)}"><h2 class="unseen">{escape(picture.title)}</h2>\n<figure>'
        f'<img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt)}"><figcaption>{escape(picture.caption)}</figcaption></figure></section>\n'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in table.rows
    )  # fmt: skip
    kind = "numbers" if table.numbers else "text"
    body = (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if table.folded:
        return f"<section><details><summary>{escape(table.title)}</summary>{body}</details></section>\n"
    return f"<section><h2>{escape(table.title)}</h2>{body}</section>\n"


_CSS = """
:root { --page: #f6f8fa; --card: #fff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0; --link: #0550ae }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --card: #161b22; --ink: #e6edf3; --muted: #9aa5b1; --line: #30363d;
    --link: #79b8ff }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 0 0 .8rem }
header p, figcaption { color: var(--muted) }
header p { margin: 0 0 1rem; overflow-wrap: anywhere }
a { color: var(--link) }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: 0 0 1.5rem; padding: 0 }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1.1rem 1.2rem;
  margin: 0 0 1.2rem }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
figure { margin: 0 }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px }
figcaption { margin-top: .7rem; font-size: .95rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top }
th { font-weight: 600; white-space: nowrap }
tbody th { font-weight: 400; white-space: normal }
.numbers td { white-space: nowrap }
.numbers td, .numbers thead th:not(:first-child) { text-align: right }
.text td { overflow-wrap: anywhere }
summary { cursor: pointer; font-weight: 600 }
details[open] summary { margin-bottom: .8rem }
@media print { section { break-inside: avoid; border-color: #ccc } nav { display: none } }
"""
