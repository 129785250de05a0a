"""fastae's operators on Triton kernels: allocation, plans and launches, without autograd.

Matrices are two-dimensional, float32, float16 or bfloat16, with any strides; products run with operands of
one dtype. Sums over features, units and rows are float32. Only :func:`adam` and :func:`adam_rows` write to
their arguments, and only selections whose size depends on values wait for them on the host.
Results that were not asked for are ``None``. A scale is a scalar tensor or one value per row; with ``mean``
scales are divided by the number of rows. A ``reduction`` to "mean" or "sum" is of values per row.
"""

import torch

from .corruption import corrupt, perturb, random_signs, swap_backward
from .decoder import decode_loss, decode_loss_target_grad
from .encoder import cast_weight, code_grad, encode, slope_difference_grad, squared_norms, weight_grad
from .segments import adam_rows, segment_loss, segment_sums
from .selection import append_passing, batch_entries, entries_above, top_entries
from .updates import Updated, adam

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

__all__ = [
    "DTYPES",
    "Updated",
    "adam",
    "adam_rows",
    "append_passing",
    "batch_entries",
    "cast_weight",
    "code_grad",
    "corrupt",
    "decode_loss",
    "decode_loss_target_grad",
    "encode",
    "entries_above",
    "perturb",
    "random_signs",
    "segment_loss",
    "segment_sums",
    "slope_difference_grad",
    "squared_norms",
    "swap_backward",
    "top_entries",
    "weight_grad",
]
