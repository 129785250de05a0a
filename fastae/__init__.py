"""fastae: fused layers, losses and a training engine for autoencoders on PyTorch."""

from . import diagnostics, formats, functional, nn, optim, reference
from ._version import __version__
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
    "nn",
    "optim",
    "parse_corruption",
    "reference",
    "unfuse",
]
