"""torch.compile, which sees plain operators on a CPU, and the number of matrix products in a step."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from fastae import SaltAndPepper, functional

PLAIN = {"contractive": 0.3, "loss": "mse", "activation": "gelu", "output_activation": "sigmoid"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def objective(*leaves: Tensor | None, **options: Any) -> list[Tensor]:
    return [term for term in functional.autoencoder_loss(*leaves, **options) if term is not None]


def pieces(x, w, b, v, c, target) -> list[Tensor]:
    """Every other function in one step."""
    noisy = functional.corrupt(x, SaltAndPepper(0.3))
    code, penalty = functional.contractive_encode(noisy, w, b, "tanh")
    reconstruction = functional.reconstruction_loss(code, v, c, target, "bce")
    return [penalty, reconstruction, functional.encode(code, w.t(), None, "silu").square().mean()]


def step(function, leaves, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    values = function(*leaves, **options)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return [*values, *torch.autograd.grad(sum(values), wanted, allow_unused=True, materialize_grads=True)]


def assert_same_step(compiled, function, leaves, tolerance: float = 5e-5, **options: Any) -> None:
    one, two = step(compiled, leaves, **options), step(function, leaves, **options)
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def assert_compiled_is_eager(function, leaves, backend: str, tolerance: float = 5e-5, **options: Any) -> None:
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_same_step(compiled, function, leaves, tolerance, **options)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_compiled_step_is_the_eager_one(tied: bool, name: str, parameters, everything):
    x, w, b, v, c, _ = parameters().leaves(dtype=torch.float32)
    options = everything if name == "everything" else PLAIN
    assert_compiled_is_eager(objective, (x, w, b, None if tied else v, c), "aot_eager", **options)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_step_for_any_number_of_rows_is_compiled_once(name: str, parameters, everything):
    p = parameters().leaves(dtype=torch.float32)
    options = everything if name == "everything" else PLAIN
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(objective, fullgraph=True, dynamic=True, backend=counter)
    compilations = set()
    for rows in (3, 5, 9):
        leaves = (torch.rand(rows, p[0].shape[1]).requires_grad_(), *p[1:5])
        assert_same_step(compiled, objective, leaves, **options)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


def test_weights_of_penalties_may_change_under_the_compiler(parameters):
    leaves = parameters().leaves(dtype=torch.float32)[:5]
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    for weight in (0.1, 0.2, 0.3, 0.4, 0.0):
        options = {"contractive": weight, "l1": 2 * weight, "dropout": weight}
        assert_same_step(compiled, objective, leaves, **options)


def test_compiled_pieces_are_the_eager_ones_bit_for_bit(parameters):
    assert_compiled_is_eager(pieces, parameters().leaves(dtype=torch.float32), "aot_eager")


def test_compiled_step_takes_a_weight_that_is_a_transposed_view(parameters):
    def function(x, w, b, v, c, target) -> list[Tensor]:
        return objective(x, w.t(), c, None, b, contractive=0.3)

    p = parameters().leaves(dtype=torch.float32)
    x = torch.rand(5, 6).requires_grad_()
    assert_compiled_is_eager(function, (x, *p[1:]), "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compiled_step_is_the_eager_one_under_inductor(parameters, everything):
    x, w, b, _, c, _ = p = parameters().leaves(dtype=torch.float32)
    assert_compiled_is_eager(pieces, p, "inductor", 1e-5)
    # a weight that is a transposed view, as when the decoder's weight serves as the encoder's
    with torch._inductor.config.patch(fallback_random=True):
        assert_compiled_is_eager(
            objective, (x, w.t().contiguous().t(), b, None, c), "inductor", 1e-5, **everything
        )


# --- matrix products ------------------------------------------------------------------------------------

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "einsum", "linear"}


def products_of_a_step(leaves, **options: Any) -> tuple[Counter[str], int]:
    """The matrix products of forward and backward, and the size of the largest tensor they saw."""
    with torch.profiler.profile(record_shapes=True) as profile:
        total = functional.autoencoder_loss(*leaves, **options).total
        torch.autograd.grad(total, [leaf for leaf in leaves[1:] if leaf is not None])
    names: Counter[str] = Counter()
    largest = 0
    for event in profile.events():
        name = event.name.removeprefix("aten::")
        shapes = [shape for shape in event.input_shapes if isinstance(shape, list)]
        sizes = [torch.Size(shape).numel() for shape in shapes if all(isinstance(n, int) for n in shape)]
        largest = max([largest, *sizes])
        matrices = [shape for shape in shapes if len(shape) >= 2 and min(shape) > 1]
        if name in PRODUCTS and len(matrices) >= 2:
            names[name] += 1
    return names, largest


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
def test_training_step_has_five_matrix_products_and_no_jacobian(
    tied: bool, activation: str, parameters, everything
):
    m, d, h = 31, 23, 17
    x, w, b, v, c, _ = parameters(m, d, h).leaves()
    leaves = x.detach(), w, b, None if tied else v, c
    for_sigmoid = {} if activation == "sigmoid" else {"kl": 0.0}
    options = everything | for_sigmoid | {"activation": activation, "higher_order": 0.0}
    products, largest = products_of_a_step(leaves, **options)
    assert products.total() == 5, products
    assert not products.keys() & {"bmm", "baddbmm", "baddbmm_", "einsum"}
    assert largest < 2 * m * max(d, h)  # rows of random bits are padded to whole counters


def test_a_compiled_step_has_five_matrix_products_too(parameters):
    """Where code and penalty were encoded apart, the compiler would see two gradients of the weight."""
    targets: Counter[str] = Counter()

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    x, w, b, _, c, _ = parameters().leaves(dtype=torch.float32)
    compiled = torch.compile(objective, fullgraph=True, backend=aot_autograd(fw_compiler=count))
    assert_same_step(compiled, objective, (x.detach(), w, b, None, c), contractive=0.1)
    products = {name: number for name, number in targets.items() if "mm" in name}
    assert sum(products.values()) == 5, products


@pytest.mark.parametrize("samples", [1, 3])
def test_each_noisy_copy_costs_one_product_in_each_direction(samples: int, parameters):
    x, *leaves, _ = parameters(31, 23, 17).leaves()
    products, _ = products_of_a_step((x.detach(), *leaves), higher_order=0.1, higher_order_samples=samples)
    assert products.total() == 5 + 2 * samples, products
