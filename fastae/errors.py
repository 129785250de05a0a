"""Errors that name a file or a run; wrong arguments raise ``ValueError`` or ``TypeError``."""


class DataError(ValueError):
    """A data file or data set that cannot be used."""


class MissingPackageError(ImportError, DataError):
    """An optional package that is not installed; the message names the extra that installs it."""


class CheckpointError(ValueError):
    """A run or checkpoint folder that cannot be read, written or continued."""


class TrainingError(RuntimeError):
    """Training that cannot go on; what was saved before stays."""
