"""Fusing the linear layers of an existing model with the activations that follow them, and the reverse."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import functional
from .encoder import EncoderLayer
from .tracing import INTERNAL, Trace, Untraceable, copy_tree, trace

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
}

# functions and methods of the activations, as the module and the names of their settings
_CALLED: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((torch.sigmoid, F.sigmoid, torch.special.expit, "sigmoid", "sigmoid_"), (nn.Sigmoid, ())),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh", "tanh_"), (nn.Tanh, ())),
    **dict.fromkeys((torch.relu, torch.relu_, F.relu_, "relu", "relu_"), (nn.ReLU, ())),
    **dict.fromkeys((torch.selu, torch.selu_, F.selu_), (nn.SELU, ())),
    F.relu: (nn.ReLU, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.selu: (nn.SELU, ("inplace",)),
    F.gelu: (nn.GELU, ("approximate",)),
    F.silu: (nn.SiLU, ("inplace",)),
    F.softsign: (nn.Softsign, ()),
    F.mish: (nn.Mish, ("inplace",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.relu6: (nn.ReLU6, ("inplace",)),
}

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FORWARDS = {cls: cls.forward for cls in (nn.Linear, nn.Sequential, *(type(m()) for m in _MODULES.values()))}


class FusedLinear(EncoderLayer):
    """An ``nn.Linear`` that applies an activation in the same operator where it is asked to."""

    def forward(self, x: Tensor, activation: str = "linear") -> Tensor:
        if activation == "linear":
            return F.linear(x, self.weight, self.bias)
        return functional.encode(x, self.weight, self.bias, activation)

    extra_repr = nn.Linear.extra_repr


@dataclass(frozen=True)
class Report:
    """The outcome of :func:`fuse` for every linear layer of a model, by its name.

    Attributes:
        fused: (layer, activation, place) of every fused call; the place is ``"Sequential"``,
            ``"EncoderLayer"`` or the forward that makes the call.
        left: the reason for every linear layer that was left alone.
    """

    fused: tuple[tuple[str, str, str], ...]
    left: dict[str, str]

    def __str__(self) -> str:
        layers = len({name for name, _, _ in self.fused})
        lines = [f"fused {layers} of {layers + len(self.left)} linear layers"]
        lines += [
            f"  {name or '(model)'}: {activation}, in {place}" for name, activation, place in self.fused
        ]
        lines += ["left alone"] if self.left else []
        lines += [f"  {name or '(model)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def fuse(model: nn.Module, *, verbose: bool = False) -> nn.Module:
    """A copy of ``model`` whose linear layers apply the activations that follow them.

    Two kinds of pairs are found:

    - neighbours in an ``nn.Sequential``: an :class:`EncoderLayer` takes the linear layer's place and an
      ``nn.Identity`` the activation's;
    - calls in a module's forward, such as ``self.act(self.fc1(x))`` or ``torch.sigmoid(self.fc1(x))``, where
      :mod:`torch.fx` can trace it: the copy's class is a subclass whose forward makes the pair one call. It
      runs the original forward where the caller gives an optional argument, or where a module or an attribute
      that the trace relied on was replaced. Other methods stay as they are.

    Parameters and modules without children are shared with ``model``, which stays as it was; state_dicts
    and names stay the same. A pair that might compute something else is left alone: layers of other classes
    (also parametrised, quantised and lazy ones), with hooks or replaced methods, outputs used more than once,
    and activations with settings other than PyTorch's defaults. :func:`report` says why. A model in which
    nothing is fused gives a warning.

    Args:
        model: any module.
        verbose: print the report.

    Raises:
        TypeError: ``model`` is not a module.
    """
    fusion = _Fusion(model)
    if verbose:
        print(fusion.report)
    if not fusion.report.fused:
        warnings.warn(f"fuse: nothing was fused\n{fusion.report}", stacklevel=2)
    return fusion.model


def report(model: nn.Module) -> Report:
    """List the pairs that :func:`fuse` fuses in ``model`` and those it leaves alone.

    Of a fused model: its fused pairs.
    """
    return _Fusion(model).report


def unfuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` of plain ``nn.Linear`` and activation modules: the reverse of :func:`fuse`.

    In an ``nn.Sequential`` the activation takes the place of an ``nn.Identity`` that follows, as ``fuse``
    leaves it, and names stay the same. Any other :class:`EncoderLayer` becomes an ``nn.Sequential`` of both.
    Parameters are shared. Layers with hooks and subclasses stay, and so do the autoencoders of
    :mod:`fastae.nn`, whose objective needs their layers.

    Raises:
        TypeError: ``model`` is not a module, or an autoencoder; take its encoder.
    """
    _check_module(model)
    if _is_autoencoder(model):
        name = type(model).__name__
        raise TypeError(f"model: expected a module of layers, got {name}; take its encoder")
    if isinstance(model, EncoderLayer):
        return model if _is_changed(model) else _plain(model)
    copy = copy_tree(model, lambda m: _is_autoencoder(m) or not m._modules)
    for module in list(copy.modules()):
        if isinstance(module, _Fused):
            object.__setattr__(module, "__class__", module.base)
            vars(module).pop("_calls", None)
        if not _is_autoencoder(module):
            _unfuse_children(module)
    return copy


