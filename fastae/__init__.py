"""fastae: fused layers, losses and a training engine for autoencoders on PyTorch."""

from . import diagnostics, functional, nn, reference
from ._version import __version__
from .corruption import Corruption, Emphasis, Gaussian, Masking, SaltAndPepper, Swap, parse_corruption
from .functional import AutoencoderLoss
from .nn import fuse, unfuse

__all__ = [
    "AutoencoderLoss",
    "Corruption",
    "Emphasis",
    "Gaussian",
    "Masking",
    "SaltAndPepper",
    "Swap",
    "__version__",
    "diagnostics",
    "functional",
    "fuse",
    "nn",
    "parse_corruption",
    "reference",
    "unfuse",
]
