"""Transforms of torch.func, exported and traced programs, and counters, on layers and objectives."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fastae import Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional, fuse
from fastae.activations import ACTIVATIONS
from fastae.nn import Autoencoder, EncoderLayer, StackedAutoencoder

EVERYTHING: dict[str, Any] = {
    "dropout": 0.4,
    "contractive": 0.1,
    "higher_order": 0.1,
    "l1": 0.1,
    "kl": 0.1,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masking": {"corruption": Masking(0.3), "emphasis": Emphasis(2.0, 0.5), **EVERYTHING},
    "gaussian": {"corruption": Gaussian(0.3), "code_noise": "gaussian"},
    "salt and pepper": {"corruption": SaltAndPepper(0.3), "emphasis": Emphasis(0.5, 2.0)},
    "swap": {"corruption": Swap(0.5), "code_noise": "bernoulli", "dropout": 0.2},
}


def rows(count: int = 6) -> Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_transforms_of_a_layer_agree_with_those_of_the_plain_pair(name):
    torch.manual_seed(0)
    layer, f, x = EncoderLayer(5, 4, name), ACTIVATIONS[name].function, rows() - 0.5

    def plain(x: Tensor) -> Tensor:
        return f(nn.functional.linear(x, layer.weight, layer.bias))

    for transform in (
        torch.func.vmap,
        lambda g: torch.func.vmap(torch.func.jacrev(g)),
        lambda g: torch.func.vmap(torch.func.jacfwd(g)),
        lambda g: torch.func.vmap(torch.func.jacrev(torch.func.jacrev(g))),
        lambda g: lambda x: torch.func.jvp(g, (x,), (x,)),
    ):
        torch.testing.assert_close(transform(layer)(x), transform(plain)(x))
        with torch.no_grad():
            torch.testing.assert_close(transform(layer)(x), transform(plain)(x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(plain, (x,), (x,))[1])


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_functional_gradients_are_those_of_the_fused_node(options):
    model = Autoencoder(5, 4, **options)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (rows(),)).total

    torch.manual_seed(3)
    expected = torch.autograd.grad(model(rows()).total, list(parameters.values()))
    torch.manual_seed(3)
    torch.testing.assert_close(tuple(torch.func.grad(loss)(parameters).values()), expected)


def test_functional_gradients_of_a_stack_and_per_row():
    stack = StackedAutoencoder([5, 4, 3], contractive=0.1, dropout=0.2, corruption=Masking(0.3))
    parameters = dict(stack.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(stack, parameters, (x,)).total

    torch.manual_seed(3)
    expected = torch.autograd.grad(stack(rows()).total, list(parameters.values()))
    torch.manual_seed(3)
    torch.testing.assert_close(tuple(torch.func.grad(loss)(parameters, rows()).values()), expected)
    stack.eval()
    per_row = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="same")(parameters, rows())
    assert per_row["layers.0.encoder.weight"].shape == (6, 4, 5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_operators_give_the_dtypes_and_values_of_the_fused_ones(reduction, dtype):
    torch.manual_seed(0)
    x, layer = rows().to(dtype), EncoderLayer(5, 4, dtype=dtype)

    def penalty(x: Tensor) -> Tensor:
        return functional.contractive_encode(x, layer.weight, layer.bias, reduction=reduction)[1]

    value = torch.func.jvp(penalty, (x,), (x,))[0]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(value, penalty(x), rtol=tolerance, atol=tolerance)


def encoder() -> nn.Sequential:
    return StackedAutoencoder([5, 4, 3], activation=["gelu", "sigmoid"], loss="mse").encoder().eval()


def exported(model: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},)), file)
    return file.getvalue()


def traced(model: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), file)
    return file.getvalue()


def compiled(model: nn.Module, x: Tensor) -> bytes:
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/m.pt2")
        return Path(path).read_bytes()


def onnx(dynamo: bool) -> Callable[[nn.Module, Tensor], bytes]:
    def save(model: nn.Module, x: Tensor) -> bytes:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"needs {name}")
        shape: dict[str, Any] = {"dynamic_axes": {"x": {0: "rows"}}}
        if dynamo:
            shape = {"dynamic_shapes": ({0: torch.export.Dim("rows")},)}
        with tempfile.TemporaryDirectory() as folder:
            torch.onnx.export(model, (x,), f"{folder}/m", dynamo=dynamo, input_names=["x"], **shape)
            return Path(folder, "m").read_bytes()

    return save


ONNX = "lambda x: torch.from_numpy(InferenceSession(file.read()).run(None, {'x': x.numpy()})[0])"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("save", "load"),
    [
        (exported, "torch.export.load(file).module()"),
        (traced, "torch.jit.load(file)"),
        (onnx(dynamo=True), ONNX),
        (onnx(dynamo=False), ONNX),
        pytest.param(
            compiled,
            "torch._inductor.aoti_load_package(file)",
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")],
        ),
    ],
    ids=["export", "jit", "ONNX", "ONNX by TorchScript", "AOTInductor"],
)
def test_saved_programs_run_where_fastae_is_absent(save, load, tmp_path):
    model, x = encoder(), rows(9)
    (tmp_path / "program").write_bytes(save(model, rows()))
    torch.save(x, tmp_path / "x")
    code = f"""
        import sys, torch
        sys.modules["fastae"] = None
        if "InferenceSession" in {load!r}:
            from onnxruntime import InferenceSession
        with open("program", "rb") as file:
            torch.save(({load})(torch.load("x", weights_only=True)), "y")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)
    y = torch.load(tmp_path / "y", weights_only=True)
    torch.testing.assert_close(y, model(x).detach())


def test_an_exported_objective_can_be_saved_and_loaded():
    model = Autoencoder(5, 4, contractive=0.1).eval()
    program = torch.export.load(io.BytesIO(exported(model, rows())))
    torch.testing.assert_close(program.module()(rows()), model(rows()))


def test_symbolic_traces_compute_the_same():
    model = fuse(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(rows()), model(rows()))
    stack = StackedAutoencoder([5, 4, 3], contractive=0.1, l1=0.1).eval()
    graph = torch.fx.symbolic_trace(stack)
    torch.manual_seed(0)
    expected = stack(rows())
    torch.manual_seed(0)
    torch.testing.assert_close(graph(rows()), expected)


def test_flops_are_counted():
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid())

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run().sum().backward()
        return counter.get_total_flops()

    assert flops(lambda: fuse(model)(rows())) == flops(lambda: model(rows())) > 0
    tied, untied = (Autoencoder(5, 4, tied=tied, contractive=0.1) for tied in (True, False))
    five_products = 5 * 2 * 6 * 5 * 4
    assert flops(lambda: tied(rows()).total) == flops(lambda: untied(rows()).total) == five_products
