"""Errors that `fastae` raises for reasons a user can act on."""


class DataError(ValueError):
    """A data file or data set that cannot be used."""
