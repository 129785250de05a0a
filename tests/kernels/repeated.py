"""A program that makes calls again on the stub driver, and prints what differs: run by ``test_stub.py``.

The first of each pair is as Triton launches it, the second as a launch or a call that was made before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from fastae_kernels import repeats, replay
from fastae_kernels.plan import choices, config
from fastae_kernels.plan.schedules import GemmConfig
from fastae_kernels.tools import stub
from torch import Tensor
from triton import knobs
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

import fastae
from fastae import functional, ops
from tests.kernels.support import BY_TMA, EVERYTHING, OVERLAPPED

DESCRIPTORS = TensorDescriptor, GluonDescriptor

report: dict[str, Any] = {}
launches: list[Any] = []  # (kernel, grid, arguments)
looked_up = 0  # launches whose kernel Triton chose
played = 0


def form(value: Any, addresses: list[int]) -> Any:
    """An argument, with the order in which addresses were first seen in place of addresses."""
    if isinstance(value, Tensor):
        return addresses.index(value.data_ptr()), str(value.dtype)
    if isinstance(value, DESCRIPTORS):
        own = {name: field for name, field in vars(value).items() if name != "base"}
        return form(value.base, addresses), str(own)
    if isinstance(value, tuple):
        return [form(part, addresses) for part in value]
    return str(value)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors_of(part)]
    return [value] if isinstance(value, Tensor) else [value.base] if isinstance(value, DESCRIPTORS) else []


def seen_in(call: Callable[[], Any]) -> list[Any]:
    """The launches of a call: the compiled kernels, grids and arguments."""
    launches.clear()
    call()
    addresses = list(dict.fromkeys(t.data_ptr() for launch in launches for t in tensors_of(launch[2])))
    return [(kernel, grid, form(arguments, addresses)) for kernel, grid, arguments in launches]


def by_triton(call: Callable[[], Any]) -> list[Any]:
    """:func:`seen_in` where nothing is kept."""
    launch, run = repeats.launch, replay._run
    repeats.launch = lambda kernel, programs, args, options: kernel[(programs,)](*args, **options)
    replay._run = lambda function, args, *_: function(*args)
    try:
        return seen_in(call)
    finally:
        repeats.launch, replay._run = launch, run


def compare(group: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Make the first call often, then each of them, where nothing may be taken for the first's."""
    global looked_up, played
    first = next(iter(calls.values()))
    for _ in range(3):
        first()
    report[group] = {}
    for name, call in calls.items():
        expected = by_triton(call)
        for again in range(4):
            looked_up = played = 0
            report[group][f"{name}, {again}"] = {
                "same": seen_in(call) == expected, "launches": len(launches),
                "looked up": looked_up, "played": played,
            }  # fmt: skip


