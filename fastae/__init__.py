"""fastae: fused layers, losses and a training engine for autoencoders on PyTorch."""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._version import __version__

if _TYPE_CHECKING:
    from .run import Run, load


def __getattr__(name: str) -> _Any:
    """The training engine is imported with the names that need it."""
    if name in ("Run", "load"):
        from . import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_command() -> bool:
    """True if this process is ``fastae`` or ``python -m fastae``."""
    program = _sys.argv[0] if _sys.argv else ""
    if program == "-m":  # Python is still looking for the module to run
        words = _sys.orig_argv
        return "-m" in words and words[words.index("-m") :][1:2] == ["fastae"]
    return program.replace("\\", "/").rpartition("/")[2].removesuffix(".exe") == "fastae"


# A command imports what it needs, after its help and once signals are handled.
if not _is_command():
    from . import diagnostics, formats, functional, nn, optim, reference
    from .corruption import Corruption, Emphasis, Gaussian, Masking, SaltAndPepper, Swap, parse_corruption
    from .functional import AutoencoderLoss
    from .nn import fuse, unfuse
    from .sparse import (
        AuxK,
        BatchTopK,
        Gated,
        JumpReLU,
        Matryoshka,
        SparseAutoencoderLoss,
        SparseCode,
        TopK,
    )

__all__ = [
    "AutoencoderLoss",
    "AuxK",
    "BatchTopK",
    "Corruption",
    "Emphasis",
    "Gated",
    "Gaussian",
    "JumpReLU",
    "Masking",
    "Matryoshka",
    "Run",
    "SaltAndPepper",
    "SparseAutoencoderLoss",
    "SparseCode",
    "Swap",
    "TopK",
    "__version__",
    "diagnostics",
    "formats",
    "functional",
    "fuse",
    "load",
    "nn",
    "optim",
    "parse_corruption",
    "reference",
    "unfuse",
]
