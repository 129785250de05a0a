"""Results as pictures: ratios to the floor, rooflines of whole work and of operators, and how cost grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..plots.style import COLOURS, INK, MUTED, new_figure, percent, render, styled
from .operators import GROUP, OPERATORS
from .providers import FLOOR
from .report import Fit, points_of, provider_names, sweeps
from .results import CaseResult, Results
from .suite import SPARSE, STACK, SWEEP

# one colour a family: what is fastae, PyTorch as written, compiled; one marker each
_LOOKS = {
    FLOOR: (MUTED, "_"),
    "fastae": (COLOURS[0], "o"),
    "fastae-compiled": (COLOURS[0], "v"),
    "fused": (COLOURS[0], "^"),
    "split": (COLOURS[0], "s"),
    "graph": (COLOURS[0], "D"),
    "eager": (COLOURS[1], "o"),
    "script": (COLOURS[1], "s"),
    "compile": (COLOURS[2], "o"),
    "max-autotune": (COLOURS[2], "s"),
    "reduce-overhead": (COLOURS[2], "^"),
    "sparsify": (COLOURS[3], "s"),
    "dictionary_learning": (COLOURS[4], "^"),
    "saelens": (COLOURS[5], "D"),
}
_GROUP_MARKERS = {"step": "o", "encode": "s", "reconstruction_loss": "^", "inference": "D"}
_OPERATOR_MARKERS = dict(zip(OPERATORS, "oXs^DvP", strict=True))
_ON_ROOFLINE = ("fastae", "eager", "compile")  # one of each colour: markers distinguish groups there
_COLUMNS = 2


def draw(results: Results) -> dict[str, tuple[str, bytes]]:
    """(caption, PNG) by name, of every picture that there are figures for."""
    figures: dict[str, tuple[str, Figure]] = {}
    panels = [panel for panel in results.groups if panel[0] not in (SWEEP, SPARSE) and any(_shown(panel[2]))]
    if panels:
        figures["ratios"] = ("Times over those of the bare products", ratios(panels))
    for dtype, peaks in results.peaks.items():
        cases = [c for c in results.cases.values() if c.dtype == dtype and c.group in _GROUP_MARKERS]
        roof = peaks["bytes_per_second"], peaks["flops_per_second"]
        if any(_shown(cases)):
            caption = f"Achieved operations and bytes, {dtype}"
            figures[f"roofline-{dtype}"] = (caption, roofline(cases, *roof, dtype))
        cases = [c for c in results.cases.values() if (c.group, c.dtype) == (GROUP, dtype)]
        if any(case.ratio("forward", name) for case in cases for name in case.least):
            caption = f"Operators and the least time of their bytes and operations, {dtype}"
            figures[f"operators-{dtype}"] = (caption, operator_roofline(cases, *roof, dtype))
    for group, dtype, cases in results.groups:
        if group == SWEEP and next(sweeps(cases), None) is not None:
            figures[f"scaling-{dtype}"] = (f"How the step's cost grows, {dtype}", scaling(cases, dtype))
        if group == SPARSE and any(_shown(cases)):
            figures[f"sparse-{dtype}"] = (
                f"A dictionary's step as its latents grow, {dtype}",
                dictionaries(cases, dtype),
            )
    return {name: (caption, render(figure)) for name, (caption, figure) in figures.items()}


def _shown(cases: Sequence[CaseResult]) -> Iterator[tuple[CaseResult, str, str]]:
    """(case, its last mode, provider) of everything that has a ratio and is not the floor."""
    for case in cases:
        mode = next(reversed(case.times), "")
        for name in provider_names(cases):
            if name in _LOOKS and name != FLOOR and case.ratio(mode, name) is not None:
                yield case, mode, name


@styled
def ratios(panels: Sequence[tuple[str, str, list[CaseResult]]]) -> Figure:
    """One panel a group: the median ratio of every provider at every shape, with its quartiles."""
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure("Time over that of the bare products (1 is the floor)", 0.9 + 2.35 * rows)
    dtypes = {dtype for _, dtype, _ in panels}
    for number, (group, dtype, cases) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        names = list(dict.fromkeys(name for _, _, name in _shown(cases)))
        far = [case.ratio(next(reversed(case.times)), "jacobian") for case in cases if case.times]
        for case, mode, name in _shown(cases):
            place = cases.index(case) + 0.7 * ((names.index(name) + 0.5) / len(names) - 0.5)
            low, middle, high = (case.ratio(mode, name, part) or 0.0 for part in ("low", "median", "high"))
            colour, marker = _LOOKS[name]
            axes.errorbar(
                place,
                middle,
                [[middle - low], [high - middle]],
                color=colour,
                marker=marker,
                linewidth=1.2,
                linestyle="",
                markersize=5,
            )
        axes.axhline(1.0, color=INK, linewidth=1.0)
        axes.set_ylim(bottom=0.9 if axes.get_ylim()[0] > 0.9 else None)
        axes.set_xticks(range(len(cases)), [_short(case, len(cases) * columns) for case in cases])
        axes.set_xlim(-0.6, len(cases) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        title = group.replace("_", " ") + (f", {dtype}" if len(dtypes) > 1 else "")
        title += {STACK: ": a whole run"}.get(group, "") or f": {next(reversed(cases[0].times), '')}"
        floor = "copy" if group == "corruption" else "products"
        axes.set_title(title + "".join(f" (true Jacobian: {value:.0f})" for value in far if value))
        axes.set(ylabel=f"time / {floor}", xlabel="run" if group == STACK else "MxDxH")
    _legend(figure, [name for _, _, cases in panels for _, _, name in _shown(cases)])
    return figure


_ABREAST = 6
"""Shapes beside each other whose names find place in one line."""


def _short(case: CaseResult, abreast: int) -> str:
    if case.group == STACK:
        return case.shape.replace(" ", "\n", 1)
    return case.shape if abreast <= _ABREAST else case.shape.replace("x", "\nx")


def _legend(figure: Figure, used: Sequence[str]) -> None:
    names = [name for name in _LOOKS if name in used]
    handles = [
        figure.axes[0].plot([], [], color=_LOOKS[n][0], marker=_LOOKS[n][1], linestyle="", label=n)[0]
        for n in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))


@styled
def roofline(cases: Sequence[CaseResult], bandwidth: float, arithmetic: float, dtype: str) -> Figure:
    """Operations per second over operations per byte, both of the bare products, below the measured roof."""
    figure = new_figure(f"Roofline, {dtype}: the products' operations in the time of the whole work", 4.4)
    axes = figure.add_subplot()
    drawn: set[str] = set()
    groups: list[str] = []
    spots: list[float] = []
    shown = [point for point in _shown(cases) if point[2] in _ON_ROOFLINE]
    for case, mode, name in [*shown, *_floors(cases)]:
        moved, operations = case.cost[mode]
        seconds = case.times[mode][name]["median"]
        colour, _ = _LOOKS[name]
        marker = _GROUP_MARKERS[case.group]
        axes.plot(
            operations / moved,
            operations / seconds,
            marker,
            color=colour,
            markersize=6,
            alpha=0.85,
            fillstyle="none" if name == FLOOR else "full",
            zorder=3 if name == "fastae" else 2,
        )
        spots.append(operations / moved)
        drawn.add(name)
        groups += [case.group] if case.group not in groups else []
    _roof(axes, spots, bandwidth, arithmetic)
    axes.set(xlabel="operations per byte, of the bare products", ylabel="operations per second")
    axes.set_title(_measured(bandwidth, arithmetic))
    handles = [
        axes.plot(
            [],
            [],
            color=_LOOKS[n][0],
            marker="o",
            linestyle="",
            label=n,
            fillstyle="none" if n == FLOOR else "full",
        )[0]
        for n in _LOOKS
        if n in drawn
    ] + [
        axes.plot([], [], color=MUTED, marker=_GROUP_MARKERS[g], linestyle="", label=g.replace("_", " "))[0]
        for g in groups
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _roof(axes: Axes, spots: Sequence[float], bandwidth: float, arithmetic: float) -> None:
    """The measured peaks as a line, and axes for points at intensities ``spots`` below it."""
    ridge = arithmetic / bandwidth
    x = np.geomspace(min(*spots, ridge) / 3.0, max(*spots, ridge) * 3.0, 200)
    axes.plot(x, np.minimum(arithmetic, bandwidth * x), color=INK, linewidth=1.4)
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))


def _measured(bandwidth: float, arithmetic: float) -> str:
    return f"measured: product {_rate(arithmetic)}, copy {_rate(bandwidth, 'B/s')}"


def _floors(cases: Sequence[CaseResult]) -> Iterator[tuple[CaseResult, str, str]]:
    for case in cases:
        mode = next(reversed(case.times), "")
        if FLOOR in case.times.get(mode, {}):
            yield case, mode, FLOOR


def _rate(value: float, unit: str = "FLOP/s") -> str:
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


@styled
def operator_roofline(cases: Sequence[CaseResult], bandwidth: float, arithmetic: float, dtype: str) -> Figure:
    """Operators with products below the measured roof; of all, the share of the roof that they reach."""
    figure = new_figure(f"Operators of a step below the roof that was measured, {dtype}", 4.2)
    under, shares = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
    names = list(dict.fromkeys(name for case in cases for name in case.least))
    spots: list[float] = []
    for case, colour in zip(cases, itertools.cycle(COLOURS), strict=False):
        for name in names:
            parts = [case.ratio("forward", name, part) for part in ("high", "median", "low")]
            if None in parts:
                continue
            low, middle, high = (1.0 / ratio for ratio in parts if ratio)
            marker, row = _OPERATOR_MARKERS[name], names.index(name)
            row += 0.6 * ((cases.index(case) + 0.5) / len(cases) - 0.5)
            shares.errorbar(
                middle,
                row,
                None,
                [[middle - low], [high - middle]],
                color=colour,
                marker=marker,
                linewidth=1.2,
                markersize=5,
            )
            moved, flops = case.cost[name]
            if flops:
                spots.append(flops / moved)
                achieved = flops / case.times["forward"][name]["median"]
                under.plot(spots[-1], achieved, marker, color=colour, markersize=5.5, alpha=0.85)
    if spots:
        _roof(under, spots, bandwidth, arithmetic)
    under.set(xlabel="operations per byte", ylabel="operations per second")
    under.set_title(_measured(bandwidth, arithmetic))
    shares.axvline(1.0, color=INK, linewidth=1.4)
    shares.set(xlim=(0, None), ylim=(len(names) - 0.5, -0.5), xlabel="least time by the roofline / time")
    shares.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    shares.grid(axis="y", visible=False)
    shares.xaxis.set_major_locator(MaxNLocator(5))
    percent(shares.xaxis)
    shares.set_title("share of the roofline")
    handles = [
        shares.plot([], [], color=colour, marker="", linewidth=4.0, label=case.shape)[0]
        for case, colour in zip(cases, itertools.cycle(COLOURS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled
def scaling(cases: Sequence[CaseResult], dtype: str) -> Figure:
    """One panel each for M, D and H: medians, and a straight line through them with its R²."""
    lines = list(sweeps(cases))
    figure = new_figure(f"A training step as one size grows, {dtype}", 4.0)
    meanings = {"M": "rows M", "D": "features D", "H": "units H"}
    for number, (axis, points) in enumerate(lines, 1):
        axes: Axes = figure.add_subplot(1, len(lines), number)
        for name in provider_names(cases):
            measured = points_of(points, name)
            if name not in _LOOKS or len(measured) < 3:
                continue
            sizes, seconds = (np.array(values) for values in zip(*measured, strict=True))
            fit = Fit.of(sizes.tolist(), seconds.tolist())
            colour, marker = _LOOKS[name]
            marker = "o" if name == FLOOR else marker
            axes.plot(sizes, 1e3 * seconds, marker, color=colour)
            ends = np.array([0.0, sizes.max()])
            axes.plot(
                ends,
                1e3 * (fit.offset + fit.slope * ends),
                color=colour,
                linewidth=1.2,
                marker="",
                label=f"{name}, R² {fit.r_squared:.4f}",
            )
        axes.set(xlabel=meanings[axis], xlim=(0, None), ylim=(0, None))
        axes.set_title(_fixed(axis, points[0][1]))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if number == 1:
            axes.set_ylabel("time of a step, ms")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    return figure


@styled
def dictionaries(cases: Sequence[CaseResult], dtype: str) -> Figure:
    """Medians over the number of latents, and where selecting becomes faster than dense products."""
    names = [name for name in provider_names(cases) if name in _LOOKS]
    lines = {name: sorted(_latents(cases, name)) for name in names}
    peaks: dict[str, list[tuple[int, float]]] = {
        name: sorted((int(c.shape.split("x")[2]), c.peak_bytes[name]) for c in cases if name in c.peak_bytes)
        for name in names
    }
    panels = [("time of a step", _seconds, LogLocator(10, subs=(1.0, 3.0)), lines)]
    if any(peaks.values()):
        panels.append(("memory of a step, beyond its inputs", _bytes, LogLocator(4), peaks))
    figure = new_figure(f"A step of a dictionary as its latents grow, {dtype}", 3.9)
    for number, (label, unit, locator, series) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, points in series.items():
            if points:
                sizes, values = zip(*points, strict=True)
                colour, marker = _LOOKS[name]
                width, above = (2.6, 3) if name == "fastae" else (1.4, 2)
                axes.plot(
                    sizes,
                    values,
                    marker="o" if name == FLOOR else marker,
                    color=colour,
                    linewidth=width,
                    zorder=above,
                )
        if number == 1 and (place := crossover(lines.get("fastae", []), lines.get("eager", []))):
            axes.axvline(place, color=INK, linewidth=1.0, linestyle=":")
            label = f"time of a step; below eager's from {place:,.0f}"
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(label)
        sizes = sorted({size for points in series.values() for size, _ in points})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.yaxis.set_major_locator(locator)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: unit(value)))
        axes.minorticks_off()
        axes.set_xlabel("latents")
    handles = [
        figure.axes[0].plot([], [], color=_LOOKS[n][0], marker=_LOOKS[n][1], label=n)[0] for n in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1.0 else f"{1e3 * value:g} ms"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"


def _latents(cases: Sequence[CaseResult], name: str) -> Iterator[tuple[int, float]]:
    """(latents, median seconds) of a provider, where it was measured and is right."""
    for case in cases:
        if case.ratio("full", name) is not None:
            yield int(case.shape.split("x")[2]), case.times["full"][name]["median"]


def crossover(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> float | None:
    """The size from which ``ours`` stays below, by logarithms between two measured ones; or ``None``."""
    times = dict(theirs)
    gaps = [(math.log(size), math.log(value / times[size])) for size, value in ours if size in times]
    for (low, above), (high, below) in reversed(list(itertools.pairwise(gaps))):
        if below >= 0.0:
            return None
        if above >= 0.0:
            return math.exp(low + (high - low) * above / (above - below))
    return None


def _fixed(axis: str, case: CaseResult) -> str:
    sizes = zip("MDH", case.shape.split("x"), strict=True)
    return ", ".join(f"{name} = {size}" for name, size in sizes if name != axis)
