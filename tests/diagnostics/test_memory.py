"""Live bytes at their peak: a fixed workspace and the results, whatever the number of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastae.diagnostics import jacobian_norm, jacobian_spectrum, networks, tangents

WIDTH = 256
JACOBIAN = 4 * WIDTH * WIDTH  # bytes of a row's


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made under it, and the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def free(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_bytes(call: Callable[[Tensor], Any], rows: int) -> int:
    x = torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    with LiveBytes() as memory:
        call(x)
    return memory.peak


@pytest.fixture(scope="module")
def models(make_layers):
    def make(depth: int):
        layers = make_layers([WIDTH] * (depth + 1), ["sigmoid"] * depth)
        return [(w.float() / WIDTH**0.5, None if b is None else b.float(), f) for w, b, f in layers]

    return {depth: make(depth) for depth in (1, 2)}


def test_the_meter_sees_what_lives_at_once():
    def call(x: Tensor) -> Tensor:
        a = x + 1.0  # 1 lives
        b = a * a  # 2
        del a
        c = b.view(-1) + 1.0  # 2: a is gone, a view is nothing
        return c.view_as(x) + b  # 3

    assert peak_bytes(call, 10) == 3 * 10 * WIDTH * 4


CALLS = {
    "norm, closed form": (1, jacobian_norm, 1),
    "norm, blocks": (2, lambda model, x: jacobian_norm(model, x, method="exact"), 1),
    "norm, estimate": (2, lambda model, x: jacobian_norm(model, x, method="estimate"), 1),
    "spectrum": (1, jacobian_spectrum, 0),
    "tangents": (1, lambda model, x: tangents(model, x, 2), 2 * WIDTH + 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_memory_does_not_grow_with_the_rows_jacobians(name, models):
    """16 times the rows need their results and, up to the workspace, a few arrays of codes."""
    depth, call, result = CALLS[name]
    few, many = (peak_bytes(lambda x: call(models[depth], x), rows) for rows in (64, 1024))
    grown = many - few - 4 * result * (1024 - 64)
    print(f"{name}: {few / 2**20:.1f} MiB for 64 rows, {many / 2**20:.1f} MiB for 1024")
    assert grown <= 10 * 4 * WIDTH * (1024 - 64) < (1024 - 64) * JACOBIAN / 25
    assert many <= 5 * 4 * networks.WORKSPACE + 4 * result * 1024 < 1024 * JACOBIAN / 2


def test_a_norm_needs_less_than_one_jacobian(models, monkeypatch):
    monkeypatch.setattr(networks, "WORKSPACE", 16 * WIDTH)
    for method in ("exact", "estimate"):
        for rows in (3, 30):
            peak = peak_bytes(lambda x, m=method: jacobian_norm(models[2], x, method=m), rows)
            assert peak < JACOBIAN / 2, (method, rows, peak)
