"""Tiles, schedules and strategies: how a call runs, and what it costs at least."""
