"""The common look of all pictures: dark text on white, or light text on a dark page by :data:`DARK`."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

WIDTH = 7.2  # inches, of a figure in a document
NARROW = 3.3  # of one on a phone, where its smallest text is 11 pixels high
_PANEL = 2.2  # inches, the least width of a panel beside others
_CHARACTER = 0.094  # inches, of a figure's title
INK, MUTED, GAP = "#1f2328", "#59636e", "#d1d9e0"
_PAPER, _GRID = "#ffffff", "#e6eaef"

# Okabe and Ito (2008): told apart by colour-blind readers; without the yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Tol's muted scheme with a black: ten classes
CLASS_COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#DDCC77",
    "#44AA99",
    "#AA4499",
    "#999933",
    "#1f2328",
)
SIGNED = "RdBu_r"
_VIRIDIS = mpl.colormaps["viridis"]
# without its yellow end, which white paper swallows, and of few colours, each with one for dark paper
MAGNITUDE = ListedColormap(_VIRIDIS(np.linspace(0.0, 0.85, 24)))

_NIGHT = (
    "#58a6e0",
    "#f08a3c",
    "#3fc49a",
    "#e39cc3",
    "#f0b73a",
    "#8fd0f5",
    "#e6edf3",
    "#8f7fe8",
    "#e88a98",
    "#52b36b",
    "#a5dcf5",
    "#d9679a",
    "#e6d98f",
    "#6fcdbb",
    "#d67fd0",
    "#c2c25a",
)
DARK: dict[str, str] = {
    _PAPER: "#161b22",
    INK: "#e6edf3",
    MUTED: "#9aa5b1",
    _GRID: "#262d36",
    GAP: "#3d444d",
    **dict(zip(map(str.lower, (*COLOURS, *CLASS_COLOURS[:-1])), _NIGHT, strict=True)),
    "#053061": "#afdaff",
    "#67001f": "#ffcfee",  # ends of the signed scale, as its tiles are inverted
    **{to_hex(MAGNITUDE(n)): to_hex(_VIRIDIS(0.3 + 0.7 * n / 23)) for n in range(24)},
}
"""Colours of the pictures and those that stand for them on a dark page, as an SVG file spells them."""

STYLE: dict[str, Any] = {
    "figure.facecolor": _PAPER,
    "figure.dpi": 100,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "savefig.facecolor": _PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": _PAPER,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "fastae",  # or every file had ids of its own
}

P = ParamSpec("P")
_width: ContextVar[float] = ContextVar("width", default=WIDTH)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in :data:`STYLE`, whatever the caller's settings are, and leave those alone."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **options: P.kwargs) -> Figure:
        with _in_style():
            return draw(*args, **options)

    return wrapped


@contextmanager
def figures_of(width: float) -> Iterator[None]:
    """Draw the figures in this context ``width`` inches wide, with fewer panels beside each other."""
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def figure_width() -> float:
    """Inches, of the figures that are drawn now."""
    return _width.get()


def columns_of(panels: int, most: int) -> int:
    """Number of ``panels`` beside each other, at most ``most`` on a wide page."""
    return max(1, min(panels, most, int(figure_width() / _PANEL)))


@contextmanager
def _in_style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        for name, value in STYLE.items():
            mpl.rcParams[name] = value  # pyright: ignore[reportArgumentType]
        yield


class _Layout(ConstrainedLayoutEngine):
    """Without the solver's last digits: they differ from run to run, and SVG's ids are made of them."""

    def execute(self, fig: Figure) -> Any:
        grids = super().execute(fig)
        for axes in fig.axes:
            corners = axes.get_position(original=True).get_points()
            axes.set_position(Bbox(np.round(corners, 6)), which="original")
            axes.set_in_layout(True)  # setting a position takes it out
        return grids


class _NotebookFigure(Figure):
    """A figure that a notebook shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(title: str, height: float) -> Figure:
    """An empty figure outside pyplot; ``height`` in inches, with a title of one line."""
    lines = [plain(line) for line in textwrap.wrap(title, int(figure_width() / _CHARACTER))] or [""]
    figure = _NotebookFigure(figsize=(figure_width(), height + 0.17 * (len(lines) - 1)), layout=_Layout())
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(lines), x=0.01, horizontalalignment="left")
    return figure


def set_heading(axes: Axes, text: str, share: float = 1.0) -> None:
    """Title of a panel that takes a ``share`` of the figure's width, in as many lines as it needs."""
    axes.set_title(lines_of(text, share))


def lines_of(text: str, share: float) -> str:
    """Plain text in lines of a ``share`` of the figure's width."""
    lines = textwrap.wrap(text, max(12, int(figure_width() * share / 0.08)))
    return "\n".join(map(plain, lines))  # not before, or a line may end between a dollar and its escape


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar begins no formula, an underscore hides no curve."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def colours(name: str) -> Colormap:
    """A colour map that shows gaps between tiles (NaN) in grey."""
    return mpl.colormaps[name].with_extremes(bad=GAP)


def percent(axis: Axis) -> None:
    """Shares as percentages, with no more digits than they need."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def counted(axis: Axis, last: int, most: int) -> None:
    """Ticks for what is counted from 1 to ``last``: at 1, at round numbers, and none at 0."""
    round_ones = [int(tick) for tick in MaxNLocator(most, integer=True).tick_values(1, last)]
    step = round_ones[1] - round_ones[0] if len(round_ones) > 1 else 1
    axis.set_major_locator(FixedLocator([1, *(t for t in round_ones if 1 + step / 2 < t <= last)]))


def bare(axes: Axes) -> None:
    """Without ticks, frame and grid: for pictures."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def render(figure: Figure, format: str = "png", *, dpi: int = 200) -> bytes:
    """The bytes of a PNG, SVG or PDF file; the same for the same figure, as no date is in them.

    By default a PNG has two pixels for each of a page, so that it is sharp on screens of high resolution.
    """
    if format not in _UNDATED:
        raise ValueError(f"format: {format!r} is not one of {', '.join(_UNDATED)}")
    buffer = io.BytesIO()
    with _in_style():
        figure.savefig(buffer, format=format, dpi=dpi, metadata=_UNDATED[format])
    return buffer.getvalue()


_UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
