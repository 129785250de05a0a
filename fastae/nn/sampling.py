"""Sampling from a denoising autoencoder by its Markov chain (Bengio, Yao, Alain and Vincent 2013, alg. 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import functional
from ..checks import check_nonnegative, check_whole
from ..losses import get_loss
from .options import Options


def denoising_chain(
    reconstruct: Callable[[Tensor], Tensor],
    options: Options,
    x: Tensor,
    steps: int,
    *,
    std: float | None = None,
    return_chain: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Alternate x~ ~ C(x~ | x) and x ~ p(x | h(x~)), ``steps`` times, starting from x [*, D].

    The decoder's distribution is Bernoulli for bce. For mse it is normal about the reconstruction, with
    standard deviation ``std``, by default the root mean square of the first reconstruction's residual: the
    maximum-likelihood estimate from the x given. Without a corruption, x~ is x.

    Returns:
        The last state, [*, D], or with ``return_chain`` all of them from x on, [steps + 1, *, D].

    Raises:
        ValueError: ``steps`` or ``std`` is negative.
    """
    steps = check_whole("steps:", steps, 0)
    if std is not None:
        check_nonnegative("std:", std)
    chain, draw = [x], get_loss(options.loss).draw
    for _ in range(steps):
        mean = reconstruct(functional.corrupt(x, options.corruption, generator=generator))
        if draw is not None:
            x = draw(mean, generator)
        else:
            spread = (mean - x).square().mean().sqrt() if std is None else torch.as_tensor(std)
            std = float(spread)
            noise = torch.empty_like(mean).normal_(generator=generator)
            x = mean + std * noise
        if return_chain:
            chain.append(x)
    return torch.stack(chain) if return_chain else x
