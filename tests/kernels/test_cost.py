"""Costs of operators: the counts equal those of the tensors and products of a real call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.device import noise
from fastae_kernels.launch import target_of
from fastae_kernels.operators import run
from fastae_kernels.plan import config
from fastae_kernels.plan.roofline import product
from fastae_kernels.tools import cost, sparse_cost
from fastae_kernels.tools.aot import TARGETS
from fastae_kernels.tools.cost import Cost
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.comparison import normal, uniform
from tests.kernels.support import DEVICE

M, D, H = 33, 40, 26
HOPPER = TARGETS["cuda:90"]


# --- bytes: of every tensor that a kernel or a library's product takes, once ------------------------------


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, noise.Corruption):
        yield value.out  # its source is the pass's own
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


class Traffic(TorchDispatchMode):
    """The bytes of what is read and written; one number, as a scale or a seed, is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def _count(self, tensors: list[Tensor]) -> None:
        apart = {tensor.data_ptr(): tensor for tensor in tensors if tensor.numel() > 1}
        self.bytes += sum(tensor.nbytes for tensor in apart.values())

    def launched(self, kernel: str, args: tuple[Any, ...]) -> None:
        self._count(list(_tensors(args)))
        if kernel == "elementwise" and any(args[0] is tensor for tensor in _tensors(args[1:])):
            self.bytes += args[0].nbytes  # a pass in place reads and writes it
        if kernel == "adam":
            self.bytes += sum(t.nbytes for t in (args[0].parameter, args[0].exp_avg, args[0].exp_avg_sq))

    def multiplied(self, *tensors: Tensor) -> None:
        self._count(list(tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.name() in (
            "aten::add_.Tensor",
            "aten::mul.Tensor",
            "aten::_to_copy",
            "aten::sort.stable",
            "aten::zeros",
        ):
            self.bytes += sum(t.nbytes for t in (*_tensors(args), *_tensors(out)) if t.numel() > 1)
        return out


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    launch, mm = run.launch, torch.mm

    @contextmanager
    def counting() -> Iterator[Traffic]:
        mode = Traffic()

        def counted(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
            mode.launched(kernel.__name__, args)
            with torch.utils._python_dispatch._disable_current_modes():
                launch(kernel, programs, device, *args, **options)

        def counted_mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
            result = mm(a, b, out=out)
            mode.multiplied(a, b, result)
            return result

        with monkeypatch.context() as patch, mode:
            patch.setattr(run, "launch", counted)
            patch.setattr(torch, "mm", counted_mm)  # inside fastae's operators no mode sees it
            yield mode

    return counting


def _mask(width: int = 16) -> noise.Mask:
    return noise.Mask(torch.tensor([5], device=DEVICE), 0, 0, noise.BITS[width])


def _case(name: str, dtype: torch.dtype, tied: bool, o: dict[str, Any]) -> Callable[[], Any]:
    """A call of an operator of the options that :mod:`fastae_kernels.tools.cost` has."""
    x, x2 = (uniform(M, D, seed=seed).to(dtype) for seed in (0, 1))
    h, h2, h3, h4 = (uniform(M, H, seed=seed).to(dtype) for seed in (2, 3, 4, 5))
    weight = normal(H, D).to(dtype)
    decoder = weight.t() if tied else normal(D, H).to(dtype)
    bias, decoder_bias = normal(H).to(dtype), normal(D).to(dtype)
    q, q2, one = *torch.rand(2, H, device=DEVICE), torch.ones((), device=DEVICE)
    rows, sums = torch.rand(M, device=DEVICE), torch.rand(D, device=DEVICE)
    x32, weight32 = x.float(), weight.float()
    activation = o.get("activation", "sigmoid")
    preact = h4 if activation == "gelu" else None
    seed = torch.tensor([5], device=DEVICE)
    dropout = _mask()._replace(stream=3) if o.get("dropout") else None
    emphasis = {"mask": _mask(), "corrupted": 2.0, "clean": 0.5} if o.get("emphasis") else {}
    difference = o.get("difference")
    gaussian = noise.Noise(noise.CODE_NOISES["gaussian"], 2, 0.1)
    calls = {
        "encode": lambda: operators.encode(
            x,
            weight,
            bias if o.get("bias", True) else None,
            activation,
            sq_norms=q if o.get("contractive") or difference else None,
            base_code=h if difference else None,
            base_preact=preact if difference else None,
            l1=o.get("l1", False),
            code_sum=o.get("code_sum", False),
            dropout=dropout,
            seed=seed,
            reduction="mean" if o.get("reduced", True) else "none",
            noise=gaussian if o.get("noise") else None,
        ),
        "decode_loss": lambda: operators.decode_loss(
            h,
            decoder,
            decoder_bias if o.get("bias", True) else None,
            x,
            o.get("loss", "bce"),
            column_sums=o.get("column_sums", True),
            reduction="mean" if o.get("reduced", True) else "none",
            **emphasis,
        ),
        "decode_loss_target_grad": lambda: operators.decode_loss_target_grad(
            h, decoder, decoder_bias, x, o.get("loss", "bce"), **emphasis
        ),
        "code_grad": lambda: operators.code_grad(
            *((x, decoder) if o.get("product", True) else (h2, None)),
            h,
            h4,
            activation,
            dropout=dropout,
            scale=one,
            penalty_scale=(rows if o.get("per_row") else one) if o.get("contractive") else None,
            mean=True,
            sums=dtype,
            column_sums=sums if o.get("column_sums") else None,
            sq_norms=q if o.get("contractive") and activation != "relu" else None,
            l1_scale=one if o.get("l1") else None,
            column_grad=q2 if o.get("column_grad") else None,
            extra=h3 if o.get("extra") else None,
        ),
        "weight_grad": lambda: operators.weight_grad(
            h,
            x,
            one if o.get("scale", True) and not o.get("dual") else None,
            weight if o.get("contractive") else None,
            q if o.get("contractive") else None,
            *((h2, x2, one if o.get("scale", True) else None) if o.get("dual") else (None,) * 3),
            u_scale=one,
            u_factor=2.0,
            mean=True,
            dtype=torch.float32 if o.get("wide") else None,
        ),
        "slope_difference_grad": lambda: operators.slope_difference_grad(
            h, preact, h2, h3, activation, q, one
        ),
        "corrupt": lambda: operators.corrupt(
            x32 if o.get("cast") else x,
            noise.Corruption(noise.CORRUPTIONS[o.get("kind", "masking")], *_mask(32)[:4], hits=1 << 31),
            dtype,
        ),
        "swap_backward": lambda: operators.swap_backward(x, _mask(32), 1 << 31),
        "perturb": lambda: operators.perturb(h, gaussian, dropout, seed),
        "random_signs": lambda: operators.random_signs(h, seed, 7),
        "squared_norms": lambda: operators.squared_norms(weight),
        "cast_weight": lambda: operators.cast_weight(weight32, dtype),
        "adam": lambda: operators.adam(
            [
                operators.Updated(
                    *torch.rand(4, H, D, device=DEVICE), one, 1, *((weight, q) if o["prepares"] else ())
                )
            ],
            *(0.1, (0.9, 0.99), 1e-8, 0.0, False),
        ),
    }
    return calls[name]


OPERATORS: list[tuple[str, dict[str, Any]]] = [
    ("encode", {}),
    ("encode", {"contractive": True, "bias": False}),
    ("encode", {"activation": "gelu", "contractive": True, "l1": True, "code_sum": True, "dropout": True}),
    ("encode", {"noise": True, "dropout": True, "l1": True}),
    ("encode", {"contractive": True, "l1": True, "reduced": False}),
    ("encode", {"activation": "tanh", "difference": True, "reduced": False}),
    ("encode", {"activation": "gelu", "difference": True}),
    ("decode_loss", {}),
    ("decode_loss", {"reduced": False}),
    ("decode_loss", {"loss": "mse", "bias": False, "emphasis": True, "column_sums": False}),
    ("decode_loss_target_grad", {"loss": "mse"}),
    ("code_grad", {}),
    ("code_grad", {"contractive": True, "l1": True, "column_grad": True, "column_sums": True}),
    ("code_grad", {"contractive": True, "per_row": True}),
    ("code_grad", {"activation": "gelu", "contractive": True, "extra": True, "dropout": True}),
    ("code_grad", {"activation": "relu", "contractive": True}),
    ("code_grad", {"product": False, "contractive": True}),
    ("weight_grad", {}),
    ("weight_grad", {"scale": False}),
    ("weight_grad", {"contractive": True, "scale": False}),
    ("weight_grad", {"dual": True}),
    ("weight_grad", {"dual": True, "scale": False}),
    ("weight_grad", {"dual": True, "contractive": True}),
    ("slope_difference_grad", {}),
    ("slope_difference_grad", {"activation": "gelu"}),
    ("weight_grad", {"contractive": True, "scale": False, "wide": True}),
    ("weight_grad", {"dual": True, "contractive": True, "wide": True}),
    ("corrupt", {}),
    ("corrupt", {"cast": True}),
    ("corrupt", {"kind": "swap"}),
    ("swap_backward", {}),
    ("perturb", {}),
    ("random_signs", {}),
    ("squared_norms", {}),
    ("cast_weight", {}),
    ("adam", {"prepares": True}),
    ("adam", {"prepares": False}),
]
CASES = [pytest.param(*case, id=" ".join(map(str, (case[0], *case[1].items())))) for case in OPERATORS]


def counts(name: str, dtype: torch.dtype, tied: bool, options: dict[str, Any]) -> Cost:
    """The cost of a call; of its options only those that cost something are known there."""
    known = {"dropout", *inspect.signature(cost._COUNTS[name]).parameters}
    some = {option: value for option, value in options.items() if option in known}
    return cost.of(name, M, D, H, dtype, target_of(DEVICE), tied=tied, **some)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_bytes_are_those_of_the_tensors(name, options, strategy: str, traffic):
    tied = strategy == "fused"
    dtype = torch.float16 if tied else torch.float32
    call = _case(name, dtype, tied, options)
    with traffic() as counted:
        call()
    assert counts(name, dtype, tied, options).bytes == counted.bytes


def test_every_operator_is_counted():
    assert set(cost._COUNTS) == {name for name, _ in OPERATORS}
    sparse = {name for name in operators.__all__ if hasattr(sparse_cost, name)}
    assert {*cost._COUNTS, *sparse} == set(operators.__all__) - {"DTYPES", "Updated", "append_passing"}


# --- operations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_products_are_those_of_the_library(name, options):
    call = _case(name, torch.float32, True, options)
    with config.using(strategy="split"), FlopCounterMode(display=False) as counter:
        call()
    assert counts(name, torch.float32, True, options).flops == counter.get_total_flops()


# --- sums and times ---------------------------------------------------------------------------------------


def test_splitting_costs_the_result_written_and_read_again():
    shape = (8192, 2048, 4096)
    with config.using(strategy="fused"):
        fused = config.plan(8192, 4096, 2048, torch.bfloat16, HOPPER)
    split = config.plan(8192, 4096, 2048, torch.bfloat16, HOPPER, aligned=False)
    assert split.strategy == "split"
    more = cost.encode(*shape, 2, split).bytes - cost.encode(*shape, 2, fused).bytes
    assert more == 2 * 2 * 8192 * 4096


def test_the_slower_of_memory_and_arithmetic_takes_the_time():
    work = Cost(bytes=600, flops=2000)
    assert work.seconds(100.0, 1000.0) == 6.0 and work.seconds(1000.0, 1000.0) == 2.0
    assert work + work == work * 2 == Cost(1200, 4000)


def test_a_bare_product():
    a, b = normal(5, 7).float(), normal(7, 3).float()
    with FlopCounterMode(display=False) as counter:
        out = a @ b
    assert product(5, 3, 7, 4) == Cost(a.nbytes + b.nbytes + out.nbytes, counter.get_total_flops())
