"""Support for tests in several folders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastae import Emphasis, Masking
from fastae.ops.declaration import DECLARATIONS

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "softplus": partial(F.softplus, threshold=40.0),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "softsign": F.softsign,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
}
"""PyTorch's own activations, by the names of :data:`fastae.activations.ACTIVATIONS`."""


EVERYTHING: dict[str, Any] = {
    "corruption": Masking(0.3),
    "emphasis": Emphasis(2.0, 0.5),
    "contractive": 0.3,
    "higher_order": 0.2,
    "higher_order_std": 0.3,
    "higher_order_samples": 2,
    "l1": 0.1,
    "kl": 0.4,
    "kl_target": 0.1,
    "code_noise": "gaussian",
    "code_noise_std": 0.2,
    "dropout": 0.3,
}
"""Every option of an objective at once."""

OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
"""Optimizers of torch.optim that a run can use."""


def arguments(name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
    """All arguments of an operator by position, the declaration's defaults for those that are not given."""
    bound = inspect.signature(DECLARATIONS[name]).bind(*args, **options)
    bound.apply_defaults()
    return bound.args