def _unfuse_children(module: nn.Module) -> None:
    modules = module._modules
    for name, following in itertools.zip_longest(list(modules), list(modules)[1:]):
        layer, after = modules[name], modules.get(following)
        if not isinstance(layer, EncoderLayer) or _is_changed(layer):
            continue
        plain = modules[name] = _plain(layer)
        if isinstance(plain, nn.Sequential) and _is_plain_sequential(module) and type(after) is nn.Identity:
            modules[name], modules[following] = plain[0], plain[1].train(after.training)


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")


def _is_autoencoder(module: nn.Module) -> bool:
    from .autoencoder import Autoencoder
    from .stacked import StackedAutoencoder

    return isinstance(module, Autoencoder | StackedAutoencoder)


def _is_changed(layer: EncoderLayer) -> bool:
    return type(layer) not in (EncoderLayer, FusedLinear) or _customised(layer) is not None


def _plain(layer: EncoderLayer) -> nn.Module:
    linear = copy_tree(layer)
    linear.__class__ = nn.Linear
    activation = vars(linear).pop("activation")
    if activation == "linear":
        return linear
    return nn.Sequential(linear, _MODULES[activation]()).train(layer.training)


# --- what may be fused ----------------------------------------------------------------------------------


def _settings(module: nn.Module) -> dict[str, Any]:
    names = getattr(module, "__constants__", ())
    return {name: getattr(module, name) for name in names if name != "inplace"}


def _activation_name(module: nn.Module) -> str | None:
    """The fused name of an activation module, or ``None`` where it or its settings have no fused form."""
    for name, make in _MODULES.items():
        plain = make()
        if type(module) is type(plain) and _settings(module) == _settings(plain):
            return name
    if module._modules or module._parameters or module._buffers or isinstance(module, tuple(_FORWARDS)):
        return None
    return _wrapped_activation(module)


def _wrapped_activation(module: nn.Module) -> str | None:
    """The fused name of a module whose forward is one call of an activation's function."""
    try:
        graphs = trace(module, type(module)).graphs
    except Untraceable:
        return None
    calls = [[node for node in graph.nodes if node.op != "placeholder"] for graph in graphs.values()]
    if any(len(nodes) != 2 or nodes[1].args != (nodes[0],) for nodes in calls):
        return None
    names = {_called_activation(nodes[0], module) for nodes in calls}
    return names.pop() if len(names) == 1 else None


def _customised(module: nn.Module) -> str | None:
    """The reason why a module of a known class may not behave as its class does, if there is one."""
    cls = type(module)
    for name, value in vars(module).items():
        if "hooks" in name and value:
            return "has hooks"
        if callable(getattr(cls, name, None)) or (name == "_compiled_call_impl" and value is not None):
            return f"has a {name} of its own"
    if cls in _FORWARDS and cls.forward is not _FORWARDS[cls]:
        return f"{cls.__name__}.forward was replaced"
    return None


def _problem(linear: nn.Module) -> str | None:
    """The reason why a linear layer cannot be fused with any activation, if there is one."""
    if _has_any_global_hook():
        return "a hook of all modules is registered"
    if type(linear) not in (nn.Linear, FusedLinear):
        return f"is a {type(linear).__name__}"
    for name, parameter in linear._parameters.items():
        if name not in ("weight", "bias"):
            return f"has a parameter {name}"
        if parameter is not None and (
            type(parameter) is not nn.Parameter
            or parameter.layout is not torch.strided
            or parameter.dtype not in _DTYPES
        ):
            return f"has a {name} of {type(parameter).__name__}, {parameter.dtype}"
    if "weight" not in linear._parameters or "bias" not in linear._parameters:
        return "has a weight or bias that is no parameter"
    return _customised(linear)


def _is_opaque(module: nn.Module) -> bool:
    """True if a module runs other code than its class and children show."""
    replaced = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return replaced or isinstance(module, torch.jit.ScriptModule)


# --- fused forwards -------------------------------------------------------------------------------------


