"""The one look of all pictures: dark text on a white card, legible in print and on a dark page."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

WIDTH = 7.2  # inches, of every figure
_TITLE_CHARACTERS = 76  # that fit into a line of it
INK, MUTED, GAP = "#1f2328", "#59636e", "#d1d9e0"

# Okabe and Ito (2008): told apart by colour-blind readers; without the yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Tol's muted scheme with a black: ten classes
CLASS_COLOURS = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933",
    "#1f2328",
)  # fmt: skip
SIGNED = "RdBu_r"
# without its yellow end, which white paper swallows
MAGNITUDE = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, 256)))

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "white",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": "#e6eaef",
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


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in :data:`STYLE`, whatever the caller's settings are, and leaves those alone."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **options: P.kwargs) -> Figure:
        with _in_style():
            return draw(*args, **options)

    return wrapped


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


def new_figure(title: str, height: float) -> Figure:
    """An empty figure of the common width, outside pyplot; ``height`` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout=_Layout())
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(plain(title), _TITLE_CHARACTERS), x=0.01, horizontalalignment="left")
    return figure


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


def whole(axis: Axis, most: int, **options: Any) -> None:
    """Ticks at whole numbers only, also where there is a single one."""
    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1, **options))


def bare(axes: Axes) -> None:
    """Without ticks, frame and grid: for pictures."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def render(figure: Figure, format: str = "png", *, dpi: int = 160) -> bytes:
    """The bytes of a PNG, SVG or PDF file; the same for the same figure, as no date is in them."""
    if format not in _UNDATED:
        raise ValueError(f"format: {format!r} is not one of {', '.join(_UNDATED)}")
    buffer = io.BytesIO()
    with _in_style():
        figure.savefig(buffer, format=format, dpi=dpi, metadata=_UNDATED[format])
    return buffer.getvalue()


_UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
