"""Predicted memory, traffic and least time of a training step, before there is a device to run it on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch

from ..checks import check_whole
from ..philox import COLUMN_STEP
from ..sparse.specs import BatchTopK, TopK, parse_sparsity

EstimateDtype = Literal["float32", "bfloat16"]
Sharding = Literal["data", "weights", "units", "latents"]

_WORKSPACE = 1 << 24  # bytes of the block of latents that entries are selected from


class Link(NamedTuple):
    """A kind of device beside its card's peaks: its memory and its ways to others.

    Attributes:
        card: name in the kernels' table of cards, which has the peaks of memory and matrix units.
        family: the architecture that plans are made for.
        multiprocessors: number of them.
        memory: bytes.
        local: bytes per second to the other devices of a node, in one direction.
        per_node: devices per node.
        network: bytes per second to other nodes, in one direction.
    """

    card: str
    family: tuple[str, int | str]
    multiprocessors: int
    memory: float
    local: float
    per_node: int
    network: float


DEVICES = {
    "h100": Link("H100", ("cuda", 90), 132, 80e9, 450e9, 8, 50e9),
    "h200": Link("H200", ("cuda", 90), 132, 141e9, 450e9, 8, 50e9),
    "b200": Link("B200", ("cuda", 100), 148, 180e9, 900e9, 8, 50e9),
    "a100": Link("A100", ("cuda", 80), 108, 80e9, 300e9, 8, 25e9),
    "mi300x": Link("MI300X", ("hip", "gfx942"), 304, 192e9, 448e9, 8, 50e9),
}
"""Kinds of devices, by data sheets; the network is an adapter of 400 Gb/s per device (A100: 200)."""


@dataclass(frozen=True)
class StageEstimate:
    """The prediction for one stage of training.

    Attributes:
        name: of the stage.
        parameters: number of trained parameters that a device holds.
        memory: bytes per device by what takes them: weights, gradients, optimizer, activations.
        wire: bytes that a device sends per step.
        seconds: least seconds of a step by what takes them: matrix units, memory, wire. The first two are
            those of operators that each bounds; ``wire`` may overlap with them.
        step: least seconds of a step.
        limit: what the step waits for, or "memory" if it does not fit.
        epochs_per_hour: at that rate.
    """

    name: str
    parameters: int
    memory: dict[str, float]
    wire: float
    seconds: dict[str, float]
    step: float
    limit: str
    epochs_per_hour: float

    @property
    def bytes(self) -> float:
        """Bytes per device."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Estimate:
    """The predictions for the stages of a run on devices of one kind.

    Attributes:
        device_kind: of the devices.
        devices: number of them.
        capacity: bytes of memory per device.
        stages: one prediction each.
    """

    device_kind: str
    devices: int
    capacity: float
    stages: list[StageEstimate] = field(default_factory=list)

    @property
    def bytes(self) -> float:
        """The most bytes per device of any stage."""
        return max(stage.bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage fits in the devices' memory."""
        return self.bytes <= self.capacity

    @property
    def limit(self) -> str:
        """The first limit: memory where a stage does not fit, else that of the longest step."""
        return max(self.stages, key=lambda stage: (stage.limit == "memory", stage.step)).limit


def estimate(
    sizes: Sequence[int],
    *,
    batch_size: int,
    dtype: EstimateDtype = "float32",
    devices: int = 1,
    device_kind: str = "h100",
    rows: int = 1_000_000,
    sae: str | None = None,
    shard: Sharding = "data",
    shard_size: int = 0,
    tied: bool = True,
) -> Estimate:
    """Predict memory, traffic and the least time of training steps with Adam.

    These are predictions: peaks of data sheets, operators that read each operand once and write each result
    once (``fastae_kernels.tools.cost``), rings that send 2 (N - 1) / N of what they sum. A real step takes
    longer; launches, caches and the host are not in it. Rows on the device are not counted.

    Args:
        sizes: widths of the input and of each code; of a dictionary the input's and the number of latents.
        batch_size: rows of a global batch, which data-parallel devices share.
        dtype: float32, or bfloat16 with float32 parameters.
        devices: number of devices.
        device_kind: h100, h200, b200, a100 or mi300x.
        rows: rows per epoch.
        sae: the activation of a sparse dictionary, as topk:32; ``None`` for a stack of autoencoders.
        shard: "data" copies all parameters to every device and sums gradients. Of a stack, "weights" and
            "units" split what they do in :class:`fastae.train.TrainConfig`. Of a dictionary, "latents" splits
            it by latents, exchanges the largest entries and sums reconstructions.
        shard_size: consecutive devices that hold one copy of a stack together; 0 for all.
        tied: whether the layers of a stack share weights with their decoders.

    Returns:
        One prediction per layer of the stack and one of fine-tuning, or one of the dictionary.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    sizes = list(sizes)
    for name, value in (("batch_size:", batch_size), ("devices:", devices), ("rows:", rows)):
        check_whole(name, value)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes: needs the input's width and at least one code's, got {sizes}")
    if device_kind not in DEVICES:
        raise ValueError(f"device_kind: {device_kind!r} is not one of {', '.join(DEVICES)}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: {dtype!r} is not one of float32, bfloat16")
    if shard not in get_args(Sharding):
        raise ValueError(f"shard: {shard!r} is not one of {', '.join(get_args(Sharding))}")
    parts = _parts(sizes, devices, shard, shard_size)
    options = (batch_size, rows, getattr(torch, dtype), tied, shard, parts)
    setting = _Setting(DEVICES[device_kind], devices, *options)
    if sae is not None:
        if shard not in ("data", "latents"):
            raise ValueError(f"shard: {shard} splits stacks; give data or latents with sae")
        stages = [setting.dictionary(sizes, sae)]
    elif shard == "latents":
        raise ValueError("shard: latents are those of a dictionary; give sae, as topk:32")
    else:
        stages = [setting.stack(f"layer {i + 1}", sizes[i : i + 2], sizes) for i in range(len(sizes) - 1)]
        if len(sizes) > 2:
            stages.append(setting.stack("fine-tuning", sizes, sizes))
    return Estimate(device_kind, devices, setting.link.memory, stages)


def stack_parameters(sizes: Sequence[int], tied: bool = True) -> int:
    """Number of parameters of a stack: weights, once where tied, and the biases of both directions."""
    return sum(D * H * (1 if tied else 2) + D + H for D, H in pairwise(sizes))


def step_memory(
    sizes: Sequence[int],
    rows: int,
    dtype: torch.dtype,
    tied: bool = True,
    shard: Sharding = "data",
    parts: int = 1,
) -> dict[str, float]:
    """Bytes of a training step of a stack on ``rows`` rows: Adam's state, gradients and activations.

    Activations, gathered weights and gradients beyond the parameters' own are those of the fullest moment;
    see :func:`_moments`. bfloat16 needs copies of the weights.
    """
    layers, e = list(pairwise(sizes)), dtype.itemsize
    parameters = own_parameters(sizes, tied, shard, parts)
    lower = dtype != torch.float32
    copied = max(stack_parameters(layer, tied) for layer in layers) if shard == "weights" else parameters
    moments = [(e * rows * values, 4 * more) for values, more in _moments(sizes, tied, shard, parts, 4 // e)]
    activations, more = max(moments, key=lambda moment: moment[0] + moment[1])
    memory: dict[str, float] = {
        "weights": 4 * parameters + e * lower * copied,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": rows * sizes[0] * (4 + e * lower) + activations,
    }
    if shard == "weights":
        memory["gathered"] = more
    else:
        memory["gradients"] += more
    return memory


def _moments(
    sizes: Sequence[int], tied: bool, shard: Sharding, parts: int, wide: int
) -> Iterator[tuple[int, int]]:
    """(values per row, parameters beside a device's own and their gradients) at full moments of a step.

    All codes are there until the backward pass has used them. A layer adds the gradient of its output,
    before and after the activation, and that of its input. The gradient of the reconstruction takes the place
    of the reconstruction, but a stack in parts has its loss from PyTorch's operators, which keep four float32
    tensors of that size; a float32 number counts as ``wide`` values. Tied weights of a stack have two
    gradients, of encoder and decoder, until they are added.

    Split weights are whole where they are used, in the backward pass also the next layer's. Their gradients
    are whole from the decoder to the encoder of a layer. Of split units a layer keeps its part of the code
    and sums its product; a stack gathers every code and its gradient.
    """
    D, H = sizes[:2]
    split = shard == "weights"
    wholes = [split * stack_parameters(layer, tied) for layer in pairwise(sizes)]
    own = [own_units(units, parts) if shard == "units" else units for units in sizes[1:]]
    if len(sizes) == 2:
        yield 2 * own[0] + (2 * D if shard == "units" else D), 2 * wholes[0]
        return
    codes = sum(sizes[1:]) + sum(sizes[1:-1])
    if shard == "units":
        codes += 2 * sum(own)
        yield codes + 4 * wide * D, 0
        yield codes - sizes[-1] + 3 * own[0] + H, 0
    else:
        yield codes + (4 * wide * D if split else D + H), wholes[0]
        for l in range(2, len(sizes)):
            below, above = sizes[l - 1 : l + 1]
            whole = sum(wholes[:l]) + wholes[l - 1]
            yield sum(sizes[1:]) + sum(sizes[l - 1 : -1]) + 2 * below + above, whole + sum(wholes[l : l + 1])
            yield sum(sizes[1 : l + 1]) + 2 * above + below, whole + 2 * tied * wholes[l - 1]
    parameters = own_parameters(sizes, tied, shard, parts)
    yield 3 * H, (2 + 2 * tied) * wholes[0] + wholes[1] if split else tied * parameters


def own_parameters(sizes: Sequence[int], tied: bool, shard: Sharding, parts: int) -> int:
    """The most parameters of a stack that one of ``parts`` devices holds."""
    if shard == "units":
        return sum(stack_parameters((D, own_units(H, parts)), tied) for D, H in pairwise(sizes))
    return math.ceil(stack_parameters(sizes, tied) / (parts if shard == "weights" else 1))


def own_units(units: int, parts: int) -> int:
    """The most units of a layer that one of ``parts`` devices holds; see ``shard_units``."""
    return min(units, math.ceil(math.ceil(units / COLUMN_STEP) / parts) * COLUMN_STEP)


def dictionary_memory(D: int, H: int, k: int, rows: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of a training step of a dictionary of ``k`` entries per row; none of rows times latents."""
    parameters, e = 2 * D * H + H + D, dtype.itemsize
    copies = e * parameters if dtype != torch.float32 else 0
    entries = rows * k * (4 + 8)  # values and latents; and once more, sorted by latent
    return {
        "weights": 4 * parameters + copies + 8 * H,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": rows * D * (4 + 3 * e) + 3 * entries + _WORKSPACE,
    }


def _parts(sizes: Sequence[int], devices: int, shard: Sharding, size: int) -> int:
    """Number of devices that hold one copy together."""
    if shard not in ("weights", "units"):
        if size:
            raise ValueError(f"shard_size: expected 0 unless weights or units are split, got {size}")
        return devices if shard == "latents" else 1
    parts = size or devices
    if parts < 1 or devices % parts:
        raise ValueError(f"shard_size: expected a divisor of the {devices} devices, got {size}")
    least = COLUMN_STEP * (parts - 1) + 1
    if shard == "units" and min(sizes[1:]) < least:
        raise ValueError(
            f"sizes: expected at least {least} units to split over {parts} devices, got {min(sizes[1:])}"
        )
    return parts


@dataclass(frozen=True)
class _Setting:
    """What all stages share."""

    link: Link
    devices: int
    batch: int
    rows: int
    dtype: torch.dtype
    tied: bool
    shard: Sharding
    parts: int

    def stack(self, name: str, widths: Sequence[int], all_sizes: Sequence[int]) -> StageEstimate:
        """A stack of autoencoders that trains as a whole; the others' weights stay on the device."""
        from fastae_kernels.tools import cost

        rows_parts = self.devices // self.parts if self.shard == "units" else self.devices
        M, target, dtype = math.ceil(self.batch / rows_parts), self._target(), self.dtype
        costs = []
        layers = [(D, own_units(H, self.parts) if self.shard == "units" else H) for D, H in pairwise(widths)]
        for D, H in layers:
            costs.append(cost.of("encode", M, D, H, dtype, target))
            costs.append(cost.of("decode_loss", M, D, H, dtype, target, tied=self.tied))
            costs += [cost.of("code_grad", M, D, H, dtype, target, tied=self.tied)]
            weight = cost.of("weight_grad", M, D, H, dtype, target, dual=self.tied)
            costs += [weight] if self.tied else [weight] * 2
        for D, H in layers[1:]:  # gradients also flow to the codes below, through encoder and decoder
            costs += [cost.of("code_grad", M, H, D, dtype, target)] * 2
        memory = step_memory(widths, M, dtype, self.tied, self.shard, self.parts)
        parameters, everything = (
            own_parameters(sizes, self.tied, self.shard, self.parts) for sizes in (widths, all_sizes)
        )
        memory["weights"] += 4 * (everything - parameters)
        copies = self.devices // self.parts
        return self._stage(
            name,
            parameters,
            memory,
            self._wire_of_parts(widths, M),
            costs,
            summed=4 * parameters * _ring(copies),
        )

    def _wire_of_parts(self, widths: Sequence[int], rows: int) -> float:
        """Bytes that a device sends to those that hold the rest of its copy."""
        others = (self.parts - 1) / self.parts  # of what is gathered, or summed into parts
        deep = len(widths) > 2
        if self.shard == "weights":  # gathered for every use in both passes, and summed once
            return 4 * stack_parameters(widths, self.tied) * others * (5 if deep else 3)
        if self.shard != "units":
            return 0.0
        summed = 2 * (sum(widths[:-1]) + sum(widths[1:-1]))  # products, and gradients of the layers' inputs
        return self.dtype.itemsize * rows * others * (summed + (2 * sum(widths[1:]) if deep else 0))

    def dictionary(self, sizes: Sequence[int], sae: str) -> StageEstimate:
        """A sparse dictionary, copied to every device or split by latents."""
        from fastae_kernels.tools import sparse_cost

        activation = parse_sparsity(sae)
        if len(sizes) != 2:
            raise ValueError(
                f"sizes: a dictionary has the input's width and the number of latents, got {list(sizes)}"
            )
        if not isinstance(activation, TopK | BatchTopK):
            raise ValueError(f"sae: only topk and batch_topk have a known number of entries, got {sae!r}")
        D, H, k = sizes[0], sizes[1], math.ceil(activation.k)
        split, copies = self.parts, self.devices // self.parts
        if k > H // split:
            raise ValueError(f"sae: {k} entries per row of {H // split} latents per device")
        M = math.ceil(self.batch / copies)
        own, e = math.ceil(H / split), self.dtype.itemsize
        memory = dictionary_memory(D, own, k, M, self.dtype)
        parameters = 2 * D * own + own + D
        wire = 0.0
        if self.shard == "latents":
            gathered = 8.0 * M * k * (split - 1)  # keys of the local largest entries, from all others
            wire = gathered + 4.0 * M * D * _ring(split)
            memory["activations"] += 8.0 * M * k * split
        costs = list(sparse_cost.step(M, D, own, e, k).values())
        summed = 4 * parameters * _ring(copies)
        name, projected = f"dictionary, {sae}", 12 * 2 * D * own
        return self._stage(name, parameters, memory, wire, costs, summed=summed, projected=projected)

    def _target(self) -> Any:
        from fastae_kernels.launch import Target

        return Target(*self.link.family, self.link.multiprocessors, self.link.card)

    def _stage(
        self,
        name: str,
        parameters: int,
        memory: dict[str, float],
        wire: float,
        costs: list[Any],
        *,
        summed: float,
        projected: float = 0.0,
    ) -> StageEstimate:
        """A prediction from the operators' costs; Adam reads 4 numbers per parameter and writes 3.

        A device sends ``wire`` bytes to the other parts of its copy, which are in one node if they can, and
        ``summed`` to other copies.
        """
        from fastae_kernels.plan.estimate import CARDS

        card = CARDS[self.link.card]
        flops = card.matrix32 if self.dtype == torch.float32 else card.matrix
        seconds = {"matrix units": 0.0, "memory traffic": (7 * 4 * parameters + projected) / card.memory}
        for one in costs:
            compute, traffic = one.flops / flops, one.bytes / card.memory
            seconds["matrix units" if compute > traffic else "memory traffic"] += max(compute, traffic)
        near, far = (
            self.link.local if span <= self.link.per_node else self.link.network
            for span in (self.parts, self.devices)
        )
        seconds["wire"] = wire / near + summed / far
        busy = seconds["matrix units"] + seconds["memory traffic"]
        step = max(busy, seconds["wire"])
        limit = max(seconds, key=lambda part: seconds[part])
        if sum(memory.values()) > self.link.memory:
            limit = "memory"
        per_hour = 3600 / (step * math.ceil(self.rows / self.batch))
        return StageEstimate(name, parameters, memory, wire + summed, seconds, step, limit, per_hour)


def _ring(devices: int) -> float:
    """Share of what ``devices`` sum that each of them sends."""
    return 2 * (devices - 1) / devices
