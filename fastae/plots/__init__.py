"""Pictures of autoencoders, as matplotlib figures: nothing is shown, saved or kept in pyplot.

Every function takes arrays or tensors and returns a ``matplotlib.figure.Figure``; :func:`render` turns one
into the bytes of a file, the same for the same figure. Needs matplotlib, and ``code_map`` scikit-learn (extra
``train``).
"""

# ruff: noqa: E402  (the extra is named before matplotlib is imported)
from ..optional import require

require("matplotlib", "fastae.plots")

from .arrays import spread
from .codes import code_histogram, code_map
from .curves import contraction, learning_curves, spectrum
from .field import vector_field_2d
from .style import render
from .tiles import errors, filters, reconstructions, tangent_tiles

__all__ = [
    "code_histogram",
    "code_map",
    "contraction",
    "errors",
    "filters",
    "learning_curves",
    "reconstructions",
    "render",
    "spectrum",
    "spread",
    "tangent_tiles",
    "vector_field_2d",
]
