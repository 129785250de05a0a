"""A report as a table: ours beside theirs, what differs, what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .protocol import Figure, Report, Result, mean_and_deviation


def show(console: Console, report: Report) -> None:
    """Print the table, the protocol's differences and what was left out."""
    recipe, problem = report.recipe, report.problem
    table = Table(
        box=SIMPLE, title=recipe.title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0)
    )
    table.add_column("", no_wrap=True)
    for figure in recipe.figures:
        table.add_column(figure.title, justify="right", no_wrap=True)
        if published(report, figure):
            table.add_column("theirs", justify="right", style="dim", no_wrap=True)
    for name in ("seeds", "min"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        cells = [row.name]
        for figure in recipe.figures:
            cells.append(spread(report.values(row.name, figure.key), figure.format))
            if published(report, figure):
                cells.append(figure.format.format(row.theirs[figure.key]) if figure.key in row.theirs else "")
        results = [result for result in report.results if result.row == row.name]
        minutes = f"{statistics.fmean(r.seconds for r in results) / 60:.1f}" if results else ""
        table.add_row(*cells, str(len(results)), minutes)
    # never cut, also on a narrow terminal
    table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, crop=False)
    measured = "held-out training rows" if report.validate else "rows of the test part"
    notes = [
        f"{problem.name}: {len(problem.train.train):,} rows to train on, measured on "
        f"{len(problem.held_out):,} {measured}; mean ± standard deviation over seeds; "
        "min: minutes of wall clock per seed.",
        *recipe.differences,
    ]
    if not problem.published:
        notes.insert(0, "NOT the data of the published table: nothing here compares with it.")
    if problem.small:
        notes.insert(1, "Settings are scaled down for a smoke test.")
    for row, seed in report.left_out:
        notes.append(f"Left out, as the time was over: {row}, seed {seed}.")
    for note in notes:
        console.print(f"- {note}", highlight=False, markup=False)


def published(report: Report, figure: Figure) -> bool:
    """True if any row of the table has a published value of this figure."""
    return any(figure.key in row.theirs for row in report.recipe.rows)


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation over seeds, as text; empty without values."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return form.format(mean) if deviation is None else f"{form.format(mean)} ± {form.format(deviation)}"


def line(result: Result) -> str:
    """One finished result in one line."""
    figures = ", ".join(f"{key} {value:.4g}" for key, value in result.figures.items())
    return f"{result.row}, seed {result.seed}: {figures} ({result.seconds / 60:.1f} min)"
