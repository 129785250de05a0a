"""Adam with the next step's copies and norms in one kernel, against PyTorch's."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastae_kernels import operators

from fastae import nn, ops
from fastae.gradients import prepared
from fastae.train import TrainingStep
from fastae.train import adam as training
from tests.kernels.support import DEVICE

SHAPES = [(5, 520), (9,), (5, 8), (), (13,)]
"""More parameters than a launch takes, and more rows and columns than a block has."""


@pytest.mark.parametrize(
    ("decoupled", "options"),
    [
        (False, {}),
        (True, {"weight_decay": 0.1}),
        (False, {"weight_decay": 0.1, "eps": 0.1, "betas": (0.0, 0.5)}),
    ],
    ids=str,
)
def test_steps_are_those_of_torch(decoupled, options):
    g = torch.Generator().manual_seed(0)
    ours = [torch.randn(s, generator=g).to(DEVICE) for s in SHAPES]
    theirs: list[Any] = [p.clone() for p in ours]
    adam = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, lr=1e-2, **options)
    states: list[dict[str, Any]] = [
        {"step": torch.tensor(2.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for p in theirs
    ]
    adam.state.update(dict(zip(theirs, copy.deepcopy(states), strict=True)))
    weight, norms = torch.empty(SHAPES[0], dtype=torch.float16, device=DEVICE), torch.empty(5, device=DEVICE)
    constants: Any = [adam.param_groups[0][name] for name in ("betas", "eps", "weight_decay")] + [decoupled]
    for number in range(1, 4):
        for p in theirs:
            p.grad = torch.randn(p.shape, generator=g).to(DEVICE)
        adam.step()
        jobs = [
            operators.Updated(p, t.grad, **{**s, "step": s["step"].to(DEVICE)}, ahead=number)
            for p, t, s in zip(ours, theirs, states, strict=True)
        ]
        lr = torch.tensor(1e-2, device=DEVICE) if number % 2 else 1e-2
        narrow = weight if number % 2 else None
        operators.adam([jobs[0]._replace(copy=narrow, sq_norms=norms), *jobs[1:]], lr, *constants)
        for p, t, state in zip(ours, theirs, states, strict=True):
            expected = adam.state[t]
            torch.testing.assert_close(p, t, rtol=1e-6, atol=1e-6)
            for name in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(state[name], expected[name], rtol=1e-6, atol=1e-6)
        read = ours[0] if narrow is None else ours[0].half()
        assert narrow is None or torch.equal(narrow, read)
        torch.testing.assert_close(norms, read.float().square().sum(1), rtol=1e-5, atol=0.0)


# within a training step ------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the operators on weights were called; the others run in PyTorch, which is quicker here."""
    counts: Counter[str] = Counter()
    monkeypatch.setenv("FASTAE_BACKEND", "torch")
    ops.forget_backends()
    monkeypatch.setattr(ops.backend, "runs_pytorch", lambda device: False)
    for owner, name in ((operators, "adam"), (ops, "cast_weight"), (ops, "squared_norms")):

        def counting(*arguments: Any, run: Callable[..., Any] = getattr(owner, name), **options: Any) -> Any:  # noqa: B008
            counts[str(run.__name__).partition(".")[0]] += 1
            return run(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)
    return counts


def trained(
    model: nn.Autoencoder, calls: Counter[str], **options: Any
) -> tuple[torch.optim.Optimizer, Counter[str]]:
    """After a step, three in a call, a change of all weights, and two in a call; calls are of the three."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True, weight_decay=0.01)
    data = torch.rand(24, 7, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    step = TrainingStep(model, optimizer, data=[data], graph=False, **options)
    torch.manual_seed(0)
    step(torch.arange(4, device=DEVICE)[None])
    calls.clear()
    step(torch.arange(12, device=DEVICE).view(3, 4), rates=[0.01, 0.02, 0.005])
    counts = Counter(calls)
    for p in model.parameters():
        p.data.mul_(0.5)  # which no version of the parameter tells
    step(torch.arange(16, 24, device=DEVICE).view(2, 4))
    return optimizer, counts


@pytest.mark.parametrize(
    ("tied", "options"), [(True, {}), (False, {"autocast": torch.float16, "clip_norm": 0.5})], ids=str
)
def test_several_steps_share_kernels_and_are_those_of_torch(tied, options, calls, monkeypatch):
    torch.manual_seed(0)
    model = nn.Autoencoder(7, 5, contractive=0.1, tied=tied, device=DEVICE)
    plain = copy.deepcopy(model)
    optimizer, counts = trained(model, calls, **options)
    norms = "cast_weight" if options else "squared_norms"
    assert counts == {"adam": 3, norms: 1}
    monkeypatch.setattr(training, "_by_formula", lambda optimizer: False)
    by_torch, counts = trained(plain, calls, **options)
    assert counts == {norms: 3}
    tolerance: Any = {"rtol": 1e-2, "atol": 1e-4} if options else {"rtol": 1e-5, "atol": 1e-6}
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[p][name], by_torch.state[q][name], **tolerance)
    assert optimizer.param_groups == [
        {**group, "params": optimizer.param_groups[0]["params"]} for group in by_torch.param_groups
    ]


def no_hook(*_: object) -> None: ...


PREVENTED: dict[str, Callable[[Any, Any], Any]] = {
    "a hook of a layer": lambda model, optimizer: model.encoder.register_forward_pre_hook(no_hook),
    "a parametrisation": lambda model, optimizer: torch.nn.utils.parametrizations.weight_norm(model.encoder),
    "a hook of the optimizer": lambda model, optimizer: optimizer.register_step_post_hook(no_hook),
    "a schedule": lambda model, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100),
    "amsgrad": lambda model, optimizer: optimizer.param_groups[0].update(amsgrad=True),
    "a rate of decay on the device": lambda model, optimizer: optimizer.param_groups[0].update(
        betas=(torch.tensor(0.9), 0.99)
    ),
}


@pytest.mark.parametrize("case", ["nothing", *PREVENTED])
def test_nothing_is_kept_where_weights_may_change_in_between(case):
    model = nn.Autoencoder(7, 5, contractive=0.1, device=DEVICE)
    optimizer = torch.optim.Adam(model.parameters())
    PREVENTED.get(case, no_hook)(model, optimizer)
    with training.updates(optimizer, model, 3, no_hook):
        assert (prepared._kept is not None) == (case == "nothing")
    with training.updates(optimizer, model, 1, no_hook):
        assert prepared._kept is None


def test_a_weight_that_changed_is_prepared_again():
    weight = torch.nn.Parameter(torch.ones(3, 2, device=DEVICE))
    with prepared.keeping():
        first = prepared.prepare(weight, torch.float16, norms=True)
        assert prepared.prepare(weight, torch.float16, norms=True) is first
        assert prepared.prepare(weight, None, norms=True).weight is weight
        with torch.no_grad():
            weight.mul_(2.0)
        again = prepared.prepare(weight, torch.float16, norms=True)
    assert again.weight.float().equal(weight)
    assert again.sq_norms is not None and again.sq_norms.tolist() == [8.0] * 3
