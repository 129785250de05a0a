"""Random problems of one shape: never zeros, which some hardware multiplies faster."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..corruption import Masking

MASKING, CONTRACTIVE = Masking(0.25), 0.1
"""The training step's corruption and the weight of its penalty."""

ACTIVE = 32
"""The entries per row of a dictionary's code."""

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Shape(NamedTuple):
    """M rows, D features, H units."""

    rows: int
    features: int
    units: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``"256x784x1000"``; ``ValueError`` for anything else."""
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
            raise ValueError(f"shapes: expected rows x features x units as in 256x784x1000, got {text!r}")
        return cls(*map(int, text.split("x")))


@dataclass
class Problem:
    """Random tensors of one shape.

    Attributes:
        x: input in [0, 1), [M, D].
        weight, bias, decoder_bias: parameters [H, D], [H], [D], which require gradients.
        code: what a decoder starts from, in [0, 1), [M, H]; requires a gradient.
        code_grad: a gradient of the code, [M, H].
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    decoder_bias: Tensor
    code: Tensor
    code_grad: Tensor

    @classmethod
    def make(
        cls, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Problem:
        """The same values for the same shape, dtype and kind of device."""
        m, d, h = shape
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device}
        return cls(
            torch.rand(m, d, **options).to(dtype),
            (torch.randn(h, d, **options) * d**-0.5).to(dtype).requires_grad_(),
            (torch.randn(h, **options) * 0.1).to(dtype).requires_grad_(),
            (torch.randn(d, **options) * 0.1).to(dtype).requires_grad_(),
            torch.rand(m, h, **options).to(dtype).requires_grad_(),
            (torch.randn(m, h, **options) / m).to(dtype),
        )

    @property
    def shape(self) -> Shape:
        return Shape(*self.x.shape, len(self.weight))  # pyright: ignore[reportCallIssue]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.decoder_bias

    def head(self, rows: int) -> Problem:
        """The first ``rows`` rows, with the same parameters."""
        code = self.code.detach()[:rows].requires_grad_()
        return replace(self, x=self.x[:rows], code=code, code_grad=self.code_grad[:rows])

    def with_own_leaves(self) -> Problem:
        """The same memory as new autograd leaves."""
        named = {name: t.detach().requires_grad_(t.requires_grad) for name, t in vars(self).items()}
        return Problem(**named)

    def wide(self) -> Problem:
        """A copy in float64."""
        named = {name: t.detach().double() for name, t in vars(self).items()}
        return Problem(**{n: t.requires_grad_(getattr(self, n).requires_grad) for n, t in named.items()})
