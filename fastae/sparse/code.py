"""Sparse codes and the values of a sparse objective."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ops.segments import segments_of


class SparseCode(NamedTuple):
    """The entries of a code [*, H] that are kept: latents ``indices`` with their ``values``.

    With a fixed number per row, ``offsets`` is ``None`` and both tensors are [*, k]. With any number per row
    both are [E], row after row, and ``offsets`` is [N + 1]: row n holds the entries ``offsets[n]`` to
    ``offsets[n + 1]``. Indices and offsets are int64. A kept entry may have the value 0.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor | None = None

    def to_dense(self, width: int) -> Tensor:
        """The code as a dense tensor [*, width], differentiable in the values.

        Raises:
            ValueError: ``width`` is not above every index.
        """
        if self.indices.numel() and width <= (largest := int(self.indices.max())):
            raise ValueError(f"width: expected more than the largest index {largest}, got {width}")
        if self.offsets is None:
            zeros = self.values.new_zeros(*self.values.shape[:-1], width)
            return zeros.scatter_add(-1, self.indices, self.values)
        rows = segments_of(self.offsets, len(self.indices))
        zeros = self.values.new_zeros(len(self.offsets) - 1, width)
        return zeros.index_put((rows, self.indices), self.values, accumulate=True)


class SparseAutoencoderLoss(NamedTuple):
    """The value of a sparse autoencoder's objective and of its parts: scalars, in float32 or wider.

    ``total`` is the weighted sum; the other terms come without their weights and are ``None`` where unused.
    All are differentiable. Sums over features and latents, means over rows. ``gate`` is the reconstruction
    by the gates of a gated code alone, whose weight is 1.
    """

    total: Tensor
    reconstruction: Tensor
    auxk: Tensor | None = None
    matryoshka: Tensor | None = None
    l1: Tensor | None = None
    l0: Tensor | None = None
    gate: Tensor | None = None
