"""Measurements of trained autoencoders: their units, Jacobians, subspaces and reconstructions.

Conventions: x is [*, D] in the model's dtype and on its device, and all leading dimensions are rows. Noise is
off, the model's mode is unchanged, and no gradients are kept. Arithmetic and results are float32, or float64
if the model is. Rows go through a model in chunks of a fixed workspace, so that only the results grow with
their number. NaN in gives NaN out, or an error where a decomposition needs finite values.
"""

from .jacobian import contraction_curve, jacobian_norm, jacobian_spectrum, tangents
from .networks import Network
from .reconstruction import reconstruction_errors, score, vector_field
from .subspaces import pca_angles, principal_angles, principal_components
from .summary import Diagnosis, diagnose
from .units import (
    DEAD_RANGE,
    SATURATED_SLOPE,
    active_share,
    code_sparsity,
    dead_units,
    saturated,
    saturated_share,
)

__all__ = [
    "DEAD_RANGE",
    "SATURATED_SLOPE",
    "Diagnosis",
    "Network",
    "active_share",
    "code_sparsity",
    "contraction_curve",
    "dead_units",
    "diagnose",
    "jacobian_norm",
    "jacobian_spectrum",
    "pca_angles",
    "principal_angles",
    "principal_components",
    "reconstruction_errors",
    "saturated",
    "saturated_share",
    "score",
    "tangents",
    "vector_field",
]
