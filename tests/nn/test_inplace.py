"""Operations in place after a fused layer work wherever they work after PyTorch's own pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastae.activations import ACTIVATIONS
from fastae.nn import EncoderLayer
from tests.support import PLAIN

KEPT_BY_PYTORCH = {"sigmoid", "tanh", "relu"}


def add(h: Tensor) -> Tensor:
    h += 1.0
    return h


FOLLOWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": partial(F.dropout, p=0.5, inplace=True),
    "+=": add,
    "relu_": torch.relu_,
    "of a view": lambda h: add(h.view(-1)).view_as(h),
}
SEVERAL = pytest.mark.parametrize("name", ["elu", "gelu", "linear"])


class Layer(nn.Module):
    """A layer, something in place, and what needs the result for its own gradient."""

    def __init__(self, name: str, follower: Callable[[Tensor], Tensor] = add, fused: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = EncoderLayer(5, 6, name)
        self.function = PLAIN[name]
        self.follower, self.fused = follower, fused

    def forward(self, x: Tensor) -> Tensor:
        plain = self.function(F.linear(x, self.layer.weight, self.layer.bias))
        return self.follower(self.layer(x) if self.fused else plain).square().sum(1)


def gradients(model: nn.Module, run: Callable[..., Tensor] = nn.Module.__call__) -> list[Tensor]:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    torch.manual_seed(1)
    run(model, x).sum().backward()
    return [t.grad for t in (x, *model.parameters()) if t.grad is not None]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS)
def test_gradients_are_those_of_the_plain_pair(name, follower):
    if name in KEPT_BY_PYTORCH:
        for fused in (True, False):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                gradients(Layer(name, follower, fused))
    else:
        expected = gradients(Layer(name, follower, fused=False))
        torch.testing.assert_close(gradients(Layer(name, follower)), expected)


def offloaded(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return model(x)


@SEVERAL
@pytest.mark.parametrize(
    "run",
    [
        partial(checkpoint, use_reentrant=False),
        partial(checkpoint, use_reentrant=True),
        offloaded,
    ],
    ids=["checkpoint", "reentrant checkpoint", "offloaded"],
)
def test_hooks_of_saved_tensors_get_what_was_computed(name, run):
    torch.testing.assert_close(gradients(Layer(name), run), gradients(Layer(name, fused=False)))


@SEVERAL
def test_a_second_pass_gives_the_same(name):
    model = Layer(name)
    loss = model(torch.randn(8, 5)).sum()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@SEVERAL
def test_a_code_beside_its_penalty_may_be_changed(name):
    x, layer = torch.randn(8, 5), EncoderLayer(5, 6, name)

    def gradient(follower: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        code, penalty = layer.contractive(x)
        return torch.autograd.grad(follower(code).square().sum() + penalty, list(layer.parameters()))

    torch.testing.assert_close(gradient(add), gradient(lambda h: h + 1.0))


def test_changed_inputs_raise_as_in_pytorch():
    x, layer = torch.randn(8, 5), EncoderLayer(5, 6, "elu")
    h = layer(x)
    add(h)
    add(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@SEVERAL
def test_compiled_layers_take_operations_in_place(name):
    torch._dynamo.reset()
    model = Layer(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(Layer(name, fused=False))
    torch.testing.assert_close(gradients(model, lambda _, x: compiled(x)), expected)
