"""The same work by different providers, on the same tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import first_line
from ..ops.backend import backend_of
from ..train.graph import CudaCapture
from .groups import Function, Group, Product, peer_topk_step, tied
from .peers import PEERS, installed_peers
from .problems import Problem

FLOOR = "products"

ABOUT = {
    FLOOR: "the floor: the bare matrix products of the work by the library; of corruption, a copy",
    "fastae": "fastae as it decides by itself",
    "fastae-compiled": "fastae by torch.compile",
    "fused": "fastae, every product one Triton kernel that ends in what follows it",
    "split": "fastae, the library's products and one pass over each result",
    "graph": "fastae's step as a CUDA graph",
    "eager": "PyTorch, the penalty in closed form",
    "compile": "the same by torch.compile",
    "max-autotune": "the same by torch.compile, mode max-autotune-no-cudagraphs",
    "reduce-overhead": "the same by torch.compile, mode reduce-overhead, launches included",
    "jacobian": "PyTorch, the penalty by the true Jacobian, vmap(jacrev); of few rows, the time scaled",
    "sparsify": "sparsify's SparseCoder, on the CPU without its Triton kernels",
    "dictionary_learning": "dictionary_learning's AutoEncoderTopK",
    "saelens": "SAELens's TopKTrainingSAE",
    "script": "a plain training script: Dataset, DataLoader, nn.Module, Adam",
}
"""Every provider, in the order of tables and pictures."""

_COMPILE_MODES = {
    "compile": None,
    "max-autotune": "max-autotune-no-cudagraphs",
    "reduce-overhead": "reduce-overhead",
}
COMPILED = {"fastae-compiled", *_COMPILE_MODES}
_JACOBIAN_OPERATIONS = {"cpu": 2e9, "cuda": 2e11}  # of one call, which sets the number of rows


class Unavailable(Exception):
    """This provider cannot run here; says why."""


class Provider:
    """Forward and backward passes of one provider; ``backward`` follows a ``forward``.

    Attributes:
        leaves: what ``backward`` differentiates to; empty where the work has none.
        rows: how many of the problem's rows it works on; its time is scaled to all of them.
        capturable: whether a CUDA graph can hold it.
    """

    capturable = True

    def __init__(
        self,
        function: Function,
        group: Group,
        problem: Problem,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        problem = problem.with_own_leaves()  # a graph of another provider may bind its leaves to a stream
        self.function, self.context, self.rows = function, context, len(problem.x)
        self.inputs, self.leaves = group.inputs(problem), group.leaves(problem)
        self._seeds = group.seeds(problem)
        self._seed_tensors: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def forward(self) -> tuple[Tensor, ...]:
        self._outputs = ()  # and their graph, whose memory is not this pass's
        with self.context(), torch.set_grad_enabled(bool(self.leaves)):
            self._outputs = self.function(*self.inputs)
        return self._outputs

    def backward(self) -> tuple[Tensor, ...]:
        outputs = self._outputs[: len(self._seeds)]
        if not self._seed_tensors:  # once: filling them is not part of the work
            pairs = zip(outputs, self._seeds, strict=True)
            self._seed_tensors = tuple(
                s if isinstance(s, Tensor) else torch.full_like(o, s) for o, s in pairs
            )
        self._outputs = ()
        with self.context():
            return torch.autograd.grad(outputs, self.leaves, self._seed_tensors)

    def full(self) -> tuple[Tensor, ...]:
        self.forward()
        return self.backward()


class Floor:
    """The bare products of a piece of work; where there are none, a copy of the input."""

    capturable = True

    def __init__(self, group: Group, problem: Problem) -> None:
        self.rows = len(problem.x)
        self._forward = _detached(group.forward(problem))
        self._backward = _detached(group.backward(problem))
        self._x = problem.x

    def forward(self) -> None:
        for a, b in self._forward:
            torch.mm(a, b)
        if not self._forward:
            self._x.clone()

    def backward(self) -> None:
        for a, b in self._backward:
            torch.mm(a, b)

    def full(self) -> None:
        self.forward()
        self.backward()


class Captured(Provider):
    """The whole step as one CUDA graph: what is left of launching is one replay."""

    capturable = False

    def __init__(self, group: Group, problem: Problem) -> None:
        super().__init__(group.ours, group, problem)
        capture = CudaCapture(problem.x.device)
        for _ in range(3):
            capture.warm_up(self._run)
        self._replay, self._results = capture.record(self._run)

    def _run(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return super().forward(), super().backward()

    def forward(self) -> tuple[Tensor, ...]:
        self._replay()
        return self._results[0]

    def backward(self) -> tuple[Tensor, ...]:
        return self._results[1]


def _detached(products: list[Product]) -> list[Product]:
    return [(a.detach(), b.detach()) for a, b in products]


# --- which there are ------------------------------------------------------------------------------------


def names_of(group: Group, device: torch.device, *, compiled: bool = True) -> list[str]:
    """The providers that make sense for a group on a device, the floor first."""
    names = [FLOOR, "fastae"]
    on_gpu, is_step = device.type == "cuda", group.name == "step"
    if compiled and is_step:
        names.append("fastae-compiled")
    if kernels_run(device) and group.name != "corruption":  # which is one pass in either strategy
        names += ["fused", "split"]
    if on_gpu and is_step:
        names.append("graph")
    names.append("eager")
    if compiled:
        names += ["compile", "max-autotune"]
        if on_gpu and is_step:
            names.append("reduce-overhead")
    if group.jacobian is not None:
        names.append("jacobian")
    if group.name == "sparse":
        names += installed_peers()
    return names


def kernels_run(device: torch.device) -> bool:
    """True if fastae's Triton kernels run on a device."""
    return backend_of("encode", device)[0] == "triton"


