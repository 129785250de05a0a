"""The hand-derived gradients around the operators.

With g = dL/da, p the scale of the penalty, s = f'(z), t = f''(z) and q_j = ||W_j||^2,

    dz = s (dh + 2 p s t q)        dW = dz^T x + diag(u) W,  u_j = 2 p sum_n s_nj^2        dV = g^T h

so that a training step needs five matrix products and no Jacobian. Second derivatives raise.
"""

from .deep import DeepEncode
from .layers import Decoding, Encode, ReconstructionLoss
from .noise import Corrupt, Perturb
from .objective import AutoencoderObjective
from .once import first_order
from .units import UnitShard

__all__ = [
    "AutoencoderObjective",
    "Corrupt",
    "Decoding",
    "DeepEncode",
    "Encode",
    "Perturb",
    "ReconstructionLoss",
    "UnitShard",
    "first_order",
]
