"""Problems with weights of size 1, on which a formula that is wrong in a factor or a term shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae.sparse import Gated, JumpReLU, parse_sparsity


class Problem:
    """The arguments of ``sparse_autoencoder_loss``: rows and parameters, and options that are tensors."""

    def __init__(self, activation: str, transcoder: bool = False, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(1)
        rows, features, latents = 13, 6, 24
        outputs = 5 if transcoder else features
        self.latents = latents
        self.rule = parse_sparsity(activation)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

        gated = isinstance(self.rule, Gated)
        self.arguments = [
            draw(rows, features),
            draw(latents, features),
            None if gated else draw(latents),
            draw(latents, outputs),
            draw(outputs),
        ]
        self.options: dict[str, Any] = {"activation": self.rule}
        if isinstance(self.rule, JumpReLU):
            self.options["threshold"] = draw(latents).detach().abs().requires_grad_()
        if gated:
            self.options["gate"] = (draw(latents), draw(latents), draw(latents))
        if transcoder:
            self.options |= {"target": draw(rows, outputs), "center": False, "skip": draw(outputs, features)}

    @property
    def leaves(self) -> list[Tensor]:
        tensors = [*self.arguments, *self.options.values(), *self.options.get("gate", ())]
        return [t for t in tensors if isinstance(t, Tensor)]


@pytest.fixture(scope="session")
def problem() -> Callable[..., Problem]:
    """A factory of :class:`Problem`."""
    return Problem


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes one strategy the only one: ``sparse``, ``dense`` products of a code, or ``streamed`` blocks."""
    from fastae.ops import segments
    from fastae.sparse import objective, streamed

    def choose(name: str) -> None:
        monkeypatch.setattr(segments, "_DENSE_FROM", -1.0 if name == "dense" else 2.0)
        monkeypatch.setattr(objective, "_SPARSE_BELOW", -1.0 if name == "streamed" else 2.0)
        monkeypatch.setattr(streamed, "_BLOCK", 60)

    return choose
