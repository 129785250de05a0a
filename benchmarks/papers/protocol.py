"""Recipes, and the run that fills a recipe's table: seed by seed, resumable, within a time budget.

The rows of a table are trained on the training part alone: :attr:`Recipe.fit` never sees other rows and
returns a function that measures the trained model; it is called once, on the test part. Settings are
chosen with ``validate``, which holds out a sixth of the training rows in its place and leaves the test
part unread.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastae import __version__
from fastae.files import write_whole
from fastae.train import Dataset, load_dataset
from fastae.train.data import Rows, split

MNIST = "78971aaf9950186c"  # how the fingerprint of its training rows begins
VALIDATION_SHARE = 1 / 6
SMALL = 10_000  # data with fewer training rows than this are for smoke tests

Measure = Callable[[Rows], dict[str, float]]
"""Figures of a trained model, by their keys, on rows that it was not trained on."""


@dataclass(frozen=True)
class Figure:
    """A column: the key of what is measured, its name with its unit, and how it is printed."""

    key: str
    title: str
    format: str = "{:.2f}"


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, what it is trained with, and its published figures by key."""

    name: str
    settings: Any
    theirs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A table of the literature.

    Attributes:
        title, source: of the table and of what published it.
        rows, figures: of the table; the first figure is the one that settings are chosen by.
        fit: takes a row's settings, data without a test part and a seed; returns the trained model's measure.
        shrink: a row's settings, fit for a smoke test on small data.
        differences: between the published protocol and ours, in words.
        train_rows: number of training rows to use, the first ones; all by default.
        make: the data, where the recipe makes its own.
    """

    title: str
    source: str
    rows: tuple[Row, ...]
    figures: tuple[Figure, ...]
    fit: Callable[[Any, Dataset, int], Measure]
    shrink: Callable[[Any], Any]
    differences: tuple[str, ...]
    train_rows: int | None = None
    make: Callable[[], Dataset] | None = None


@dataclass(frozen=True)
class Problem:
    """The rows to train on and those to measure on.

    Attributes:
        name: of the data.
        published: whether these are the data of the published table.
        train: data without a test part.
        small: whether they are fit for a smoke test only.
        held_out: the test part, or the held-out training rows of a validation.
    """

    name: str
    published: bool
    small: bool
    train: Dataset
    held_out: Rows

    @classmethod
    def make(cls, recipe: Recipe, data: str | None, validate: bool) -> Problem:
        """Raises ``ValueError`` or ``DataError`` for data that the recipe cannot be run on."""
        if (data is None) != (recipe.make is not None):
            raise ValueError("data: is made by this recipe" if data else "data: a name or path is needed")
        whole = load_dataset(data) if data is not None else recipe.make()  # pyright: ignore[reportOptionalCall]
        if whole.test is None or (recipe.make is None and whole.test.labels is None):
            raise ValueError(f"data: {whole.name} needs a test part with labels")
        rows = whole.train
        published = recipe.make is not None or rows.sample_fingerprint().startswith(MNIST)
        if recipe.train_rows is not None:
            rows = rows.subset(slice(0, recipe.train_rows))
        held_out = whole.test
        if validate:
            rows, held_out = split(rows, VALIDATION_SHARE, 0)
        small = not published and len(whole.train) < SMALL
        return cls(whole.name, published, small, replace(whole, train=rows, test=None), held_out)


@dataclass(frozen=True)
class Result:
    """One trained row of the table: its figures, and the seconds it took of wall clock and of processors."""

    row: str
    seed: int
    settings: dict[str, Any]
    figures: dict[str, float]
    seconds: float
    cpu_seconds: float


@dataclass
class Report:
    """The results of a run; :attr:`left_out` names rows and seeds that it had no time for."""

    recipe: Recipe
    problem: Problem
    rows: tuple[Row, ...]
    validate: bool
    results: list[Result] = field(default_factory=list)
    left_out: list[tuple[str, int]] = field(default_factory=list)

    def values(self, row: str, key: str) -> list[float]:
        """A figure of a row for every finished seed."""
        return [result.figures[key] for result in self.results if result.row == row]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the results, their means and deviations, and everything they depend on."""
        summary = {
            row.name: {figure.key: mean_and_deviation(self.values(row.name, figure.key))
                       for figure in self.recipe.figures}
            for row in self.recipe.rows if self.values(row.name, self.recipe.figures[0].key)
        }  # fmt: skip
        return {
            "recipe": self.recipe.title,
            "source": self.recipe.source,
            **self.identity(),
            "rows": {"train": len(self.problem.train.train), "measured": len(self.problem.held_out)},
            "differences": list(self.recipe.differences),
            "theirs": {row.name: dict(row.theirs) for row in self.recipe.rows},
            "environment": {
                "fastae": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
            },
            "summary": summary,
            "results": [asdict(result) for result in self.results],
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Values that all results in one file must share."""
        return {
            "data": self.problem.name,
            "published_data": self.problem.published,
            "fingerprint": self.problem.train.train.sample_fingerprint(),
            "measured_on": "validation rows" if self.validate else "test part",
            "float32_products": torch.get_float32_matmul_precision(),
        }


def mean_and_deviation(values: Sequence[float]) -> list[float | None]:
    """[mean, sample standard deviation]; the latter ``None`` for fewer than two values."""
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def run(
    recipe: Recipe,
    data: str | None,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Sequence[str] = (),
    budget: float = float("inf"),
    validate: bool = False,
    changes: Sequence[str] = (),
    finished: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Train the rows of a table, all of them for the first seed, then for the next.

    Args:
        recipe: the table.
        data: a data set's name or path; ``None`` for a recipe that makes its own.
        out: the JSON file that holds the results so far; results that it already holds are not trained again.
        seeds: each trains every row once.
        rows: names of the rows to train; all by default.
        budget: minutes after which no training starts.
        validate: measure on held-out training rows, and leave the test part alone.
        changes: ``name=value`` for a setting of every row, as in ``supervised.lr=0.01``; to choose settings,
            and so only with ``validate``.
        finished: called with every new result.

    Raises:
        ValueError: an argument that does not fit, or a file of other results, named.
    """
    table = {row.name: row for row in recipe.rows}
    if unknown := [name for name in rows if name not in table]:
        raise ValueError(f"rows: {unknown[0]!r} is not one of {', '.join(table)}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds: must be different whole numbers >= 0, got {list(seeds)}")
    if not budget > 0:
        raise ValueError(f"budget: must be minutes above 0, got {budget!r}")
    if changes and not validate:
        raise ValueError("set: needs validate; settings are chosen on validation rows, not on the test part")
    chosen = [table[name] for name in rows] or list(recipe.rows)
    for change in changes:
        chosen = [replace(row, settings=changed(row.settings, change)) for row in chosen]

    began = time.monotonic()
    problem = Problem.make(recipe, data, validate)
    if problem.small:
        chosen = [replace(row, settings=recipe.shrink(row.settings)) for row in chosen]
    report = Report(recipe, problem, tuple(chosen), validate)
    report.results = read_results(out, report)
    done = {(result.row, result.seed) for result in report.results}
    for seed in seeds:
        for row in chosen:
            if (row.name, seed) in done:
                continue
            if time.monotonic() - began > 60 * budget:
                report.left_out.append((row.name, seed))
                continue
            result = train_row(row, problem, recipe.fit, seed)
            report.results.append(result)
            write_json(out, report.to_dict())
            finished(result)
    if report.results:  # what the file says besides may be newer than its results
        write_json(out, report.to_dict())
    return report


def train_row(row: Row, problem: Problem, fit: Callable[[Any, Dataset, int], Measure], seed: int) -> Result:
    """Fit on the training rows; only then are the held-out rows handed over."""
    wall, cpu = time.monotonic(), time.process_time()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        measure = fit(row.settings, problem.train, seed)
        figures = measure(problem.held_out)
    seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    return Result(row.name, seed, as_json(row.settings), figures, round(seconds, 1), round(cpu_seconds, 1))


# --- settings and files ---------------------------------------------------------------------------------


def changed(settings: Any, change: str) -> Any:
    """Settings with one of them changed, as ``name=value`` or ``part.name=value``; the value is JSON or text.

    Raises:
        ValueError: no such setting.
    """
    path, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"set: expected name=value, got {change!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    name, _, rest = path.partition(".")
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(settings, Mapping) and not rest:
        return {**settings, name: value}
    if not is_dataclass(settings) or isinstance(settings, type):
        raise ValueError(f"set: nothing has the name {path!r}")
    known = [one.name for one in fields(settings)]
    if name not in known:
        raise ValueError(f"set: {name!r} is not one of {', '.join(known)}")
    if rest:
        value = changed(getattr(settings, name), f"{rest}={text}")
    return replace(settings, **{name: value})


def as_json(settings: Any) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def read_results(path: Path, report: Report) -> list[Result]:
    """The results in a file of this report.

    Raises:
        ValueError: it holds something else, or results of other settings.
    """
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        results = [Result(**result) for result in kept["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out: {path} is not a file of results ({error})") from error
    other = [key for key, value in report.identity().items() if kept.get(key) != value]
    if kept.get("recipe") != report.recipe.title or other:
        raise ValueError(f"out: {path} holds results of another {other[0] if other else 'recipe'}")
    settings = {row.name: as_json(row.settings) for row in report.rows}
    for result in results:
        if result.settings != settings.get(result.row, result.settings):
            raise ValueError(f"out: {path} holds results of {result.row!r} with other settings")
    return results


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=2) + "\n")