def modes_of(name: str, group: Group) -> tuple[str, ...]:
    """Graphs hold the whole step, torch's only where a backward pass follows; all else has every mode."""
    return ("full",) if name in ("graph", "reduce-overhead") else group.modes


def make_provider(name: str, group: Group, problem: Problem) -> Provider:
    """Raises :class:`Unavailable` where it cannot run, saying why."""
    if name == "fastae":
        return Provider(group.ours, group, problem)
    if name in ("fused", "split"):
        return Provider(group.ours, group, problem, functools.partial(_strategy, name))
    if name == "graph":
        return Captured(group, problem)
    if name == "eager":
        return Provider(group.eager, group, problem)
    if name in COMPILED:
        if reason := compile_problem(problem.x.device.type):
            raise Unavailable(reason)
        function = group.ours if name == "fastae-compiled" else group.eager
        function = torch.compile(function, mode=_COMPILE_MODES.get(name), dynamic=False)
        provider = Provider(function, group, problem)
        provider.capturable = name != "reduce-overhead"
        return provider
    if name in PEERS and group.name == "sparse":
        return Provider(tied(peer_topk_step(name, problem.x.shape[1])), group, problem)
    if name == "jacobian" and group.jacobian is not None:
        return Provider(group.jacobian, group, problem.head(_jacobian_rows(problem)))
    raise ValueError(f"providers: {name!r} does not do {group.name}")


def _strategy(name: Literal["fused", "split"]) -> AbstractContextManager[None]:
    from fastae_kernels.plan import config

    return config.using(strategy=name)


def _jacobian_rows(problem: Problem) -> int:
    m, d, h = problem.shape
    operations = _JACOBIAN_OPERATIONS.get(problem.x.device.type, 2e9)
    rows = operations / (h * h * d)
    if rows < 0.1:
        raise Unavailable(f"a single row's Jacobian takes {2e-9 * h * h * d:.0f}e9 operations")
    return min(m, 8, max(1, int(rows)))


@functools.cache
def compile_problem(device: str) -> str | None:
    """The reason why torch.compile cannot run here, from compiling a small function; None where it can."""
    try:
        torch.compile(lambda x: x.sin() + 1.0, dynamic=False)(torch.rand(8, device=device))
    except Exception as error:  # a missing compiler raises many types
        return f"torch.compile does not run here: {first_line(error)}"
    return None