def watch(active: Any) -> None:
    """Count, and keep the arguments of every launch."""
    check = active.launcher_cls.__call__
    run, play = JITFunction.run, replay._Call.play

    def launcher(self: Any, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        launches.append((f"{self._metadata.name} {self._metadata.hash}", (x, y, z), rest[4:]))
        check(self, x, y, z, stream, function, *rest)

    def looking_up(self: Any, *args: Any, **options: Any) -> Any:
        global looked_up
        looked_up += 1
        return run(self, *args, **options)

    def playing(self: Any, tensors: tuple[Tensor, ...], device: int) -> Any:
        global played
        played += 1
        return play(self, tensors, device)

    active.launcher_cls.__call__, JITFunction.run, replay._Call.play = launcher, looking_up, playing


# --- launches -----------------------------------------------------------------------------------------------


@triton.jit
def probe(source, out, n, stride, factor, job, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(source + i * stride, mask=i < n, other=0.0)
    if job[1] is not None:
        x += tl.load(job[1])
    tl.store(out + i, x * factor * KIND, mask=i < n)


ROOM = torch.rand(4096)


def launched(**changes: Any) -> Callable[[], None]:
    """A launch of the probe with some arguments changed."""
    given = {
        "source": ROOM[:64], "out": ROOM[64:128], "n": 48, "stride": 2, "factor": 0.5, "job": (3, None),
        "KIND": 2, "BLOCK": 64, "num_warps": 2,
    } | changes  # fmt: skip
    args = tuple(given.pop(name) for name in ("source", "out", "n", "stride", "factor", "job", "KIND"))
    return lambda: repeats.launch(probe, 3, args, given)


LAUNCHES = {
    "same": launched(),
    "another address": launched(source=ROOM[128:192]),
    "an odd address": launched(source=ROOM[1:65]),
    "an odd address of the result": launched(out=ROOM[65:129]),
    "another dtype": launched(source=ROOM.bfloat16()),
    "a number that is 1": launched(stride=1),
    "a number that is not divisible by 16": launched(n=47),
    "a number that is divisible by 16": launched(stride=16),
    "a number of 64 bits": launched(stride=2**40),
    "another factor": launched(factor=0.25),
    "another number in a tuple": launched(job=(1, None)),
    "an odd address in a tuple": launched(job=(3, ROOM[257:])),
    "another constant by position": launched(KIND=3),
    "another constant by name": launched(BLOCK=128),
    "another option": launched(num_warps=4),
}


# --- calls --------------------------------------------------------------------------------------------------

M, D, H = 64, 96, 128
X, W, B, C = torch.rand(M, D), torch.rand(H, D), torch.rand(H), torch.rand(D)
SEED, OTHER_SEED, Q = torch.tensor([1]), torch.tensor([2]), torch.rand(H)
GRAD = torch.rand(M, H)
CODE = GRAD.bfloat16()


def odd(tensor: Tensor) -> Tensor:
    """The same entries at an address that is no multiple of 16 bytes."""
    room = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    return room.copy_(tensor)


def encoded(**changes: Any) -> Callable[[], Any]:
    options: dict[str, Any] = {"sq_norms": Q, "seed": SEED, "dropout": 0.2, "reduction": "mean"}
    given = {"x": X.bfloat16(), "weight": W.bfloat16(), "bias": B.bfloat16(), "activation": "sigmoid"}
    given |= options | changes
    return lambda: ops.encode(**given)


def decoded(target: Tensor, code: Tensor) -> Callable[[], Any]:
    weight, bias = torch.rand(H, H).bfloat16(), B.bfloat16()
    return lambda: ops.decode_loss(code, weight, bias, target, "mse", reduction="sum")


def within(call: Callable[[], Any], **overrides: Any) -> Callable[[], None]:
    def run() -> None:
        with config.using(**overrides):
            call()

    return run


def weight_grad() -> None:
    """By two products of the library, in float32."""
    with config.using(strategy="split"):
        ops.weight_grad(GRAD, X, scale=Q[0], weight=W, u=Q, a2=GRAD, b2=X, scale2=Q[1], u_scale=Q[2])


def under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        weight_grad()


def in_tf32() -> None:
    with fastae.tensors.float32_products_of("high"):
        encoded(x=X, weight=W, bias=B)()


SQUARE = torch.rand(M, D).bfloat16()
CALLS = {
    "encode": {
        "same": encoded(),
        "other tensors": encoded(x=X.bfloat16(), seed=OTHER_SEED),
        "an odd address": encoded(x=odd(X.bfloat16())),
        "an odd address of a vector": encoded(bias=odd(B.bfloat16())),
        "fewer rows": encoded(x=X[:63].bfloat16()),
        "float32": encoded(x=X, weight=W, bias=B),
        "tf32": in_tf32,
        "another number": encoded(dropout=0.3),
        "no rows": encoded(x=X[:0].bfloat16()),
        "the library's product": within(encoded(), strategy="split"),
        "an epilogue with its own warps": within(encoded(), gemm=OVERLAPPED),
        "another plan": within(encoded(), gemm=GemmConfig(64, 64, 32, 4, 3, tma=True)),
        "float64": encoded(x=X.double(), weight=W.double(), bias=B.double(), sq_norms=Q.double()),
    },
    "decode_loss": {
        "a code that is the target": decoded(CODE, CODE),
        "another target": decoded(CODE.clone(), CODE),
    },
    "weight_grad": {"same": weight_grad, "under autocast": under_autocast},
    "code_grad": {
        name: lambda scale=scale, penalty=penalty: ops.code_grad(
            SQUARE, W.bfloat16().t(), CODE, CODE[:0, 0], "sigmoid", scale, penalty, 0.1, Q, mean=True,
            sums=torch.bfloat16,
        )
        for name, scale, penalty in (
            ("one scale for both", Q[0], Q[0]), ("two scales", Q[0], Q[1]), ("scales per row", Q[:M], Q[:M]),
        )
    },
}  # fmt: skip


def training_step() -> None:
    torch.manual_seed(0)
    x, w, v = X.bfloat16(), W.bfloat16().requires_grad_(), W.bfloat16().t().contiguous().requires_grad_()
    b, c = B.bfloat16().requires_grad_(), C.bfloat16().requires_grad_()
    functional.autoencoder_loss(x, w, b, v, c, **EVERYTHING).total.backward()


def with_new_choice() -> None:
    """A plan that is measured after a call was recorded."""
    call, device = encoded(), stub.DEVICES["h100"]
    for _ in range(3):
        call()
    plan = config.plan(M, H, D, torch.bfloat16, device, operator="encode")
    strategy = "split" if plan.strategy == "fused" else "fused"
    key = choices.Key("encode", "bfloat16", "ieee", heavy=False, aligned=True, k_major=True, M=M, N=H, K=D)
    choice = choices.Choice(strategy, plan.gemm, plan.elementwise)
    choices.save(device.device, [choices.Entry(key, choice, 1.0, 2.0)])
    before = seen_in(call)
    config.forget_choices()
    after = seen_in(call)
    report["choice"] = {"new": {"same": after == by_triton(call) != before}}


def with_hook() -> None:
    """A launch that a hook watches is Triton's."""
    chain: Any = knobs.runtime.launch_enter_hook
    hooked: list[Any] = []
    chain.add(hooked.append)
    try:
        encoded()()
    finally:
        chain.remove(hooked.append)
    assert len(hooked) == 2, hooked  # the product and the sums


stub._Counting = lambda *_: nullcontext()  # calls then reach the operators as they do without
with stub.stub_driver(), config.using(strategy="fused", gemm=BY_TMA):
    watch(triton.runtime.driver.active)
    compare("launch", LAUNCHES)
    for name, calls in CALLS.items():
        compare(name, calls)
    compare("step", {"step": training_step})
    with_hook()
with stub.stub_driver():
    with_new_choice()
json.dump(report, sys.stdout)
