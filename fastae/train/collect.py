"""Activations of any module as rows, in memory or as shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Shards, ShardWriter


class _Stop(Exception):
    """Every module has been called."""


def collect(
    model: nn.Module,
    modules: str | nn.Module | Sequence[str | nn.Module],
    batches: Iterable[Any],
    *,
    mask: str | Callable[[Any], Tensor] | None = None,
    out: Path | str | None = None,
    dtype: torch.dtype | None = None,
    rows_per_shard: int = 65_536,
    metadata: Mapping[str, Any] | None = None,
    stop: bool = False,
) -> dict[str, Tensor] | dict[str, Shards]:
    """Run a model on batches and keep the outputs of some of its modules as rows.

    The model runs in evaluation mode without gradients, and is left in the modes it was in. All dimensions of
    an output but the last become rows, so that every position of a sequence is one; of an output that is a
    tuple, a list or a mapping, the first tensor is taken. A module that is called several times gives rows at
    each call.

        shards = collect(model, ["blocks.3", "blocks.7"], batches, out="activations", mask="attention_mask")
        fastae.train.load_dataset("activations/blocks.3")

    Args:
        model: any module.
        modules: some of its modules, or their names as of ``named_modules``.
        batches: tensors, tuples of arguments, or mappings of named arguments; moved to the model's device.
        mask: what of a batch tells the positions to keep: the name of an argument, or a function of the
            batch; a tensor of the outputs' shape without the last dimension.
        out: a folder; each module's shards go to the folder of its name within. ``None`` keeps the rows in
            memory, on the CPU.
        dtype: of the rows that are kept; by default the outputs' own.
        rows_per_shard, metadata: as for :class:`ShardWriter`; the module's name is added as ``module``.
        stop: end each pass through the model once every module has been called.

    Returns:
        By the name of each module its rows [N, D], or its :class:`Shards`.

    Raises:
        ValueError: a name that is no module, an output without tensors, or a mask that does not fit.
    """
    wanted = [modules] if isinstance(modules, str | nn.Module) else list(modules)
    named = _find(model, wanted)
    parts: dict[str, list[Tensor]] = {name: [] for name in named}
    keep: Tensor | None = None
    called: set[str] = set()

    with ExitStack() as held:
        writers: dict[str, ShardWriter] = {}
        for name in named if out is not None else ():
            options: Any = {"rows_per_shard": rows_per_shard, "dtype": dtype}
            notes = {**(metadata or {}), "module": name}
            writer = ShardWriter(Path(out or "") / (name or type(model).__name__), metadata=notes, **options)
            writers[name] = held.enter_context(writer)

        def receive(name: str, output: Any) -> None:
            rows = _rows(name, output, keep)
            if name in writers:
                writers[name].write(rows)
            else:
                parts[name].append(rows.to("cpu", dtype or rows.dtype, copy=True))
            called.add(name)
            if stop and len(called) == len(named):
                raise _Stop

        for name, module in named.items():
            hook = module.register_forward_hook(lambda m, args, output, name=name: receive(name, output))
            held.callback(hook.remove)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with _evaluation(model), torch.no_grad():
            for batch in batches:
                batch = _on_device(batch, device)
                keep = None if mask is None else batch[mask] if isinstance(mask, str) else mask(batch)
                called.clear()
                with suppress(_Stop):
                    _call(model, batch)
    if out is not None:
        return {name: Shards(writer.folder) for name, writer in writers.items()}
    return {name: torch.cat(rows) if rows else torch.empty(0, 0) for name, rows in parts.items()}


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    else:
        model(*batch) if isinstance(batch, tuple) else model(batch)


def _find(model: nn.Module, wanted: Sequence[str | nn.Module]) -> dict[str, nn.Module]:
    """Modules by name."""
    known = dict(model.named_modules())
    names = {id(module): name for name, module in known.items()}
    found: dict[str, nn.Module] = {}
    for one in wanted:
        name = one if isinstance(one, str) else names.get(id(one))
        if name is None or name not in known:
            shown = ", ".join(list(known)[1:9])
            raise ValueError(f"modules: expected modules of the model ({shown}, ...), got {one!r}")
        found[name] = known[name]
    if not found:
        raise ValueError("modules: expected at least one")
    return found


def _rows(name: str, output: Any, keep: Tensor | None) -> Tensor:
    """The rows [N, D] of a module's output, of the positions to keep."""
    while not isinstance(output, Tensor):
        values = output.values() if isinstance(output, Mapping) else output
        first = next(iter(values), None) if isinstance(values, Iterable) else None
        if first is None:
            raise ValueError(f"modules: {name} gives {type(output).__name__}, which holds no tensor")
        output = first
    if output.dim() < 2:
        raise ValueError(f"modules: {name} gives shape {list(output.shape)}, expected [..., features]")
    if keep is None:
        return output.flatten(0, -2)
    if keep.shape != output.shape[:-1]:
        shape = list(output.shape[:-1])
        raise ValueError(f"mask: expected shape {shape} for {name}, got {list(keep.shape)}")
    return output[keep.to(output.device, torch.bool)]


def _on_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _on_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_on_device(value, device) for value in batch)
    return batch


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; then each module is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
