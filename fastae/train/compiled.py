"""Losses compiled by torch.compile: once for each shape of their batch, with the noise of uncompiled ones."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import first_line

_MOST_SHAPES = 4


class Compiled:
    """A function of tensors and ``None``s that is compiled for each combination of shapes and dtypes.

    Shapes are compiled apart, without symbolic sizes, so that the same batch gives the same bits whatever
    came before it: a run that is resumed at the smaller batch of an epoch's end equals one that was never
    stopped. Past ``_MOST_SHAPES`` of them, and where compiling fails, the function runs as it is. Random
    numbers come from PyTorch's own generators, as they do without a compiler.

    Attributes:
        problem: why nothing is compiled any more; ``None`` until then.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.problem: str | None = None
        self._function = function
        self._compiled = torch.compile(
            _with_code_of_its_own(function),
            dynamic=False,
            options={"fallback_random": True, "post_grad_custom_post_pass": _additions_apart()},
        )
        self._shapes: set[Any] = set()

    def __call__(self, *inputs: Tensor | None) -> Any:
        key = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in inputs)
        if self.problem is not None or (key not in self._shapes and len(self._shapes) >= _MOST_SHAPES):
            return self._function(*inputs)
        self._shapes.add(key)
        try:
            return self._compiled(*inputs)
        except _compiler_errors() as error:
            cause = getattr(error, "inner_exception", None) or error.__cause__ or error
        result = self._function(*inputs)  # raises where the function was at fault
        self.problem = first_line(cause)
        warnings.warn(f"the loss cannot be compiled ({self.problem}); it runs as it is", stacklevel=5)
        return result


@functools.cache
def _additions_apart() -> Any:
    """A pass of the compiler that takes the addition out of addmm: add(c, mm(a, b)), in float32 on a CPU.

    There addmm copies c into its result before the product adds to it, two passes over memory. The addition
    alone becomes part of the elementwise loop that follows.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    aten = torch.ops.aten

    class AdditionsApart(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
                result: Tensor = node.meta["val"]
                if node.kwargs or result.device.type != "cpu" or result.dtype != torch.float32:
                    continue
                added, a, b = node.args
                with graph.inserting_before(node):
                    product = graph.call_function(aten.mm.default, (a, b))
                    total = graph.call_function(aten.add.Tensor, (product, added))
                product.meta, total.meta = dict(node.meta), dict(node.meta)
                node.replace_all_uses_with(total)
                graph.erase_node(node)

        def uuid(self) -> bytes:
            return get_hash_for_files((__file__,))

    return AdditionsApart()


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` within a new code object: the compiler counts its compilations by code object, up to 8."""

    def run(*inputs: Tensor | None) -> Any:
        return function(*inputs)

    return types.FunctionType(
        run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__
    )


def _compiler_errors() -> type[Exception]:
    import torch._dynamo.exc  # here: importing the compiler takes seconds

    return torch._dynamo.exc.TorchDynamoException