class _Calls(NamedTuple):
    """The fused forwards of a module in training and in evaluation, and what must still hold for them."""

    forwards: dict[bool, Callable[..., Any]]
    inputs: int
    same: tuple[tuple[dict[str, Any], str, Any], ...]  # (namespace, name, value) that the trace relied on
    hooks: tuple[dict[Any, Any], ...]  # of activations that are called no more

    def hold(self, args: tuple[Any, ...]) -> bool:
        return (
            len(args) == self.inputs
            and all(isinstance(value, Tensor) for value in args)
            and all(space.get(name) is value for space, name, value in self.same)
            and not any(self.hooks)
        )


class _Fused:
    """The base class of modules whose forward makes pairs one call; ``base`` is the class they come from."""

    base: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.base,), {name: value for name, value in vars(self).items() if name != "_calls"}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.base.__setstate__(self, state)
        vars(self)["_calls"] = _calls(self)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        calls: _Calls | None = vars(self)["_calls"]
        if calls is None or options or not calls.hold(args):
            return self.base.forward(self, *args, **options)
        return calls.forwards[self.training](self, *args)


@functools.cache
def _fused_class(base: type[nn.Module]) -> type[nn.Module]:
    names = {"base": base, "forward": functools.wraps(base.forward)(_Fused.forward)}
    return type(f"Fused{base.__name__}", (_Fused, base), {**names, "__module__": base.__module__})


def _blank(base: type[nn.Module]) -> nn.Module:
    return object.__new__(_fused_class(base))


def _base(module: nn.Module) -> type[nn.Module]:
    return module.base if isinstance(module, _Fused) else type(module)


def _calls(module: nn.Module) -> _Calls | None:
    """The fused calls of a copy or of an unpickled module; ``None`` where its layers are others by now."""
    try:
        traced = trace(module, _base(module))
    except Untraceable:
        return None
    pairs = [pair for graph in traced.graphs.values() for pair in _pairs(graph, module)]
    if any(type(module.get_submodule(str(pair.layer.target))) is not FusedLinear for pair in pairs):
        return None
    return _fused_calls(module, traced, pairs)


def _fused_calls(module: nn.Module, traced: Trace, pairs: list[_Pair]) -> _Calls:
    """Makes every pair in the graphs one call. The layers of the pairs are :class:`FusedLinear` ones."""
    same = [(vars(module), name, value) for name, value in traced.attributes.items()]
    hooks = []
    for pair in pairs:
        for node in (pair.layer, pair.activation):
            if node.op == "call_module":
                parent, name = _slot(module, str(node.target))
                same.append((parent, name, parent[name]))
        if pair.activation.op == "call_module":
            space = vars(module.get_submodule(str(pair.activation.target)))
            hooks += [value for name, value in space.items() if "hooks" in name and isinstance(value, dict)]
            same += [(space, name, value) for name, value in space.items() if name not in INTERNAL]
    for pair in pairs:
        pair.layer.args = (*pair.layer.args, pair.name)
        pair.activation.replace_all_uses_with(pair.layer)
        pair.layer.graph.erase_node(pair.activation)
    forwards = {mode: type(fx.GraphModule(module, graph)).forward for mode, graph in traced.graphs.items()}
    return _Calls(forwards, len(traced.inputs), tuple(same), tuple(hooks))


def _slot(module: nn.Module, path: str) -> tuple[dict[str, Any], str]:
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent)._modules, name


# --- finding pairs --------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Two nodes of a graph: a linear layer's call and the activation's, with the activation's fused name."""

    layer: fx.Node
    activation: fx.Node
    name: str


def _pairs(graph: fx.Graph, module: nn.Module, left: dict[int, str] | None = None) -> list[_Pair]:
    """The pairs in a graph of ``module``; ``left`` takes the reasons for the other layers, by their ids."""
    pairs, left = [], {} if left is None else left
    for node in graph.nodes:
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Linear) or _problem(layer):
            continue
        if len(node.args) != 1 or node.kwargs or len(node.users) != 1:
            left[id(layer)] = f"its output is used {len(node.users)} times"
            continue
        (user,) = node.users
        name = _called_activation(user, module)
        if name is None:
            left[id(layer)] = f"{_described(user, module)} follows"
        else:
            pairs.append(_Pair(node, user, name))
    return pairs


