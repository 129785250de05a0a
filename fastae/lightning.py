"""A LightningModule around fastae's modules. Needs Lightning, from the extra ``lightning``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .objective import AutoencoderLoss
from .optional import require

lightning = require("lightning", "fastae.lightning", "lightning")

__all__ = ["AutoencoderModule"]


class AutoencoderModule(lightning.LightningModule):
    """Trains an autoencoder, a stack or a sparse autoencoder with a ``lightning.Trainer``.

    Every term of the loss is logged, as ``train_<term>`` and so on. Batches are tensors [B, D],
    or tuples that begin with one, as a ``TensorDataset`` or a data set with labels gives them.

    Args:
        model: a module of :mod:`fastae.nn`, or any other whose ``forward(x)`` returns a NamedTuple of scalar
            tensors that begins with ``total``.
        optimizer: name of an optimizer in ``torch.optim``.
        lr: learning rate.
        **optimizer_options: further arguments of the optimizer.

    Raises:
        ValueError: ``optimizer`` is no name in ``torch.optim``.
    """

    def __init__(
        self, model: nn.Module, optimizer: str = "Adam", lr: float = 1e-3, **optimizer_options: Any
    ) -> None:
        super().__init__()
        if not hasattr(torch.optim, optimizer):
            raise ValueError(f"optimizer: torch.optim has no {optimizer!r}")
        self.save_hyperparameters(ignore="model")
        self.model = model

    def forward(self, x: Tensor) -> AutoencoderLoss:
        """The loss of ``model`` on x [B, D]."""
        return self.model(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "validation")

    def test_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "test")

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """The codes of a batch, for models that encode."""
        return self.model.encode(_rows(batch))  # pyright: ignore[reportCallIssue]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = dict(self.hparams)
        return getattr(torch.optim, options.pop("optimizer"))(self.model.parameters(), **options)

    def _step(self, batch: Any, part: str) -> Tensor:
        x = _rows(batch)
        terms = self(x)._asdict()
        logged = {f"{part}_{name}": value for name, value in terms.items() if value is not None}
        self.log_dict(logged, batch_size=len(x), prog_bar=False)
        return terms["total"]


def _rows(batch: Any) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]
