"""fuse: what is replaced, what is shared, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fastae import fuse, unfuse
from fastae.activations import ACTIVATIONS
from fastae.nn import EncoderLayer, StackedAutoencoder
from fastae.nn.fusion import report

SUPPORTED = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
}
EVERY = pytest.mark.parametrize(("name", "make"), SUPPORTED.items(), ids=SUPPORTED)


class Louder(nn.LeakyReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 7.0 * x


class Named(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 7.0 * x


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Residual(nn.Sequential):
    """A Sequential that looks at its parts' values one by one."""

    def forward(self, x: Tensor) -> Tensor:
        z = self[0](x)
        return z + self[1](z)


class Model(nn.Module):
    """Attributes, a ModuleList, a direct parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.5))
        self.label = "kept"
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.SiLU()))
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 2), nn.ReLU()) for _ in range(2))
        self.absent = None

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x) * self.scale + self.shift
        return torch.cat([head(code) for head in self.heads], -1)


def linear(*arguments, **settings) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(*(arguments or (5, 4)), **settings)


def rows() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(4))


def fused_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, EncoderLayer)]


def structure(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]


# --- what is fused --------------------------------------------------------------------------------------


def test_every_activation_that_has_a_module_is_supported():
    assert {*SUPPORTED, "linear"} == set(ACTIVATIONS)


@EVERY
@pytest.mark.parametrize("bias", [True, False])
def test_a_pair_is_fused_and_computes_the_same(name, make, bias):
    model, x = nn.Sequential(linear(bias=bias), make()), rows()
    fused = fuse(model)
    assert type(fused[0]) is EncoderLayer
    assert fused[0].activation == name
    assert type(fused[1]) is nn.Identity
    y = x.clone().requires_grad_()
    x.requires_grad_()
    value, expected = fused(y), model(x)
    torch.testing.assert_close(value, expected)
    upstream = torch.linspace(-1.0, 2.0, value.numel()).view_as(value)
    gradients = torch.autograd.grad(value, [y, *fused.parameters()], upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, [x, *model.parameters()], upstream))


@EVERY
def test_state_dicts_interchange_and_parameters_are_the_same_objects(name, make):
    model = nn.Sequential(linear(), make(), nn.Linear(4, 3))
    fused = fuse(model)
    assert (
        list(fused.state_dict()) == list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    )
    for own, original in zip(fused.parameters(), model.parameters(), strict=True):
        assert own is original
    values = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    fused.load_state_dict(values)
    assert all((parameter == 1).all() for parameter in model.parameters())


def test_training_the_fused_model_changes_the_original():
    model, x = nn.Sequential(linear(), nn.Tanh(), nn.Linear(4, 3)), rows()
    fused, before = fuse(model), copy.deepcopy(model)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    fused(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(model(x), before(x))
    torch.testing.assert_close(model(x), fused(x))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(linear(), nn.ReLU(), nn.Linear(4, 3), nn.Sigmoid()),
        nn.Sequential(
            nn.Sequential(linear(), nn.Tanh()), nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ELU()))
        ),
        Model(),
    ],
    ids=["sequential", "nested", "module"],
)
@pytest.mark.parametrize("training", [True, False])
def test_whole_models_are_fused_and_the_original_is_as_it_was(model, training):
    model.train(training)
    x, before = rows(), structure(model)
    expected, keys, text = model(x), list(model.state_dict()), repr(model)
    fused = fuse(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert fused_layers(fused) == linears
    torch.testing.assert_close(fused(x), expected)
    assert list(fused.state_dict()) == keys
    assert [id(p) for p in fused.parameters()] == [id(p) for p in model.parameters()]

    assert structure(model) == before
    assert repr(model) == text
    assert fused_layers(model) == []
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_attributes_buffers_and_classes_are_kept():
    model = Model()
    fused = fuse(model)
    assert type(fused) is Model and fused is not model
    assert fused.label == "kept" and fused.absent is None
    assert fused.scale is model.scale
    assert fused.shift is model.shift
    assert len(fused.heads) == 2 and type(fused.heads) is nn.ModuleList


def test_names_in_an_ordered_sequential_are_kept():
    model = nn.Sequential()
    model.add_module("project", linear())
    model.add_module("squash", nn.Tanh())
    fused = fuse(model)
    assert [name for name, _ in fused.named_children()] == ["project", "squash"]
    assert fused_layers(fused) == ["project"]


def test_modules_other_than_pairs_are_shared_with_the_original():
    model = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.5), nn.LayerNorm(4), nn.Linear(4, 2))
    fused = fuse(model)
    assert [own is original for own, original in zip(fused, model, strict=True)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_shared_block_stays_shared_and_is_fused_once():
    block = nn.Sequential(linear(5, 5), nn.Tanh())
    model, x = nn.ModuleDict({"a": block, "b": nn.Sequential(block, block)}), rows()
    fused = fuse(model)
    assert fused["a"] is fused["b"][0] is fused["b"][1]
    assert fused["a"] is not block
    assert len(list(fused.parameters())) == 2
    torch.testing.assert_close(fused["b"](x), block(block(x)))


def test_a_linear_layer_used_twice_keeps_one_set_of_parameters():
    shared = linear(5, 5)
    model, x = nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), shared), rows()
    fused = fuse(model)
    assert [getattr(module, "activation", None) for module in fused] == ["relu", None, "tanh", None, None]
    assert fused[0].weight is fused[2].weight is fused[4].weight is shared.weight
    torch.testing.assert_close(fused(x), model(x))


def test_an_activation_module_used_twice_is_fused_twice():
    act = nn.ReLU()
    model, x = (
        nn.Sequential(linear(5, 5), act, nn.Linear(5, 5), act, nn.Linear(5, 5), nn.Dropout(0.0), act),
        rows(),
    )
    fused = fuse(model)
    assert fused_layers(fused) == ["0", "2"]
    assert fused[6] is act
    torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("training", [True, False])
def test_every_modules_mode_is_kept(training):
    model = nn.Sequential(linear(), nn.Tanh(), nn.Dropout(0.5), Model().encoder[2]).train(training)
    model[2].train(not training)
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in fuse(model).named_modules()} == modes


def test_frozen_parameters_stay_frozen():
    model = nn.Sequential(linear(), nn.Tanh()).requires_grad_(False)
    assert [p.requires_grad for p in fuse(model).parameters()] == [False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_is_kept(dtype):
    model, x = nn.Sequential(linear(), nn.Tanh()).to(dtype), rows().to(dtype)
    assert fuse(model)(x).dtype == dtype
    torch.testing.assert_close(fuse(model)(x), model(x))


def test_fusing_twice_changes_nothing_more():
    once = fuse(Model())
    twice = fuse(once)
    assert fused_layers(twice) == fused_layers(once)
    torch.testing.assert_close(twice(rows()), once(rows()), rtol=0, atol=0)


def test_what_is_added_to_the_fused_model_is_not_added_to_the_original():
    model = Model()
    fused, calls = fuse(model), []
    fused.register_buffer("extra_buffer", torch.zeros(1))
    fused.register_parameter("extra_parameter", nn.Parameter(torch.zeros(1)))
    fused.add_module("extra_module", nn.Linear(1, 1))
    fused.encoder.register_forward_hook(lambda *_: calls.append("hook"))
    model(rows())
    assert calls == []
    assert [key for key in model.state_dict() if "extra" in key] == []


# --- what is left alone ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:fuse. nothing was fused")
@pytest.mark.parametrize(
    "activation",
    [
        nn.LeakyReLU(0.2),
        nn.Hardtanh(-2.0, 2.0),
        nn.Softplus(beta=2),
        nn.Softplus(threshold=0.1),
        nn.ELU(2.0),
        nn.CELU(2.0),
        nn.PReLU(),
        nn.Softmax(-1),
        nn.Dropout(0.0),
        Louder(),
        Named(),
    ],
    ids=repr,
)
def test_another_activation_or_other_settings_are_left_alone(activation):
    model, x = nn.Sequential(linear(), activation), rows()
    fused = fuse(model)
    assert fused_layers(fused) == []
    assert fused[1] is activation
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:fuse. nothing was fused")
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Doubled(5, 4), nn.Tanh()),
        nn.Sequential(nn.utils.parametrizations.orthogonal(linear()), nn.Tanh()),
        nn.Sequential(nn.utils.parametrizations.weight_norm(linear()), nn.Tanh()),
        Residual(linear(), nn.Tanh()),
        nn.Sequential(linear()),
        nn.Sequential(nn.Tanh(), linear()),
        nn.Sequential(linear(), nn.Dropout(0.0), nn.Tanh()),
        nn.Sequential(nn.Sequential(linear()), nn.Tanh()),
        nn.ModuleList([linear(), nn.Tanh()]),
        nn.Sequential(nn.LazyLinear(4), nn.Tanh()),
    ],
    ids=[
        "subclass of Linear",
        "parametrized",
        "weight norm",
        "subclass of Sequential with its own forward",
        "linear at the end",
        "linear after the activation",
        "not adjacent",
        "across Sequentials",
        "ModuleList",
        "lazy",
    ],
)
def test_pairs_that_would_not_compute_the_same_are_left_alone(model):
    fused = fuse(model)
    assert fused_layers(fused) == []
    if not isinstance(model, nn.ModuleList):
        torch.testing.assert_close(fused(rows()), model(rows()), rtol=0, atol=0)


@pytest.mark.parametrize("index", [0, 1], ids=["on the linear layer", "on the activation"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_pairs_with_hooks_are_left_alone_and_the_hooks_still_run(register, index):
    model, calls = nn.Sequential(linear(), nn.Tanh(), nn.Linear(4, 4), nn.ReLU()), []
    handle = getattr(model[index], register)(lambda *_: calls.append(register))
    fused = fuse(model)
    assert fused_layers(fused) == ["2"]
    fused(rows().requires_grad_()).sum().backward()
    assert calls == [register]
    handle.remove()
    assert fused_layers(fuse(model)) == ["0", "2"]


def quantised() -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def replaced(module: nn.Module, name: str = "forward") -> nn.Module:
    original = getattr(module, name)
    setattr(module, name, lambda *args: original(*args))
    return module


def with_state_dict_hook(module: nn.Module) -> nn.Module:
    module.register_state_dict_post_hook(lambda *_: None)
    return module


def compiled(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replaced, "has a forward of its own"),
        (lambda module: replaced(module, "extra_repr"), "has a extra_repr of its own"),
        (with_state_dict_hook, "has hooks"),
        (compiled, "has a _compiled_call_impl of its own"),
    ],
    ids=["forward", "another method", "state dict hook", "compiled"],
)
@pytest.mark.parametrize("index", [0, 1], ids=["on the linear layer", "on the activation"])
def test_modules_with_code_of_their_own_are_left_alone(change, reason, index):
    model = nn.Sequential(linear(), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
    change(model[index])
    fused = fuse(model)
    assert fused_layers(fused) == ["2"]
    assert report(model).left["0"].endswith(reason)
    torch.testing.assert_close(fused(rows()), model(rows()))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (torch.nn.utils.spectral_norm(linear()), "has a parameter weight_orig"),
        (prune.l1_unstructured(linear(), "weight", 0.5), "has a parameter weight_orig"),
        (nn.utils.parametrizations.weight_norm(linear()), "is a ParametrizedLinear"),
        (linear(5, 4, dtype=torch.complex64), "has a weight of Parameter, torch.complex64"),
        (quantised(), "has a weight of Parameter, torch.float8_e4m3fn"),
        (nn.LazyLinear(4), "is a LazyLinear"),
    ],
    ids=["spectral norm", "pruned", "parametrised", "complex", "float8", "lazy"],
)
def test_layers_of_other_kinds_are_left_alone(layer, reason):
    assert report(nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2), nn.ReLU())).left == {"0": reason}


def test_nothing_is_fused_under_a_hook_of_all_modules():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert report(Model()).fused == ()
    finally:
        handle.remove()
    assert len(report(Model()).fused) == 4


def test_modules_whose_forward_was_replaced_are_shared_as_a_whole():
    model = nn.Sequential(replaced(nn.Sequential(linear(), nn.Tanh())), nn.Linear(4, 3), nn.ReLU())
    fused = fuse(model)
    assert fused[0] is model[0]
    assert report(model).left == {"0.0": "inside Sequential, whose code was replaced"}
    torch.testing.assert_close(fused(rows()), model(rows()))


def test_nothing_fused_gives_a_warning_with_the_reasons():
    with pytest.warns(UserWarning, match=r"(?s)nothing was fused.*0: Softmax\(dim=-1\) follows"):
        fuse(nn.Sequential(linear(), nn.Softmax(-1)))


def test_verbose_prints_the_report(capsys):
    fuse(nn.Sequential(linear(), nn.Tanh(), nn.Linear(4, 3)), verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "fused 1 of 2 linear layers",
        "  0: tanh, in Sequential",
        "left alone",
        "  2: no activation follows",
    ]


# --- unfuse ---------------------------------------------------------------------------------------------


@EVERY
def test_unfuse_reverses_fuse(name, make):
    model = nn.Sequential(linear(), make(), nn.Dropout(0.0), nn.Linear(4, 3)).eval()
    plain = unfuse(fuse(model))
    assert repr(plain) == repr(model)
    assert [id(p) for p in plain.parameters()] == [id(p) for p in model.parameters()]
    assert list(plain.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(plain(rows()), model(rows()), rtol=0, atol=0)


def test_unfuse_of_whole_models_keeps_structure_modes_and_the_fused_model():
    model = Model()
    model.heads[1].eval()
    fused = fuse(model)
    before = structure(fused)
    plain = unfuse(fused)
    assert repr(plain) == repr(model)
    assert [m.training for m in plain.modules()] == [m.training for m in model.modules()]
    assert structure(fused) == before


def test_a_fused_layer_alone_becomes_a_sequential():
    stack = StackedAutoencoder([5, 4, 3], activation=["tanh", "linear"], loss="mse")
    plain = unfuse(stack.encoder())
    assert [type(m) for m in plain] == [nn.Sequential, nn.Linear]
    assert [type(m) for m in unfuse(stack.layers[0].encoder)] == [nn.Linear, nn.Tanh]
    assert plain[0][0].weight is stack.layers[0].encoder.weight
    torch.testing.assert_close(plain(rows()), stack.encode(rows()))
    with pytest.raises(TypeError, match=r"^model: expected a module of layers, got StackedAutoencoder"):
        unfuse(stack)


def test_unfuse_leaves_layers_with_hooks_and_subclasses_alone():
    class Mine(EncoderLayer):
        pass

    model = nn.ModuleList([EncoderLayer(5, 4), Mine(5, 4), EncoderLayer(5, 4, "relu")])
    model[0].register_forward_hook(lambda *_: None)
    assert [type(m) for m in unfuse(model)] == [EncoderLayer, Mine, nn.Sequential]


@pytest.mark.parametrize(
    "value", [None, 3, [nn.Linear(2, 2)], nn.Linear], ids=["None", "int", "list", "class"]
)
def test_what_is_not_a_module_is_named(value):
    for function in (fuse, unfuse, report):
        with pytest.raises(TypeError, match=f"^model: expected an nn.Module, got {type(value).__name__}$"):
            function(value)


def test_a_fused_model_compiles_without_graph_breaks():
    torch._dynamo.reset()
    model, x = Model(), rows()
    compiled = torch.compile(fuse(model), fullgraph=True, backend="aot_eager")
    value, expected = compiled(x), model(x)
    torch.testing.assert_close(value, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(value.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )
