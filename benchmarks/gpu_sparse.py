"""The sparse operators and steps in ``gpu_check.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fastae_kernels import operators
from fastae_kernels.plan import config
from torch import Tensor

import fastae
from benchmarks.gpu_machine import Machine, Save, Work
from fastae.bench.gate import largest_error
from fastae.bench.operators import Tensors
from fastae.optim import DictionaryAdam, constrain
from fastae.train.step import TrainingStep

SPARSE = (8192, 4096, 131_072, 64)
"""Rows, features, latents, and entries per row."""


class _Compared(NamedTuple):
    run: Callable[[], tuple[Tensor, ...]]
    exact: Callable[[], tuple[Tensor, ...]]

    def forward(self) -> Any:
        return self.run()

    def error(self) -> float:
        return largest_error(zip(self.run(), self.exact(), strict=True))


def compared(t: Tensors) -> dict[str, _Compared]:
    """Selections, whose values are compared, sums by segments with their gradients and loss, and Adam."""
    M, k, device = len(t.x), 8, t.x.device
    index = torch.arange(M * k, device=device) % len(t.weight)
    starts = torch.arange(0, M * k + 1, k, device=device)
    values = t.code.flatten()[: M * k].float()
    place = torch.arange(M * k, device=device)
    segment, bound = place // k, torch.full((), 0.25, device=device)

    def exact_sums() -> tuple[Tensor, Tensor]:
        rows = t.weight.double()[index]
        sums = torch.zeros(t.x.shape, dtype=torch.float64, device=device)
        sums.index_add_(0, segment, values.double()[:, None] * rows)
        return sums, (rows * t.x.double()[segment]).sum(1)

    def exact_loss() -> tuple[Tensor, ...]:
        error = exact_sums()[0] + t.decoder_bias.double() - t.x.double()
        return error.square().sum(1), 2.0 * error

    def exact() -> Tensor:
        return t.x.double() @ t.weight.double().t() + t.bias.double()

    def above() -> tuple[Tensor, ...]:
        found = operators.entries_above(t.x, t.weight, t.bias, bound)
        assert found is not None
        return found[0], found[2][1:].double()

    def exact_above() -> tuple[Tensor, ...]:
        z, found = exact(), operators.entries_above(t.x, t.weight, t.bias, bound)
        assert found is not None
        rows = torch.arange(M, device=device).repeat_interleave(found[2].diff())
        return z[rows, found[1]], (z > bound).sum(1).cumsum(0).double()

    def adam(step: Callable[..., None], wide: torch.dtype) -> tuple[Tensor, ...]:
        weight = torch.nn.functional.normalize(t.x.float(), dim=1)
        state = [weight.to(wide), torch.zeros_like(weight, dtype=wide), torch.ones_like(weight, dtype=wide)]
        sums = t.weight, index, starts, values
        rates = torch.tensor([0.1, 0.5], device=device)
        step(*state, rates, (0.9, 0.99), 1e-8, sums, unit=True)
        return tuple(state)

    def exact_adam(p: Tensor, m: Tensor, v: Tensor, *_: Any, **__: Any) -> None:
        g = exact_sums()[0]
        g -= p * (g * p).sum(1, keepdim=True)
        m.add_(0.1 * g)
        v.mul_(0.99).add_(0.01 * g * g)
        p.sub_(0.1 * m / (v.sqrt() / 0.5 + 1e-8))
        p.div_(p.norm(dim=1, keepdim=True))

    return {
        "segment_sums": _Compared(
            lambda: operators.segment_sums(t.weight, index, starts, values, t.x, place),  # pyright: ignore[reportArgumentType]
            exact_sums,
        ),
        "segment_loss": _Compared(
            lambda: operators.segment_loss(t.weight, index, starts, values, t.x, t.decoder_bias), exact_loss
        ),
        "top_entries": _Compared(
            lambda: operators.top_entries(t.x, t.weight, t.bias, k)[:1], lambda: (exact().topk(k, 1).values,)
        ),
        "batch_entries": _Compared(
            lambda: (operators.batch_entries(t.x, t.weight, t.bias, M * k)[0].sort().values,),
            lambda: (exact().relu().flatten().topk(M * k).values.sort().values,),
        ),
        "entries_above": _Compared(above, exact_above),
        "adam_rows": _Compared(
            lambda: adam(operators.adam_rows, torch.float32), lambda: adam(exact_adam, torch.float64)
        ),
    }


def sparse(here: Machine, save: Save) -> dict[str, Any]:
    """The kernels of a sparse dictionary's step beside the encoder's product, and whole steps, at one shape.

    Also whether two runs of three steps end with the same bits.
    """
    shape = (256, 4096, 2048, 64) if here.dry else SPARSE  # all that kernels are made for
    found: dict[str, Any] = {"shape": shape, "times": _times(here, *shape), "problems": {}}
    save(found)
    x = torch.randn(*shape[:2], device=here.device)
    for name in ("DictionaryAdam", "Adam"):
        (step, one), (_, two) = (_steps(here, name, x, *shape[2:]) for _ in range(2))
        found[f"{name} captured"] = step.captured, step.reason
        if not here.dry and not torch.equal(one, two):
            found["problems"][name] = "two runs differ"
        task = here.clock.task(Work(functools.partial(step, x), capturable=False), "forward")
        found["times"] |= here.measure({f"step, {name}": task}, 0.3 * here.left)
        save(found)
        del step, task
    return found


def _times(here: Machine, M: int, D: int, H: int, k: int) -> dict[str, Any]:
    with torch.device(here.device):
        x, weight = torch.randn(M, D, dtype=torch.bfloat16), torch.randn(H, D, dtype=torch.bfloat16)
        bias, latents = torch.randn(H), torch.arange(M * k) * 7919 % H
        by_row, values = torch.arange(0, M * k + 1, k), torch.rand(M * k)
        ordered, order = latents.sort(stable=True)
        by_latent = torch.searchsorted(ordered, torch.arange(H + 1))
        (p, m, v), rates = torch.zeros(3, H, D), torch.tensor([1e-3, 0.1])
    sums = x, order // k, by_latent, values[order]
    work: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(x, weight.t()),
        "top_entries": lambda: operators.top_entries(x, weight, bias, k),
        "batch_entries": lambda: operators.batch_entries(x, weight, bias, M * k),
        "segment_loss": lambda: operators.segment_loss(weight, latents, by_row, values, x),
        "decode_grad": lambda: operators.segment_sums(*sums, weight, order),
        "adam_rows": lambda: operators.adam_rows(p, m, v, rates, (0.9, 0.999), 1e-8, sums, unit=True),
    }
    tasks = {}
    for name, run in work.items():  # one of which waits for the device
        tasks[name] = here.clock.task(Work(run, capturable=name != "batch_entries"), "forward")
    tiles = config.configurations(here.target, torch.bfloat16, operator="top_entries")
    for gemm in tiles[:4]:
        with config.using(gemm=gemm):
            tasks[f"top_entries {gemm}"] = here.clock.task(Work(work["top_entries"]), "forward")
    return here.measure(tasks, 0.4 * here.left)


def _steps(here: Machine, name: str, x: Tensor, H: int, k: int) -> tuple[TrainingStep, Tensor]:
    """A training step after three calls, and rows of its weights."""
    torch.manual_seed(0)
    sae = fastae.nn.SparseAutoencoder(x.shape[1], H, f"topk:{k}", device=here.device)
    if name == "DictionaryAdam":
        optimizer: torch.optim.Optimizer = DictionaryAdam(sae)
    else:
        optimizer = constrain(torch.optim.Adam(sae.parameters(), fused=not here.dry), sae)
    step = TrainingStep(sae, optimizer, autocast=torch.bfloat16, graph=not here.dry)
    for _ in range(3):
        step(x)
    return step, sae.encoder.weight.detach()[:: H // 64].clone()
