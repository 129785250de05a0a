"""Sampling from a denoising autoencoder by its Markov chain (Bengio, Yao, Alain and Vincent 2013, alg. 1)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .. import functional
from ..checks import check_nonnegative, check_whole
from ..losses import get_loss
from ..plain import is_concrete
from ..tensors import fill_missing
from .options import Options


class Sampler(nn.Module, ABC):
    """Base of modules that encode and decode: reconstructions and samples without noise on the code."""

    _range_is_checked = False

    @property
    @abstractmethod
    def input_options(self) -> Options:
        """Options of the input: its corruption and its loss."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The code [*, H] of x [*, D], without noise."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """The reconstruction [*, D] from a code [*, H]."""

    def _check_range(self, x: Tensor) -> None:
        """Warn of values that the loss is not defined for, at the first batch in training mode alone.

        Under the transforms, compilers and tracers of PyTorch no values can be looked at.
        """
        if torch.compiler.is_compiling():  # which compiles again where an attribute that it read has changed
            return
        if self._range_is_checked or not self.training or not x.is_floating_point() or not is_concrete(x):
            return
        self._range_is_checked, loss = True, get_loss(self.input_options.loss)
        if loss.is_bounded and x.numel():
            known = fill_missing(x, self.input_options.missing)
            low, high = (float(value) for value in known.detach().aminmax())
            if not loss.takes(low, high):
                warnings.warn(
                    f"x: {loss.name} is a loss for values in [{loss.bounds[0]:g}, {loss.bounds[1]:g}], got "
                    f"{low:g} to {high:g}; scale them, or use loss='mse' (only the first batch is checked)",
                    stacklevel=5,
                )

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction [*, D] of x [*, D], without noise."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        steps: int = 1,
        *,
        std: float | None = None,
        return_chain: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Alternate x~ ~ C(x~ | x) and x ~ p(x | h(x~)), ``steps`` times, starting from x [*, D].

        C is the corruption of the input; without one, x~ is x. The decoder's distribution p is that
        of the loss (Bernoulli for bce, Poisson, negative binomial), else normal about the reconstruction.

        Args:
            x: start of the chain, [*, D].
            steps: number of steps.
            std: standard deviation of p for mse. By default the root mean square of the first
                reconstruction's residual, which is the maximum-likelihood estimate from x.
            return_chain: return all states.
            generator: generator of the corruption and the draws.

        Returns:
            The last state, [*, D], or with ``return_chain`` all of them from x on, [steps + 1, *, D].

        Raises:
            ValueError: ``steps`` or ``std`` is negative.
        """
        steps = check_whole("steps:", steps, 0)
        if std is not None:
            check_nonnegative("std:", std)
        chain, draw, corruption = [x], get_loss(self.input_options.loss).draw, self.input_options.corruption
        for _ in range(steps):
            mean = self.reconstruct(functional.corrupt(x, corruption, generator=generator))
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
