"""fuse in forwards that call their layers themselves: what is found, and when the original forward runs."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastae import fuse, unfuse
from fastae.nn.fusion import FusedLinear, report

CALLS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "torch.sigmoid": ("sigmoid", torch.sigmoid),
    "method": ("tanh", lambda z: z.tanh()),
    "in place": ("relu", lambda z: z.relu_()),
    "F.relu": ("relu", lambda z: F.relu(z, inplace=True)),
    "F.leaky_relu": ("leaky_relu", F.leaky_relu),
    "F.softplus": ("softplus", F.softplus),
    "F.elu": ("elu", F.elu),
    "torch.selu": ("selu", torch.selu),
    "F.gelu": ("gelu", F.gelu),
    "F.gelu, tanh": ("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
    "F.silu": ("silu", F.silu),
    "F.softsign": ("softsign", F.softsign),
    "F.mish": ("mish", F.mish),
    "F.hardtanh": ("hardtanh", lambda z: F.hardtanh(z, -1.0, max_val=1.0)),
    "F.relu6": ("relu6", F.relu6),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "another slope": lambda z: F.leaky_relu(z, 0.2),
    "another bound": lambda z: F.hardtanh(z, -2.0),
    "computed slope": lambda z: F.leaky_relu(z, z.shape[0]),
    "another function": lambda z: torch.sin(z),
    "used twice": lambda z: torch.sigmoid(z) * z,
    "used twice in place": lambda z: z.relu_() * z,
}


class Net(nn.Module):
    """Two layers whose activations are called in the forward."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.act, self.fc2 = nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.function, self.factor = function, 2.0

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.features(x)
        if scale is not None:
            h = h * scale
        for layer in self.layers:
            h = torch.relu(layer(h))
        h = F.dropout(h, 0.5, self.training)
        return self.function(self.fc2(h)) * self.factor

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.fc1(x))


