"""Rules for every picture."""

import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastae import plots


def _is_drawn(axes) -> bool:
    return bool(axes.lines or axes.images or axes.collections or axes.patches)


def _visible_texts(figure: Figure) -> list[Text]:
    ticks = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for text in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
    }  # those out of the axes' range are never drawn
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [
        text for text in texts if id(text) not in ticks and (text.axes is None or text.axes.get_visible())
    ]


def _tick_labels(axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    along = 0 if axis.axis_name == "x" else 1
    labels = [
        label for label in axis.get_majorticklabels() if label.get_visible() and label.get_text().strip()
    ]
    return [label for label in labels if low <= label.get_position()[along] <= high]


def _pyplot_figures() -> list[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return [] if pyplot is None else pyplot.get_fignums()


@pytest.fixture
def check() -> Callable[[Figure], Figure]:
    """Renders a figure: nothing is empty, cut off, too tall or over another, and pyplot keeps nothing."""

    before = _pyplot_figures()  # of other tests

    def checked(figure: Figure) -> Figure:
        png = plots.render(figure, dpi=50)
        assert png.startswith(b"\x89PNG") and len(png) > 1000
        assert figure.axes and all(_is_drawn(axes) for axes in figure.axes)
        figure.draw_without_rendering()  # at its own resolution, in which extents are told
        box = figure.bbox.padded(1.0)
        for text in _visible_texts(figure):
            extent = text.get_window_extent()
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1, text.get_text()
            assert box.y0 <= extent.y0 and extent.y1 <= box.y1, text.get_text()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                extents = [label.get_window_extent() for label in _tick_labels(axis)]
                for one, other in itertools.pairwise(extents):
                    assert not one.padded(-1.0).overlaps(other.padded(-1.0)), _tick_labels(axis)
        assert figure.get_figheight() <= 21.0
        assert _pyplot_figures() == before
        return figure

    return checked


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)
