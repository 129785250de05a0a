"""Tables of the literature, trained again: ``python -m benchmarks.papers --help``.

A recipe is one table: what its rows are trained with, what is measured, what was published and where the
protocols differ. Fitting sees training rows only; what is measured on held-out rows is asked for once, when
everything is trained (:mod:`benchmarks.papers.protocol`).
"""
