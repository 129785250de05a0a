"""Kernels under the rest of the system: compilation, operators' contracts, autocast, modules and imports."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastae_kernels
import pytest
import torch
from fastae_kernels.operators import run
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastae import SaltAndPepper, functional, ops
from fastae.nn import Autoencoder, StackedAutoencoder
from tests.kernels.support import DEVICE, small_tiles
from tests.test_ops import CASES

KERNELS = Path(fastae_kernels.__file__).parent


def leaves(parameters: Callable, rows: int = 5, features: int = 7, units: int = 6, **options: Any) -> Any:
    p = parameters(rows, features, units).leaves(**{"dtype": torch.float32, **options})
    return type(p)(*(t.detach().to(DEVICE).requires_grad_() for t in p))


@pytest.fixture
def on_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sends the calls that follow to a backend."""

    def choose(name: str) -> None:
        monkeypatch.setenv("FASTAE_BACKEND", name)
        ops.forget_backends()

    return choose


# --- torch.compile --------------------------------------------------------------------------------------


def objective(*tensors: Tensor | None, **options: Any) -> list[Tensor]:
    return [term for term in functional.autoencoder_loss(*tensors, **options) if term is not None]


def pieces(x, w, b, v, c, target) -> list[Tensor]:
    """Every other function in one step."""
    noisy = functional.corrupt(x, SaltAndPepper(0.3))
    code, penalty = functional.contractive_encode(noisy, w, b, "tanh")
    reconstruction = functional.reconstruction_loss(code, v, c, target, "bce")
    return [penalty, reconstruction, functional.encode(code, w.t(), None, "silu").square().mean()]


def step(function: Callable, tensors: Any, **options: Any) -> list[Tensor]:
    """The values and the gradients of their sum."""
    torch.manual_seed(0)
    values = function(*tensors, **options)
    wanted = [tensor for tensor in tensors if tensor is not None]
    return [*values, *torch.autograd.grad(sum(values), wanted, allow_unused=True, materialize_grads=True)]


def assert_compiled_is_eager(
    function: Callable, tensors: Any, backend: str, tolerance: float, **options: Any
) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    one, two = step(compiled, tensors, **options), step(function, tensors, **options)
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_compiled_step_is_the_eager_one_bit_for_bit(tied: bool, parameters, everything):
    x, w, b, v, c, _ = leaves(parameters)
    assert_compiled_is_eager(objective, (x, w, b, None if tied else v, c), "aot_eager", 0.0, **everything)


