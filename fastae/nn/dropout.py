"""Dropout whose mask is computed again in the backward pass, as all noise of fastae is."""

from __future__ import annotations

from torch import Tensor, nn

from .. import plain
from ..philox import draw_seed
from ..tensors import as_rows


class RowDropout(nn.Dropout):
    """``nn.Dropout`` with a mask that is a function of a seed, the row and the column.

    The mask is not stored, and processes that share a batch draw the one of the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [*, D] with entries dropped while training, and the others scaled."""
        if not (self.training and self.p):
            return x
        return plain.perturb(as_rows(x), draw_seed(x.device), "none", 0.0, self.p).view(x.shape)
