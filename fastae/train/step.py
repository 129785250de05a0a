"""A whole training step as one call: captured as a graph and replayed on CUDA, run as it is elsewhere."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import ops
from ..checks import check_nonnegative
from ..distributed import Sums, World, shards_of
from ..philox import drawing_ahead
from ..share import sharing
from ..tensors import is_split
from .adam import updates
from .compiled import Compiled
from .graph import Capture, Graphed, capture_on

_OPERATIONS_PER_REPLAY = 2e11
"""A quarter of a millisecond of products on an H100: what the steps of a call share is little beside it."""
_FEWEST_STEPS, _MOST_STEPS = 4, 32
"""Of large models the steps of a call share the cast of the weights, which made no difference on an H200 at
(8192, 4096, 16384). A call should take milliseconds."""
_GATHERED_BYTES = 2**24
"""Of rows that are gathered at once, so that steps find them in a second-level cache."""


class TrainingStep:
    """Forward pass, backward pass, clipping and update; called with a batch, or with the indices of one.

    On CUDA the step is captured as a graph after its first calls and replayed from then on. The host then no
    longer launches each kernel, which is most of the time of a step of a small model. Nothing waits for the
    device until :meth:`sums` is read.

        step = TrainingStep(model, torch.optim.Adam(model.parameters()))
        for x in batches:
            step(x)

    A captured step keeps its memory addresses and everything that the host decided. Load checkpoints, choose
    ``train()`` or ``eval()``, make schedulers and drop the losses of earlier forward passes before the first
    call. Draw noise from torch's default generator, which may be seeded anew between calls. Learning rates
    may change at any time: they become tensors on the device, which torch's schedulers fill in place. The
    step owns the parameters' ``.grad``.

    Args:
        loss: a function of a batch's tensors. It returns a scalar tensor, or a NamedTuple or dict of scalar
            tensors and ``None`` whose ``total`` is minimised, as the modules of :mod:`fastae.nn` do; the
            same terms at every call.
        optimizer: from ``torch.optim``; for a graph one that can be captured (SGD needs ``fused=True``).
        data: tensors [N, ...] on the device (or ``None``, passed on) that a call takes rows from. Batches
            are then gathered within the graph.
        clip_norm: largest norm of the gradient; 0 does not clip.
        autocast: dtype of autocast in the forward pass; ``None`` leaves autocast as it is.
        graph: whether to capture the step where the device can.
        world: processes that take each step together, each with its part of the batch's rows, which
            :meth:`~fastae.distributed.World.part` gives. The step is then that of the whole batch.
        module: what ``loss`` calls where it is no module itself; it then changes no parameter. The module
            tells which parameters are parts of larger ones, for the norm of the gradient. With kernels, the
            steps of one call on an :class:`fastae.nn.Autoencoder` with Adam then have one kernel each for the
            update and the next step's cast and norms of the weights.
        compile: whether to compile the loss and its gradient by torch.compile, once for each shape of the
            batch. Results agree up to rounding, noise exactly. On a CPU this needs a C++ compiler. Where
            compiling fails, a warning says why and the loss runs as it is. Not with several processes.

    Attributes:
        captured: whether the step is replayed, or will be after its first calls.
        reason: why it is or is not captured.
        compiled: whether the loss is compiled, or will be at its first call.

    Raises:
        ValueError: an argument that does not fit, named. From a call, before anything has changed: a batch
            without rows, or a loss or another argument that does not fit.
        FloatingPointError: from a call on a CPU, before the update: the loss is not finite.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        optimizer: Optimizer,
        *,
        data: Sequence[Tensor | None] = (),
        clip_norm: float = 0.0,
        autocast: torch.dtype | None = None,
        graph: bool = True,
        world: World | None = None,
        module: nn.Module | None = None,
        compile: bool = False,
    ) -> None:
        check_nonnegative("clip_norm:", clip_norm)
        if isinstance(data, Tensor):
            raise ValueError("data: expected a sequence of tensors, got a tensor; put it into a list")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            name = type(optimizer).__name__
            raise ValueError(
                f"optimizer: {name} runs the forward pass several times per step, through a closure"
            )
        if clip_norm and not getattr(optimizer, "holds_gradients", True):
            name = type(optimizer).__name__
            raise ValueError(f"clip_norm: expected 0 with {name}, which holds no gradients, got {clip_norm}")
        if compile and world is not None and world.grouped:
            raise ValueError("compile: expected False with several processes, got True")
        self._compiled = Compiled(loss) if compile else None
        self._loss, self.optimizer, self._data = self._compiled or loss, optimizer, tuple(data)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._clip_norm, self._autocast = clip_norm, autocast
        self._module = loss if module is None and isinstance(loss, nn.Module) else module
        self._shards = {} if self._module is None else shards_of(self._module)
        self._device = self._parameters[0].device
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._one: Tensor | None = None  # the gradient of the loss with respect to itself
        self._over: Sums | None = None
        if world is not None and world.grouped:
            split = any(map(is_split, self._parameters))
            self._over = Sums(world, loss, self._parameters, sharded=split)
            self._loss = self._over.loss
        self._graphed: Graphed | None = None
        capture, self.reason = capture_on(self._device) if graph else (None, "not asked for")
        problem = None if capture is None or self._over is None else self._over.capture_problem()
        if problem is not None:
            capture, self.reason = None, f"{problem}; the step runs as it is"
        if capture is not None:
            self._capture_by(capture)

    @property
    def captured(self) -> bool:
        return self._graphed is not None

    @property
    def compiled(self) -> bool:
        return self._compiled is not None and self._compiled.problem is None

    def _capture_by(self, capture: Capture) -> None:
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self._device)
        for state in self.optimizer.state.values():  # of steps before, whose counts may be on the host
            state.update({n: v.to(self._device) for n, v in state.items() if isinstance(v, Tensor)})
        self._graphed = Graphed(self._run, capture)

    def _release(self, problem: str) -> None:
        self._graphed, self.reason = None, f"cannot be captured ({problem})"
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])  # most optimizers read a tensor back at every step
        warnings.warn(f"the training step {self.reason}; it runs as it is", stacklevel=3)

    def __call__(
        self, *batch: Tensor | None, rates: Sequence[float] | None = None, total: int | None = None
    ) -> Any:
        """Take a step, or several.

        Args:
            batch: the arguments of ``loss``, whose first tensor has the rows. With ``data``, the indices of
                the rows instead: int64 [B], or [K, B] for K consecutive steps.
            rates: the learning rate of each step, for all parameters; otherwise the optimizer's own.
            total: with several processes, the rows of the whole batch of a step.

        Returns:
            The result of ``loss`` in the last step, detached; with several processes, that of the own rows.
            A captured step overwrites it at the next call.
        """
        if self._data:
            index = _indices(batch)
            batch, (steps, rows) = (index,), index.shape
        else:
            steps, rows = 1, _rows(batch)
        if not steps or not rows:
            raise ValueError("batch: needs at least one row")
        if rates is not None and len(rates) != steps:
            raise ValueError(f"rates: expected one for each of {steps} steps, got {len(rates)}")
        if (total is None) != (self._over is None):
            raise ValueError("total: expected with several processes, and only then")
        if self._graphed is None:
            return self._run(rates, *batch, total=total)
        on_device = None
        if rates is not None:
            on_device = torch.tensor(rates, dtype=torch.float32).to(self._device, non_blocking=True)
        result = self._graphed(on_device, *batch, total=total)
        if self._graphed.problem is not None:
            self._release(self._graphed.problem)
        return result

    def _run(self, rates: Sequence[float] | Tensor | None, *batch: Tensor | None, total: int | None) -> Any:
        """All steps of one call, which are captured together."""
        batches, steps, rows = iter([batch]), 1, _rows(batch)
        if self._data:
            (index,) = batch
            assert index is not None
            batches, (steps, rows) = _gathered(self._data, index), index.shape
        terms, taken = None, []
        module = None if self._over is not None or self._compiled is not None else self._module
        ahead = steps > 1 and not ops.backend.runs_pytorch(self._device)
        try:
            with (
                updates(self.optimizer, module, steps, self._set_rate) as update,
                drawing_ahead(steps) if ahead else nullcontext(),
            ):
                for k, own in enumerate(batches):
                    terms, values = self._step(update, None if rates is None else rates[k], own, total)
                    taken.append(values)
        finally:
            if taken:
                self._accumulate(taken, rows if total is None else total)
        return terms

    def _step(
        self,
        update: Callable[[float | Tensor | None], None],
        rate: float | Tensor | None,
        batch: tuple[Tensor | None, ...],
        total: int | None,
    ) -> tuple[Any, Sequence[Tensor]]:
        """(result of the loss, detached; values of its terms)."""
        torch.clear_autocast_cache()  # an autocast around the calls would keep the parameters as they were
        share = None
        if self._over is not None and total is not None:
            world = self._over.world
            share = world.share(total)
            world.arrivals += world.parts > 1  # the loss waits for others
        with sharing(share):
            if self._autocast is None:
                terms = self._loss(*batch)
            else:
                with torch.autocast(self._device.type, self._autocast):
                    terms = self._loss(*batch)
        named = self._checked(_named(terms))
        loss, values = named["total"], [term.detach() for term in named.values()]
        if self._over is None or share is None:
            self._check_finite(values[0])
        self.optimizer.zero_grad(set_to_none=True)
        if self._over is None or share is None:
            if self._one is None or self._one.dtype != loss.dtype:
                self._one = torch.ones_like(loss, requires_grad=False)
            loss.backward(self._one)
        else:
            values = self._over.backward(loss, torch.stack(values).to(torch.float64), share).unbind()
            self._check_finite(values[0])
        if self._clip_norm:
            self._clip()
        update(rate)
        torch.clear_autocast_cache()
        if not self._names:
            self._names = list(named)
        return _detached(terms), values

    def _clip(self) -> None:
        """Clip the norm of the whole gradient, to which parts that other processes hold belong."""
        norm = nn.utils.get_total_norm
        gradients = {p: p.grad for p in self._parameters if p.grad is not None}
        of_parts = [g for p, g in gradients.items() if p in self._shards]
        total = norm([g for p, g in gradients.items() if p not in self._shards])
        if of_parts:
            shard = next(iter(self._shards.values()))
            square = shard.reduce(norm(of_parts).square())
            total = torch.hypot(total.to(square), square.sqrt())
        nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, total)

    def _check_finite(self, loss: Tensor) -> None:
        """Refuse an update by a loss that is not finite, where that does not wait for a device."""
        if not self.captured and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place, on the device
            else:
                group["lr"] = rate

    def _checked(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms in the order of the sums; ``ValueError`` where they are not those of the calls before."""
        if not self._names:
            return named
        if named.keys() != set(self._names):
            expected, got = ", ".join(self._names), ", ".join(named)
            raise ValueError(f"loss: expected the terms of the calls before ({expected}), got {got}")
        return {name: named[name] for name in self._names}

    def _accumulate(self, taken: list[Sequence[Tensor]], rows: int) -> None:
        """Add the terms of some steps of so many rows to the sums."""
        values = torch.stack([term for terms in taken for term in terms]).view(len(taken), -1)  # [K, T]
        values = values[0] if len(taken) == 1 else values.sum(0, dtype=torch.float64)
        if self._sums is None:
            self._sums = torch.zeros_like(values, dtype=torch.float64)
        self._sums.add_(values, alpha=rows)

    def sums(self) -> dict[str, float]:
        """Each term times the rows of its batch, summed since the last reset. Waits for the device."""
        return {} if self._sums is None else dict(zip(self._names, self._sums.tolist(), strict=True))

    def reset(self, sums: Mapping[str, float] | None = None) -> None:
        """Set the sums to 0, or to an earlier result of :meth:`sums`."""
        if sums:
            self._names = list(sums)
            values = torch.tensor(list(sums.values()), dtype=torch.float64)
            self._sums = values.to(self._device) if self._sums is None else self._sums.copy_(values)
        elif self._sums is not None:
            self._sums.zero_()  # a graph holds on to it


def steps_per_call(parameters: int, rows: int) -> int:
    """Number of steps of ``rows`` rows that one replay should hold, for a model of so many parameters.

    A replay takes the host about as long whatever it holds, and its steps share small kernels. Small steps
    therefore go together until they hold about 2e11 operations (six per parameter and row): 4 to 32 of them.
    """
    filled = _OPERATIONS_PER_REPLAY // max(1, 6 * parameters * rows)
    return int(min(_MOST_STEPS, max(_FEWEST_STEPS, filled)))


def _rows(batch: tuple[Tensor | None, ...]) -> int:
    """Number of rows of the first tensor; 0 without one."""
    return next((len(t) for t in batch if t is not None), 0)


def _gathered(data: Sequence[Tensor | None], index: Tensor) -> Iterator[tuple[Tensor | None, ...]]:
    """The batch of each step for indices [K, B]; small ones are gathered for several steps at once."""
    rows = index.shape[1]
    size = rows * sum(t[:1].nbytes for t in data if t is not None)
    for part in index.split(max(1, _GATHERED_BYTES // max(1, size))):
        columns = [
            [None] * len(part) if t is None else t.index_select(0, part.flatten()).split(rows) for t in data
        ]
        yield from zip(*columns, strict=True)


def _indices(batch: tuple[Tensor | None, ...]) -> Tensor:
    """The indices of a call's rows, [K, B]."""
    index = batch[0] if len(batch) == 1 else None
    if index is None or index.dtype != torch.int64 or index.dim() not in (1, 2):
        raise ValueError("batch: with data, expected the indices of its rows alone, int64 [B] or [K, B]")
    return index if index.dim() == 2 else index[None]


def _named(terms: Any) -> dict[str, Tensor]:
    """The terms of a loss by name, the total first."""
    if isinstance(terms, Tensor):
        terms = {"total": terms}
    named = dict(terms) if isinstance(terms, Mapping) else getattr(terms, "_asdict", dict)()
    if named.get("total") is None:
        raise ValueError(
            "loss: expected a scalar tensor, or a NamedTuple or dict of them with a 'total', "
            f"got {type(terms).__name__}"
        )
    named = {"total": named.pop("total"), **named}
    named = {name: term for name, term in named.items() if term is not None}
    for name, term in named.items():
        if not isinstance(term, Tensor):
            raise ValueError(f"loss: expected scalar tensors, got {type(term).__name__} as {name!r}")
        if term.dim() or term.is_complex():
            given = f"{term.dtype} of shape {list(term.shape)}"
            raise ValueError(f"loss: expected real scalar tensors, got {given} as {name!r}")
    if not named["total"].requires_grad:
        raise ValueError("loss: the total does not depend on any parameter")
    return named


def _detached(terms: Any) -> Any:
    if isinstance(terms, Tensor):
        return terms.detach()
    if isinstance(terms, Mapping):
        return {name: None if term is None else term.detach() for name, term in terms.items()}
    return type(terms)(*(None if term is None else term.detach() for term in terms))