def test_compiled_pieces_are_the_eager_ones_bit_for_bit(parameters):
    assert_compiled_is_eager(pieces, leaves(parameters), "aot_eager", 0.0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compiled_step_is_the_eager_one_under_inductor(parameters, everything):
    x, w, b, _, c, _ = p = leaves(parameters)
    assert_compiled_is_eager(pieces, p, "inductor", 1e-6)
    # a weight that is a transposed view, as when the decoder's weight serves as the encoder's
    with torch._inductor.config.patch(fallback_random=True):
        view = w.t().contiguous().t()
        assert_compiled_is_eager(objective, (x, view, b, None, c), "inductor", 1e-6, **everything)


# --- the operators --------------------------------------------------------------------------------------


PRODUCTS = "encode", "decode_loss", "decode_loss_target_grad", "code_grad", "weight_grad"


@pytest.mark.parametrize(
    ("strategy", "name", "arguments"),
    [
        pytest.param(strategy, name, arguments, id=f"{strategy}-{name}-{number}")
        for strategy in ("fused", "split")
        for name, cases in CASES.items()
        for number, arguments in enumerate(cases)
        if strategy == "fused" or name in PRODUCTS
    ],
)
def test_operator_is_what_its_schema_and_fake_say(strategy: str, name: str, arguments: tuple[Any, ...]):
    """Shapes, strides and dtypes; no output shares memory with an input, and none is written to."""
    arguments = tree_map_only(Tensor, lambda t: t.to(DEVICE), arguments)
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    with small_tiles(strategy):
        torch.library.opcheck(getattr(torch.ops.fastae, name).default, arguments, test_utils=checks)


@pytest.mark.parametrize(("dtype", "launches"), [(torch.float32, True), (torch.float64, False)], ids=str)
def test_kernels_run_where_they_can(dtype: torch.dtype, launches: bool, parameters, everything, monkeypatch):
    """So that the tests of this folder test what they say."""
    seen: list[str] = []

    def launch(kernel: Any, *args: Any, **options: Any) -> None:
        seen.append(kernel.__name__)
        original(kernel, *args, **options)

    original = run.launch
    monkeypatch.setattr(run, "launch", launch)
    step(objective, leaves(parameters, dtype=dtype)[:5], **everything)
    assert {"gemm", "elementwise", "fold", "squared_norms"} <= set(seen) if launches else not seen


def test_double_precision_is_computed_by_pytorch(call, parameters, on_backend):
    results = []
    for backend in ("triton", "torch"):
        on_backend(backend)
        tensors = leaves(parameters, 5, 6, 6, dtype=torch.float64)
        results.append(step(lambda *p: [term.sum() for term in call(*p, "none")], tensors))
    assert results[0][0].dtype == torch.float64
    torch.testing.assert_close(*results, rtol=0.0, atol=0.0)


def test_second_derivatives_raise(call, parameters):
    p = leaves(parameters, 5, 6, 6)
    value = sum(term.square().sum() for term in call(*p, "none"))
    (grad,) = torch.autograd.grad(value, p.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


# --- autocast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRODUCTS)
def test_operator_works_in_the_dtypes_it_is_given_under_autocast(name: str, strategy: str):
    for arguments in CASES[name]:
        arguments = tree_map_only(Tensor, lambda t: t.to(DEVICE), arguments)
        if (
            any(isinstance(t, Tensor) and t.dtype == torch.bfloat16 for t in arguments)
            and DEVICE.type == "cpu"
        ):
            continue  # wrong in the interpreter
        outside = getattr(ops, name)(*arguments)
        with torch.autocast(DEVICE.type, torch.float16):
            inside = getattr(ops, name)(*arguments)
        torch.testing.assert_close(inside, outside, rtol=0.0, atol=0.0)


def test_autocast_gives_the_dtypes_of_a_linear_layer(parameters):
    p = leaves(parameters)
    layer = nn.Linear(7, 6, device=DEVICE)
    layer.weight, layer.bias = nn.Parameter(p.weight.detach()), nn.Parameter(p.bias.detach())
    with torch.autocast(DEVICE.type, torch.float16):
        code, expected = functional.encode(p.x, p.weight, p.bias, "tanh"), torch.tanh(layer(p.x))
    assert code.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(code, expected, rtol=2e-3, atol=2e-3)
    mine, theirs = (
        torch.autograd.grad(c.float().sum(), w) for c, w in ((code, p.weight), (expected, layer.weight))
    )
    assert mine[0].dtype == theirs[0].dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


def test_autocast_step_is_close_to_the_one_in_single_precision(parameters, everything):
    x, w, b, v, c, _ = leaves(parameters, 20, 16, 8)
    options = everything | {"higher_order": 0.0}
    expected = step(objective, (x, w / 4.0, b, v / 4.0, c), **options)
    with torch.autocast(DEVICE.type, torch.float16):
        results = step(objective, (x, w / 4.0, b, v / 4.0, c), **options)
    for one, two in zip(results, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() <= 1e-2 * two.norm()


# --- modules --------------------------------------------------------------------------------------------


def trained(model: nn.Module, loss: Callable[[], Tensor], steps: int = 4) -> list[Tensor]:
    """The losses on the way and the parameters at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    torch.manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return [*losses, *(p.detach() for p in model.parameters())]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_autoencoder_learns_as_on_pytorch(tied: bool, everything, on_backend):
    def run(backend: str) -> list[Tensor]:
        on_backend(backend)
        torch.manual_seed(1)
        x = torch.rand(33, 20).to(DEVICE)
        model = Autoencoder(20, 12, tied=tied, **everything).to(DEVICE)
        return trained(model, lambda: model(x).total)

    kernels, pytorch = run("triton"), run("torch")
    torch.testing.assert_close(kernels, pytorch, rtol=1e-5, atol=1e-5)
    assert kernels[3] < kernels[0]


def test_stack_learns_as_on_pytorch(on_backend):
    options = {"corruption": "masking:0.3", "contractive": 0.1, "dropout": 0.2, "l1": 0.01}

    def run(backend: str) -> list[Tensor]:
        on_backend(backend)
        torch.manual_seed(1)
        x = torch.rand(33, 20).to(DEVICE)
        stack = StackedAutoencoder([20, 12, 7], probes=2, **options).to(DEVICE)
        inner = stack.encode(x, 1).detach()
        before = trained(stack.layers[1], lambda: stack.layers[1](inner).total)
        return before + trained(stack, lambda: stack(x).total) + [stack.reconstruct(x).detach()]

    torch.testing.assert_close(run("triton"), run("torch"), rtol=1e-5, atol=1e-5)


# --- imports and processes ------------------------------------------------------------------------------


def test_kernels_import_nothing_of_fastae():
    for file in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
                depth = len(file.relative_to(KERNELS).parents)
                assert node.level <= depth, f"{file.name}:{node.lineno} leaves the package"
            assert not any(name.split(".")[0] == "fastae" for name in names), f"{file.name}:{node.lineno}"


def in_a_process(code: str, **environment: str) -> str:
    """Output of the code in a Python process without TRITON_INTERPRET."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTAE_BACKEND")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", code], env=env | environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


STEP = """
import sys, torch
import fastae, fastae.nn
from fastae import functional
model = fastae.nn.Autoencoder(6, 4, corruption="masking:0.3", contractive=0.1)
try:
    model(torch.rand(3, 6)).total.backward()
except ValueError as error:
    print("ValueError", error)
print("triton" in sys.modules)
"""


def test_training_on_the_cpu_never_imports_triton():
    assert in_a_process(STEP).split() == ["False"]


def test_asking_for_kernels_on_the_cpu_without_the_interpreter_raises():
    lines = in_a_process(STEP, FASTAE_BACKEND="triton").splitlines()
    assert lines[0].startswith("ValueError FASTAE_BACKEND: 'triton' is asked for")
    assert "TRITON_INTERPRET=1" in lines[0]
