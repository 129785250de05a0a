"""Counts of the operators' matrix products for :class:`torch.utils.flop_counter.FlopCounterMode`."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

Shape = tuple[int, ...]


def _product(rows: Shape, weight: Shape) -> int:
    return 2 * rows[0] * weight[0] * weight[1]


def _of_weight(x: Shape, weight: Shape | None, *args: Any, **options: Any) -> int:
    return 0 if weight is None else _product(x, weight)


def _top_entries(
    x: Shape, weight: Shape, bias: Shape | None, k: int, subset: Shape | None = None, **options: Any
) -> int:
    return 2 * x[0] * x[1] * (weight if subset is None else subset)[0]


def _weight_grad(
    a: Shape,
    b: Shape,
    scale: Shape | None = None,
    weight: Shape | None = None,
    u: Shape | None = None,
    a2: Shape | None = None,
    b2: Shape | None = None,
    *args: Any,
    **options: Any,
) -> int:
    second = 0 if a2 is None or b2 is None else 2 * a2[0] * a2[1] * b2[1]
    return 2 * a[0] * a[1] * b[1] + second


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    operators = torch.ops.fastae
    one = [operators.encode, operators.decode_loss, operators.decode_loss_target_grad, operators.code_grad]
    register_flop_formula(one)(_of_weight)
    register_flop_formula(operators.top_entries)(_top_entries)
    register_flop_formula(operators.weight_grad)(_weight_grad)


_COUNTER = "torch.utils.flop_counter"


class _WhenImported(MetaPathFinder):
    """Registers the formulas after the import of torch's counter, which imports Triton."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Register the formulas, or have it done once torch's counter is imported."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())