class Wrapped(nn.Module):
    """An activation as a class of one's own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(5, 4), nn.Tanh(), nn.Dropout()
        self.count, self.settings = 0, {"on": True}


def with_forward(forward: Callable[[Layer, Tensor], Tensor]) -> Layer:
    return type("Alone", (Layer,), {"forward": forward})()


def rows() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(4))


def run(model: nn.Module, *inputs: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model(*inputs)


@pytest.mark.parametrize(("name", "function"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("training", [True, False])
def test_pairs_of_calls_are_fused_and_compute_the_same(name, function, training):
    model = Net(function).train(training)
    fused = fuse(model)
    assert report(model).left == {}
    assert [entry[:2] for entry in report(model).fused] == [
        ("fc1", "tanh"),
        ("fc2", name),
        ("layers.0", "relu"),
        ("layers.1", "relu"),
    ]
    x, y = rows().requires_grad_(), rows().requires_grad_()
    value, expected = run(fused, x), run(model, y)
    torch.testing.assert_close(value, expected)
    gradients = torch.autograd.grad(value.square().sum(), [x, *fused.parameters()])
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.square().sum(), [y, *model.parameters()])
    )


def test_a_fused_forward_makes_a_pair_one_call(monkeypatch):
    calls = []
    original = FusedLinear.forward
    monkeypatch.setattr(FusedLinear, "forward", lambda *args: calls.append(args[2]) or original(*args))
    fuse(Net())(rows())
    assert calls == ["tanh", "relu", "relu", "sigmoid"]


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_other_calls_are_left_alone(function):
    model = Net(function)
    assert list(report(model).left) == ["fc2"]
    torch.testing.assert_close(run(fuse(model), rows()), run(model, rows()))


@pytest.mark.parametrize("function", [F.gelu, functools.partial(F.gelu, approximate="tanh")], ids=str)
def test_activations_in_a_class_of_their_own_are_found(function):
    model = Net()
    model.act = Wrapped(function)
    fused = fuse(model)
    assert report(model).left == {}
    torch.testing.assert_close(run(fused, rows()), run(model, rows()))
    model.act.function = fused.act.function = F.relu
    torch.testing.assert_close(run(fused, rows()), run(model, rows()))
    assert report(nn.Sequential(nn.Linear(5, 4), Wrapped(function))).left == {}
    assert report(nn.Sequential(nn.Linear(5, 4), Wrapped(lambda z: (torch.tanh(z), z)[1]))).fused == ()


def test_the_class_names_methods_and_state_dicts_are_kept():
    model = Net()
    fused = fuse(model)
    assert isinstance(fused, Net)
    assert type(model) is Net and type(model.fc1) is nn.Linear
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [id(p) for p in fused.parameters()] == [id(p) for p in model.parameters()]
    torch.testing.assert_close(fused.features(rows()), model.features(rows()), rtol=0, atol=0)
    torch.testing.assert_close(fused.fc1(rows()), model.fc1(rows()), rtol=0, atol=0)
    assert repr(unfuse(fused)) == repr(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "act", nn.ReLU()),
        lambda model: setattr(model, "fc1", nn.Linear(5, 4, bias=False).requires_grad_(False)),
        lambda model: setattr(model, "factor", 3.0),
        lambda model: setattr(model, "function", torch.cos),
        lambda model: model.act.register_forward_hook(lambda module, args, output: output + 1.0),
        lambda model: model.layers.__setitem__(0, nn.Identity()),
    ],
    ids=["activation", "layer", "number", "function", "hook", "item of a list"],
)
@pytest.mark.parametrize("copied", [False, True])
def test_what_changes_after_fusing_is_heeded(change, copied):
    model = Net()
    fused = fuse(model)
    torch.manual_seed(2)
    change(model)
    torch.manual_seed(2)
    change(fused)
    torch.testing.assert_close(run(copy.deepcopy(fused) if copied else fused, rows()), run(model, rows()))


def test_optional_arguments_run_the_original_forward():
    model, scale = Net(), torch.full((4,), 3.0)
    fused = fuse(model)
    torch.testing.assert_close(run(fused, rows(), scale), run(model, rows(), scale))
    torch.testing.assert_close(run(functools.partial(fused, scale=scale), rows()), run(model, rows(), scale))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        fused()


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), fuse],
    ids=["deepcopy", "copy", "pickle", "fuse"],
)
def test_copies_stay_fused(again):
    fused = fuse(Net())
    twin = again(fused)
    assert type(twin) is type(fused)
    assert report(twin) == report(fused)
    assert vars(twin)["_calls"] is not None
    torch.testing.assert_close(run(twin, rows()), run(fused, rows()), rtol=0, atol=0)


def test_calls_into_a_sequential_are_not_taken_for_its_own():
    def forward(self, x):
        z = self.act[0](x)
        return self.act(x) + z

    model = with_forward(forward)
    model.act = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    assert report(model).left["act.0"] == "add follows"
    torch.testing.assert_close(
        fuse(nn.Sequential(model, nn.Linear(4, 2), nn.ReLU()))[0](rows()), model(rows())
    )


def sets_an_attribute(self, x):
    self.count += 1
    return torch.tanh(self.fc(x))


def without_gradients(self, x):
    with torch.no_grad():
        return torch.tanh(self.fc(x))


UNTRACEABLE = {
    "control flow": (
        lambda self, x: torch.tanh(self.fc(x)) if x.sum() > 0 else x[:, :4],
        "symbolically traced variables",
    ),
    "random tensor": (lambda self, x: torch.tanh(self.fc(x)) + torch.rand(4), "it makes a tensor (rand)"),
    "random number": (
        lambda self, x: torch.tanh(self.fc(x)) * (random.random() < 0.5),
        "it draws random numbers",
    ),
    "type": (
        lambda self, x: torch.tanh(self.fc(x)) if isinstance(x, Tensor) else x,
        "its forward depends on isinstance()",
    ),
    "attribute set": (sets_an_attribute, "it sets self.count"),
    "mutable attribute": (
        lambda self, x: torch.tanh(self.fc(x)) if self.settings["on"] else self.fc(x),
        "it reads self.settings",
    ),
    "mode of gradients": (without_gradients, "it changes the mode of gradients"),
    "mode of a child": (
        lambda self, x: F.dropout(torch.tanh(self.fc(x)), 0.5, self.drop.training),
        "it asks for the mode of a child",
    ),
}


@pytest.mark.parametrize(("forward", "reason"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_a_trace_would_freeze_is_left_alone(forward, reason):
    model = with_forward(forward)
    state = random.getstate()
    left = report(model).left
    assert left["fc"].startswith("Alone.forward cannot be traced: ")
    assert reason in left["fc"]
    assert random.getstate() == state and model.count == 0


def test_fused_forwards_compile_without_graph_breaks():
    torch._dynamo.reset()
    model = Net().eval()
    fused = torch.compile(fuse(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fused(rows()), model(rows()))