def _called_activation(node: fx.Node, module: nn.Module) -> str | None:
    """The fused name of an activation's call; ``None`` where it is none, or has other settings."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        plain = len(node.args) == 1 and not node.kwargs and not _customised(called)
        return _activation_name(called) if plain else None
    if node.op not in ("call_function", "call_method") or node.target not in _CALLED:
        return None
    make, names = _CALLED[node.target]
    values = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    if len(node.args) > 1 + len(names) or not values.keys() <= set(names):
        return None
    if any(isinstance(value, fx.Node) for value in values.values()):
        return None
    return _activation_name(make(**values))


def _described(node: fx.Node, module: nn.Module) -> str:
    if node.op == "output":
        return "no activation"
    if node.op == "call_module":
        return repr(module.get_submodule(str(node.target))).splitlines()[0]
    return getattr(node.target, "__name__", str(node.target))


class _Fusion:
    """A copy of a model in which pairs are fused, and the report of it."""

    def __init__(self, model: nn.Module) -> None:
        _check_module(model)
        self.fused: list[tuple[str, str, str]] = []
        self.left: dict[int, str] = {}  # reasons by the ids of layers
        self.direct: set[tuple[int, str]] = set()  # slots of Sequentials that a forward calls by themselves
        self.model = copy_tree(model, lambda module: not module._modules or _is_opaque(module))
        modules = list(self.model.named_modules())
        self.names = {id(module): name for name, module in modules if isinstance(module, nn.Linear)}
        for name, module in modules:
            self._look_at(name, module)
        for _, module in modules:
            self._fuse_calls(module)
        for _, module in modules:
            if _is_plain_sequential(module):
                self._fuse_neighbours(module)
        order = list(self.names.values())
        self.fused.sort(key=lambda entry: order.index(entry[0]))
        done = {name for name, _, _ in self.fused}
        left = {name: self.left.get(key, "no forward calls it") for key, name in self.names.items()}
        self.report = Report(
            tuple(dict.fromkeys(self.fused)), {name: why for name, why in left.items() if name not in done}
        )

    def _look_at(self, name: str, module: nn.Module) -> None:
        if type(module) is EncoderLayer:
            self.fused.append((name, module.activation, "EncoderLayer"))
        elif isinstance(module, nn.Linear) and (problem := _problem(module)):
            self.left[id(module)] = problem
        elif module._modules and _is_opaque(module):
            reason = f"inside {type(module).__name__}, whose code was replaced"
            self.left.update((id(part), reason) for part in module.modules())

    def _fuse_calls(self, module: nn.Module) -> None:
        """Fuses the pairs that a module's own forward calls."""
        base = _base(module)
        if not _has_forward(module) or _is_plain_sequential(module) or _is_opaque(module):
            return
        if _is_autoencoder(module) or not any(isinstance(part, nn.Linear) for part in module.modules()):
            return
        left: dict[int, str] = {}
        try:
            traced = trace(module, base)
        except Untraceable as error:
            reason = f"{base.__name__}.forward cannot be traced: {error}"
            self.left.update((id(layer), reason) for layer in _owned(module) if id(layer) not in self.left)
            return
        pairs = [pair for graph in traced.graphs.values() for pair in _pairs(graph, module, left)]
        for graph in traced.graphs.values():
            slots = [_slot(module, str(node.target)) for node in graph.nodes if node.op == "call_module"]
            self.direct.update((id(parent), name) for parent, name in slots)
        self.left.update(left)
        for pair in pairs:
            parent, name = _slot(module, str(pair.layer.target))
            layer = parent[name]
            self.fused.append((self.names[id(layer)], pair.name, f"{base.__name__}.forward"))
            if type(layer) is nn.Linear:
                parent[name] = FusedLinear.from_linear(layer, "linear")
                self.names[id(parent[name])] = self.names[id(layer)]
        if pairs:
            module.__class__ = _fused_class(base)
            vars(module)["_calls"] = _fused_calls(module, traced, pairs)

    def _fuse_neighbours(self, module: nn.Module) -> None:
        """Fuses the pairs of a Sequential."""
        modules = module._modules
        for name, following in itertools.zip_longest(modules, list(modules)[1:]):
            linear, activation = modules[name], modules.get(following)
            if type(linear) is not nn.Linear or _problem(linear):
                continue
            fused = None if activation is None else _activation_name(activation)
            if {(id(modules), name), (id(modules), following)} & self.direct:
                self.left.setdefault(id(linear), "its Sequential is also called in parts")
            elif fused is None or activation is None or _customised(activation):
                reason = "no activation" if activation is None else repr(activation).splitlines()[0]
                custom = activation is not None and _customised(activation)
                self.left[id(linear)] = f"{reason} follows" + (f", which {custom}" if custom else "")
            else:
                self.fused.append((self.names[id(linear)], fused, "Sequential"))
                modules[name] = EncoderLayer.from_linear(linear, fused)
                modules[following] = nn.Identity().train(activation.training)


def _has_forward(module: nn.Module) -> bool:
    return _base(module).forward is not nn.Module.forward


def _is_plain_sequential(module: nn.Module) -> bool:
    return _base(module).forward is nn.Sequential.forward and not _is_opaque(module)


def _owned(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers that no other forward than this module's calls."""
    for child in module._modules.values():
        if isinstance(child, nn.Linear):
            yield child
        elif child is not None and not _has_forward(child):
            yield from _owned(child)
