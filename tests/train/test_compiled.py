"""A compiled training step does what the plain one does, up to rounding and with the same noise."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import fastae
from fastae.train import Stage, TrainingStep, compiled, load_checkpoint, train

torch_compile = torch.compile


@pytest.fixture
def counter(monkeypatch) -> CompileCounterWithBackend:
    """Counts compilations, which PyTorch's operators take the place of: Inductor takes seconds for each."""
    counter = CompileCounterWithBackend("aot_eager")
    use(monkeypatch, counter)
    return counter


def use(monkeypatch, backend: Callable[..., Any]) -> None:
    torch.compiler.reset()

    def compile_with(function: Callable[..., Any], *, dynamic: bool, options: dict[str, Any]) -> Any:
        assert options["fallback_random"] and dynamic is False
        return torch_compile(function, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_with)


def model() -> fastae.nn.Autoencoder:
    torch.manual_seed(0)
    options = {"corruption": fastae.Masking(0.25), "contractive": 0.1, "dropout": 0.2}
    return fastae.nn.Autoencoder(7, 5, **options)


def steps(module: nn.Module, **options: Any) -> list[tuple[nn.Module, TrainingStep]]:
    """The plain step and the compiled one, each on a copy."""
    pairs = []
    for compile_it in (False, True):
        own = copy.deepcopy(module)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        pairs.append((own, TrainingStep(own, optimizer, compile=compile_it, **options)))
    return pairs


def batch(rows: int) -> Tensor:
    return torch.rand(rows, 7, generator=torch.Generator().manual_seed(rows))


def take(step: TrainingStep, rows: int) -> Any:
    torch.manual_seed(rows)
    return step(batch(rows))


def assert_same_steps(module: nn.Module, sizes: tuple[int, ...], **options: Any) -> None:
    (plain, step), (own, compiled_step) = steps(module, **options)
    for rows in sizes:
        torch.testing.assert_close(take(compiled_step, rows), take(step, rows), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    assert compiled_step.compiled and not step.compiled
    assert compiled_step.sums() == pytest.approx(step.sums(), rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, ["mm", "add"]), (torch.float64, ["addmm"]), (torch.bfloat16, ["addmm"])],
    ids=str,
)
def test_additions_to_float32_products_become_elementwise(dtype: torch.dtype, expected: list[str]):
    tensors = [torch.rand(*size, dtype=dtype) for size in ((3,), (2, 4), (4, 3))]
    module = make_fx(torch.addmm, tracing_mode="fake")(*tensors)
    compiled._additions_apart()(module.graph)
    module.recompile()
    calls = [node.target._opname for node in module.graph.nodes if node.op == "call_function"]
    assert calls == expected
    torch.testing.assert_close(module(*tensors), torch.addmm(*tensors))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}], ids=str)
def test_a_compiled_step_is_the_plain_one_with_the_same_noise(counter, options):
    assert_same_steps(model(), (6, 6, 4, 6, 4), **options)
    assert counter.frame_count == 2  # one for each number of rows


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_inductor_draws_the_noise_of_the_plain_step():
    assert_same_steps(model(), (6, 6))


def test_few_shapes_are_compiled_and_all_others_run_as_they_are(counter):
    assert_same_steps(model(), (*range(2, 10), *range(2, 10)))
    assert counter.frame_count == compiled._MOST_SHAPES


def test_the_steps_of_many_models_are_all_compiled(counter):
    """The compiler gives a function up after eight compilations, and all steps come from the same lines."""
    for _ in range(10):
        ((_, _), (_, step)) = steps(model())
        take(step, 3)
    assert counter.frame_count == 10


def test_the_mode_of_the_module_is_followed(counter):
    torch.manual_seed(0)
    layer = nn.Linear(7, 1)
    own, optimizer = nn.Sequential(nn.Dropout(1.0), layer), torch.optim.SGD(layer.parameters(), lr=0.1)
    loss = TrainingStep(lambda x: own(x).sum(), optimizer, compile=True)
    expected = 3 * float(layer.bias)
    assert float(take(loss, 3)) == pytest.approx(expected, abs=1e-5)
    own.eval()
    with torch.no_grad():
        expected = float(own(batch(3)).sum())
    assert float(take(loss, 3)) == pytest.approx(expected, rel=1e-5)


def test_where_there_is_no_compiler_one_message_says_so(monkeypatch):
    def missing(graph, inputs):
        raise OSError("no C++ compiler\n(searched everywhere)")

    use(monkeypatch, missing)
    (plain, step), (own, compiled_step) = steps(model())
    with pytest.warns(
        UserWarning, match=r"cannot be compiled \(OSError: no C\+\+ compiler\); it runs"
    ) as caught:
        for rows in (6, 4, 6):
            assert torch.equal(take(compiled_step, rows).total, take(step, rows).total)
    assert len(caught) == 1 and caught[0].filename == __file__ and not compiled_step.compiled
    assert all(map(torch.equal, own.state_dict().values(), plain.state_dict().values()))


def test_errors_of_the_loss_are_raised_as_they_are(counter):
    (_, plain), (_, step) = steps(model())
    with pytest.raises(ValueError, match=r"x: expected shape \[\*, 7\]"):
        step(torch.rand(3, 6))
    torch.testing.assert_close(take(step, 3), take(plain, 3))
    assert step.compiled


def test_a_compiled_run_resumes_bit_for_bit(tiny, make_config, interrupt, resume, assert_same_run, counter):
    stage = Stage(epochs=1, batch_size=10, lr=0.01)
    make = functools.partial(make_config, pretrain=stage, finetune=stage, supervised=stage, compile=True)
    whole = train(make("whole"), dataset=tiny)
    stages = 4
    assert counter.frame_count == 2 * stages  # the last batch of an epoch is smaller
    config = make("parts")
    interrupt(config, 3)  # the next batch is the smaller one
    assert_same_run(whole, resume(replace(config, compile=False)))
    assert load_checkpoint(whole.path).config["compile"] is True
    plain = train(make("plain", compile=False), dataset=tiny)
    for row, other in zip(whole.history, plain.history, strict=True):
        assert row["train_total"] == pytest.approx(other["train_total"], rel=1e-5)


def test_several_processes_are_refused():
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="compile: expected False with several processes"):
        TrainingStep(module, optimizer, world=SimpleNamespace(grouped=True), compile=True)  # pyright: ignore[reportArgumentType]
