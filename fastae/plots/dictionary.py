"""The pictures of a trained dictionary of sparse codes, and the words that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from ..nn import SparseAutoencoder
from .arrays import ImageShape, image_shape, spread
from .curves import learning_curves
from .run import Drawing
from .style import COLOURS, INK, columns_of, new_figure, percent, set_heading, styled
from .tiles import latent_rows

_LATENTS, _STRONGEST = 12, 8
_BINS = 40


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary and the rows it is drawn on.

    Attributes:
        sae: in evaluation mode.
        x: rows [N, D], as the dictionary takes them.
        shape: shape of one row, as (28, 28).
        history: the rows of the run's log; may be empty.
        feature_names: of the columns, [D], where the rows are those of a table.
        figures: the evaluation's; ``l0`` and ``fvu``.
        points: (active latents per row, FVU) of truncated codes.
    """

    sae: SparseAutoencoder
    x: Tensor
    shape: Sequence[int] = ()
    history: Sequence[Mapping[str, Any]] = ()
    feature_names: Sequence[str] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[tuple[float, float]] = ()

    @property
    def form(self) -> ImageShape | None:
        """The layout of rows as images; ``None`` for a table."""
        return None if self.feature_names else image_shape(self.x.shape[1], self.shape)

    @cached_property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values, rows and latents of all active entries, [E] each."""
        with torch.no_grad():
            code = self.sae.encode(self.x)
        if code.offsets is None:
            counts = torch.full((len(self.x),), code.values.shape[1], device=self.x.device)
        else:
            counts = code.offsets.diff()
        values, latents = code.values.flatten().float(), code.indices.flatten()
        rows = torch.arange(len(self.x), device=self.x.device).repeat_interleave(counts)
        kept = values > 0
        return values[kept], rows[kept], latents[kept]

    @cached_property
    def frequency(self) -> Tensor:
        """The share of rows in which each latent is active, [H]."""
        return torch.bincount(self.entries[2], minlength=self.sae.code_features) / max(len(self.x), 1)

    def strongest(self) -> tuple[Tensor, Tensor]:
        """Latents [L] from the most to the least often active, and the rows [L, R] that activate them most.

        -1 stands for the rows that a latent which is active in fewer lacks.
        """
        values, rows, latents = self.entries
        used = (self.frequency > 0).nonzero().flatten()
        used = used[self.frequency[used].argsort(descending=True, stable=True)]
        chosen = used[torch.from_numpy(spread(len(used), _LATENTS)).to(used.device)]
        found = []
        for latent in chosen:
            own = latents == latent
            ordered = rows[own][values[own].argsort(descending=True, stable=True)][:_STRONGEST]
            found.append(F.pad(ordered, (0, _STRONGEST - len(ordered)), value=-1))
        return chosen, torch.stack(found)


def draw(subject: Dictionary) -> Iterator[Drawing]:
    """Every picture that there is something for, in the order of a page."""
    history = [_terms(row) for row in subject.history]
    try:
        learning_curves(history)
    except ValueError:  # no log
        pass
    else:
        yield Drawing(
            "learning-curves",
            "Learning curves",
            "The total and the reconstruction's squared error, summed over features, means over the epoch.",
            "Curves of the loss over epochs.",
            lambda: learning_curves(history),
        )
    if len(subject.entries[0]):
        yield _latents(subject)
        yield _activations(subject)
    if subject.points:
        yield _frontier(subject)


def _terms(row: Mapping[str, Any]) -> dict[str, Any]:
    terms = {f"train_{name}": row.get(name) for name in ("total", "reconstruction")}
    return {"stage": "dictionary", "epoch": row.get("epoch"), **terms}


def _latents(subject: Dictionary) -> Drawing:
    latents, rows = subject.strongest()
    directions = subject.sae.decoder.weight.detach()[latents].float()
    labels = [f"{int(j)}: {100 * float(subject.frequency[j]):.2g} %" for j in latents]
    title, caption = "Latents", "The decoder row of each latent"
    images = subject.form is not None and directions.shape[1] == subject.x.shape[1]
    examples = None
    if images:
        title += " and the rows that activate them most"
        caption += ", and the rows in which its activation is largest, where there are so many"
        examples = torch.where((rows < 0)[..., None], subject.x.min(), subject.x[rows])
    return Drawing(
        "latents",
        title,
        f"{caption}. Latents are numbered, with the share of rows that they are active in; they are evenly "
        "spread from the most to the least often active.",
        f"{len(latents)} latents{' beside the rows that activate them most' if images else ''}.",
        lambda: latent_rows(
            directions,
            examples,
            labels,
            shape=subject.shape,
            names=subject.feature_names,
            title=title,
        ),
    )


def _activations(subject: Dictionary) -> Drawing:
    values, frequency = subject.entries[0].cpu().numpy(), subject.frequency.cpu().numpy()
    silent = int((frequency == 0).sum())
    return Drawing(
        "activations",
        "Activations",
        f"Values of all active entries, and how often latents are active; {silent} of {len(frequency)} are "
        f"active in none of {len(subject.x)} rows.",
        "Histograms of the activations' values and of the latents' frequencies.",
        lambda: activations(values, frequency),
    )


def _frontier(subject: Dictionary) -> Drawing:
    points, own = subject.points, (subject.figures["l0"], subject.figures["fvu"])
    stated = ", ".join(f"{fvu:.3f} at {active:.3g}" for active, fvu in points)
    return Drawing(
        "frontier",
        "Unexplained variance over active latents",
        "The share of the rows' variance that is not explained by the k largest activations of each row, "
        "without further training, and by the code itself.",
        f"A curve of the share that is not explained over active latents per row: {stated}.",
        lambda: frontier(points, own),
    )


@styled
def activations(values: np.ndarray, frequency: np.ndarray, *, title: str = "Activations") -> Figure:
    """Draw histograms of activations [E], all positive, and of the share of rows per latent [H]."""
    columns = columns_of(2, 2)
    figure = new_figure(title, 0.7 + 2.4 * (2 // columns))
    axes = figure.add_subplot(2 // columns, columns, 1)
    axes.hist(values, _BINS, weights=np.full(len(values), 1 / len(values)), color=COLOURS[0], linewidth=0)
    set_heading(axes, "values of active latents", 0.8 / columns)
    axes.set(xlabel="activation", ylabel="share of active entries")
    percent(axes.yaxis)
    axes = figure.add_subplot(2 // columns, columns, 2)
    shown = frequency[frequency > 0]
    edges = np.geomspace(shown.min() / 1.1, min(1.0, shown.max() * 1.1), _BINS + 1)
    axes.hist(shown, edges, color=COLOURS[0], linewidth=0)
    axes.set_xscale("log")
    set_heading(axes, "frequencies of latents", 0.8 / columns)
    axes.set(xlabel="share of rows in which it is active", ylabel="latents")
    percent(axes.xaxis)
    return figure


@styled
def frontier(
    points: Sequence[tuple[float, float]],
    own: tuple[float, float],
    *,
    title: str = "Unexplained variance over active latents",
) -> Figure:
    """Draw (active latents per row, FVU) of truncated codes as a curve, and that of the code itself."""
    figure = new_figure(title, 3.2)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", label="k largest activations per row")
    axes.plot(*own, color=INK, marker="D", linestyle="", label="the code itself")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0.0)
    axes.set(xlabel="active latents per row (L0)", ylabel="variance not explained (FVU)")
    percent(axes.yaxis)
    axes.legend()
    return figure
