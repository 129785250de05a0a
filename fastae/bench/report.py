"""Results as tables, in the terminal and as a Markdown page, and two files of them compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..console import Console, print_table
from . import operators
from .problems import Shape
from .providers import ABOUT, FLOOR
from .results import CaseResult, Results, differences
from .suite import SPARSE, STACK, SWEEP, sweep_shapes

NONE = "-"
_STEADY = 0.25
_UNSTEADY = "times vary by more than a quarter: the machine was busy, and ratios with a large ± tell little"


@dataclass
class Sheet:
    """A table with a title and remarks below it; the first row of cells is the header."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """A straight line through times over a size: seconds = offset + slope * size."""

    offset: float
    slope: float
    r_squared: float

    @classmethod
    def of(cls, sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
        """Least squares; ``ValueError`` for fewer than three sizes, through which any line would go."""
        if len(set(sizes)) < 3:
            raise ValueError(f"sizes: a fit needs at least three, got {sorted(set(sizes))}")
        x, y = np.asarray(sizes, np.float64), np.asarray(seconds, np.float64)
        slope, offset = np.polyfit(x, y, 1)
        residual, total = np.square(y - offset - slope * x).sum(), np.square(y - y.mean()).sum()
        return cls(float(offset), float(slope), float(1.0 - residual / total) if total else 1.0)


def provider_names(cases: Sequence[CaseResult]) -> list[str]:
    """Every provider that was asked for, the floor first."""
    asked = {name for case in cases for name in case.asked}
    return [name for name in ABOUT if name in asked]


def sweeps(cases: Sequence[CaseResult]) -> Iterator[tuple[str, list[tuple[int, CaseResult]]]]:
    """(M, D or H; its values with their cases) of every sweep that has at least three."""
    shapes = {Shape.parse(case.shape): case for case in cases}
    if not shapes:
        return
    bases = [base for base in shapes if all(set(line) <= set(shapes) for line in sweep_shapes(base).values())]
    base = bases[0] if bases else next(iter(shapes))
    for axis, (name, line) in enumerate(sweep_shapes(base).items()):
        points = [(shape[axis], shapes[shape]) for shape in dict.fromkeys(line) if shape in shapes]
        if len(points) >= 3:
            yield name, points


def points_of(points: list[tuple[int, CaseResult]], provider: str) -> list[tuple[int, float]]:
    """(size, median seconds) of one provider, where it was measured and is right."""
    return [
        (size, case.times["full"][provider]["median"])
        for size, case in points
        if case.ratio("full", provider) is not None
    ]


# --- sheets ---------------------------------------------------------------------------------------------


def sheets(results: Results) -> list[Sheet]:
    """All tables of a file of results."""
    found = []
    for group, dtype, cases in results.groups:
        if group == STACK:
            found.append(_run_sheet(dtype, cases))
        elif group == operators.GROUP:
            found.append(_operator_sheet(dtype, cases, results.peaks[dtype]))
        else:
            found.append(_ratio_sheet(group, dtype, cases))
        if group == SWEEP:
            found.append(_fit_sheet(dtype, cases))
        found += [s for s in (_memory_sheet(group, dtype, cases), _call_sheet(group, dtype, cases)) if s.rows]
    return found


def _ratio_sheet(group: str, dtype: str, cases: Sequence[CaseResult]) -> Sheet:
    names = [name for name in provider_names(cases) if name != FLOOR]
    floor = "copy" if group == "corruption" else FLOOR
    floor = "encoder's product" if group == SPARSE else floor
    title = f"{group}, {dtype}: time over that of the {floor}, median ± half the interquartile range"
    sheet = Sheet(title, ["MxDxH", "mode", f"{floor}, ms", *names], remarks=_remarks(cases))
    for case in cases:
        for mode, times in case.times.items():
            cells = [_ratio_cell(case, mode, name) for name in names]
            sheet.rows.append([case.shape, mode, f"{1e3 * times[FLOOR]['median']:.3g}", *cells])
    return sheet


def _ratio_cell(case: CaseResult, mode: str, name: str) -> str:
    ratio = case.ratio(mode, name)
    if ratio is None:
        return "wrong" if case.is_wrong(name) else NONE
    low, high = (case.ratio(mode, name, part) or 0.0 for part in ("low", "high"))
    digits = 2 if ratio < 100 else 0
    return f"{ratio:.{digits}f} ±{(high - low) / 2:.{digits}f}"


def _run_sheet(dtype: str, cases: Sequence[CaseResult]) -> Sheet:
    names = provider_names(cases)
    title = f"whole runs of greedy pretraining, {dtype}: seconds, time over that of the products"
    header = ["run", "provider", "seconds", "ratio", "last losses of the layers"]
    sheet = Sheet(title, header, remarks=_remarks(cases))
    for case in cases:
        for name in names:
            times = case.times.get("full", {}).get(name)
            seconds = NONE if times is None else f"{times['median']:.2f}"
            losses = ", ".join(f"{loss:.2f}" for loss in case.losses.get(name, [])) or NONE
            ratio = case.ratio("full", name)
            shown = "wrong" if case.is_wrong(name) else NONE if ratio is None else f"{ratio:.2f}"
            sheet.rows.append([case.shape, name, seconds, shown, losses])
        ours, theirs = case.ratio("full", "fastae"), case.ratio("full", "script")
        least, most = case.ratio("full", "script", "low"), case.ratio("full", "fastae", "high")
        if ours and theirs and least and most and least > most:  # or the difference may be noise
            sheet.remarks.append(
                f"{case.shape}: the script takes {theirs / ours:.2f} times as long as fastae"
            )
    return sheet


def _operator_sheet(dtype: str, cases: Sequence[CaseResult], peaks: dict[str, float]) -> Sheet:
    title = f"operators of a step, {dtype}: the least time of each, and the share of it in the time"
    rates = ["GB/s", "GFLOP/s", "share of the roofline"]
    header = ["MxDxH", "operator", "MB", "GFLOP", "bound by", "least, ms", "time, ms", *rates]
    sheet = Sheet(title, header, remarks=[*operators.COUNTED, *_remarks(cases)])
    for case in cases:
        for name, (moved, flops) in case.cost.items():
            memory = moved / peaks["bytes_per_second"] >= flops / peaks["flops_per_second"]
            cells = [f"{moved / 1e6:.4g}", f"{flops / 1e9:.4g}", "memory" if memory else "products"]
            cells.append(f"{1e3 * case.least[name]:.3g}")
            ratio = case.ratio("forward", name)
            if ratio is None:
                cells += [NONE, NONE, NONE, "wrong" if case.is_wrong(name) else NONE]
            else:
                times = case.times["forward"][name]
                middle, spread = times["median"], (times["high"] - times["low"]) / 2
                cells.append(f"{1e3 * middle:.3g} ±{1e3 * spread:.1g}")
                cells += [f"{moved / middle / 1e9:.4g}", f"{flops / middle / 1e9:.0f}", f"{1.0 / ratio:.0%}"]
            sheet.rows.append([case.shape, name, *cells])
    return sheet


def _fit_sheet(dtype: str, cases: Sequence[CaseResult]) -> Sheet:
    title = f"how the step's cost grows, {dtype}: straight lines through the times"
    sheet = Sheet(title, ["growing", "over", "provider", "at 0, ms", "slope, µs each", "R²"])
    for axis, points in sweeps(cases):
        for name in provider_names(cases):
            measured = points_of(points, name)
            if len(measured) >= 3:
                fit = Fit.of(*zip(*measured, strict=True))
                sizes = f"{measured[0][0]}…{measured[-1][0]}"
                cells = [f"{1e3 * fit.offset:.3f}", f"{1e6 * fit.slope:.3f}", f"{fit.r_squared:.4f}"]
                sheet.rows.append([axis, sizes, name, *cells])
    return sheet


def _memory_sheet(group: str, dtype: str, cases: Sequence[CaseResult]) -> Sheet:
    names = [name for name in provider_names(cases) if any(name in case.peak_bytes for case in cases)]
    sheet = Sheet(f"{group}, {dtype}: peak memory on top of the inputs, MiB", ["MxDxH", *names])
    for case in cases:
        if case.peak_bytes:
            cells = [f"{case.peak_bytes[n] / 2**20:.1f}" if n in case.peak_bytes else NONE for n in names]
            sheet.rows.append([case.shape, *cells])
    return sheet


def _call_sheet(group: str, dtype: str, cases: Sequence[CaseResult]) -> Sheet:
    names = provider_names(cases)
    title = f"{group}, {dtype}: a call from Python, launches included, ms"
    sheet = Sheet(title, ["MxDxH", "mode", *names])
    for case in cases:
        for mode, called in case.called.items():
            cells = [
                f"{1e3 * called[n]:.3f}" if n in called and not case.is_wrong(n) else NONE for n in names
            ]
            sheet.rows.append([case.shape, mode, *cells])
    return sheet


def _remarks(cases: Sequence[CaseResult]) -> list[str]:
    said: dict[str, list[str]] = {}
    for case in cases:
        for note in dict.fromkeys(case.notes.values()):
            names = ", ".join(name for name in case.notes if case.notes[name] == note)
            said.setdefault(f"{names}: {note}", []).append(case.shape)
        for name in case.errors:
            if case.is_wrong(name):
                said.setdefault(f"{name}: {case.bad[name]}, so it gets no ratio", []).append(case.shape)
        if _is_unsteady(case):
            said.setdefault(_UNSTEADY, []).append(case.shape)
        for name, rows in case.rows.items():
            said.setdefault(f"{name}: measured on {rows} rows, the time scaled to all", []).append(case.shape)
    return [f"{remark} ({', '.join(shapes)})" for remark, shapes in said.items()]


def _is_unsteady(case: CaseResult) -> bool:
    """Whether half the interquartile range of a time is beyond a quarter of its median."""
    spreads = (
        (times["high"] - times["low"]) / 2 / times["median"]
        for measured in case.times.values()
        for times in measured.values()
    )
    return any(spread > _STEADY for spread in spreads)


def compare(a: Results, b: Results) -> Sheet:
    """B's ratios over A's; slower or faster only where the quartile ranges do not overlap.

    Raises:
        ValueError: nothing was measured in both.
    """
    sheet = Sheet("time over its floor in each file", ["case", "mode", "provider", "A", "B", "B / A", ""])
    for key in a.cases.keys() & b.cases.keys():
        one, two = a.cases[key], b.cases[key]
        for mode in one.times:
            for name in (name for name in one.times[mode] if name != FLOOR):
                before, after = one.ratio(mode, name), two.ratio(mode, name)
                if before is None or after is None:
                    continue
                verdict = ""
                if (two.ratio(mode, name, "low") or 0.0) > (one.ratio(mode, name, "high") or 0.0):
                    verdict = "slower"
                elif (two.ratio(mode, name, "high") or 0.0) < (one.ratio(mode, name, "low") or 0.0):
                    verdict = "faster"
                cells = [f"{before:.2f}", f"{after:.2f}", f"{after / before:.3f}", verdict]
                sheet.rows.append([key, mode, name, *cells])
    if not sheet.rows:
        raise ValueError("compare: the two files have no measured case in common")
    sheet.rows.sort()
    changed = differences(a.head, b.head)
    sheet.remarks += [f"{name}: {a.head.get(name)} in A, {b.head.get(name)} in B" for name in changed]
    return sheet


# --- the two forms --------------------------------------------------------------------------------------


def print_sheets(console: Console, found: Sequence[Sheet]) -> None:
    for sheet in found:
        print_table(console, sheet.rows, sheet.header, sheet.title, text=_words(sheet))
        for remark in sheet.remarks:
            console.print(f"  {remark}")
        if sheet.remarks:
            console.print()


def _words(sheet: Sheet) -> set[int]:
    """Columns that are not numbers."""
    named = {
        "MxDxH",
        "mode",
        "run",
        "provider",
        "last losses of the layers",
        "growing",
        "over",
        "case",
        "operator",
        "bound by",
        "",
    }
    return {number for number, name in enumerate(sheet.header) if name in named}


def markdown(results: Results, pictures: Sequence[tuple[str, Path]] = ()) -> str:
    """A page with the machine, every table and the pictures, given with their captions."""
    head = results.head
    lines = [f"# Measured on {head.get('device')}", ""]
    lines += ["| | |", "|---|---|"]
    facts: dict[str, Any] = {**head, **{f"clock, {name}": rate for name, rate in results.clocks.items()}}
    lines += [f"| {name.replace('_', ' ')} | {_cell(str(value))} |" for name, value in facts.items()]
    for dtype, peaks in results.peaks.items():
        copy, product = peaks["bytes_per_second"] / 1e9, peaks["flops_per_second"] / 1e9
        lines.append(f"| measured peaks, {dtype} | copy {copy:.1f} GB/s, product {product:.0f} GFLOP/s |")
    names = provider_names(list(results.cases.values()))
    lines += ["", "Providers:", "", *(f"- `{name}`: {ABOUT[name]}" for name in names)]
    for sheet in sheets(results):
        lines += ["", f"## {sheet.title[0].upper()}{sheet.title[1:]}", ""]
        lines.append("| " + " | ".join(map(_cell, sheet.header)) + " |")
        words = _words(sheet)
        lines.append("|" + "|".join("---" if n in words else "--:" for n in range(len(sheet.header))) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in sheet.rows]
        if sheet.remarks:
            lines += ["", *(f"- {remark}" for remark in sheet.remarks)]
    for caption, path in pictures:
        lines += ["", f"## {caption}", "", f"![{caption}]({path.name})"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
