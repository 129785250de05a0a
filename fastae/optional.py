"""Optional packages: imported where they are needed, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingPackageError


def require(module: str, purpose: str, extra: str = "train") -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name, as ``"sklearn.manifold"``.
        purpose: what needs it; begins the error's message.
        extra: of fastae, that installs the package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f'{purpose}: {package} is not installed: pip install "fastae[{extra}]"'
        raise MissingPackageError(message, name=package) from error
