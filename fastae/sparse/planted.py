"""Rows that are sparse sums of known directions: data on which a dictionary can be told right from wrong."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Planted(NamedTuple):
    """Rows [N, D] and the directions [F, D], of norm 1, that they are made of."""

    rows: Tensor
    directions: Tensor


def planted_rows(
    rows: int, width: int, features: int, active: float, noise: float = 0.01, seed: int = 0
) -> Planted:
    """Draw directions on the sphere, and rows that add a few of them with coefficients uniform in [0.5, 1.5].

    Args:
        rows, width: N and D.
        features: number of directions F.
        active: directions per row, on average.
        noise: standard deviation of normal noise per entry.
        seed: of everything that is drawn.
    """
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=g), dim=1)
    out = torch.empty(rows, width)
    for low in range(0, rows, 4096):  # in blocks, as [N, F] may be large
        n = min(4096, rows - low)
        chosen = torch.rand(n, features, generator=g) < active / features
        code = chosen * (torch.rand(n, features, generator=g) + 0.5)
        out[low : low + n] = code @ directions + noise * torch.randn(n, width, generator=g)
    return Planted(out, directions)


def recovered_share(decoder: Tensor, directions: Tensor, cosine: float = 0.9) -> float:
    """The share of directions [F, D] that some row of a decoder [H, D] points to within a cosine."""
    decoder = torch.nn.functional.normalize(decoder.detach().float(), dim=1)
    best = torch.cat([(part @ decoder.t()).amax(1) for part in directions.to(decoder).split(256)])
    return float((best >= cosine).float().mean())
