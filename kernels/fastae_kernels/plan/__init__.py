"""Tiles, schedules and strategies: which kernels a call runs, and the estimates behind them."""

from .explain import explain

__all__ = ["explain"]
