"""Layers with hooks, or sharded by themselves, are called: nothing reads past their code."""

from __future__ import annotations

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from fastae import Masking, reference
from fastae.diagnostics import diagnose
from fastae.nn import Autoencoder, EncoderLayer, StackedAutoencoder
from fastae.nn.autoencoder import TiedDecoder

NORMS = {
    "spectral norm": spectral_norm,
    "weight norm": weight_norm,
    "parametrised": parametrizations.spectral_norm,
}
OPTIONS = {"contractive": 0.1, "l1": 0.1, "kl": 0.1, "corruption": Masking(0.3), "dropout": 0.2}


def rows() -> Tensor:
    return torch.rand(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_normed_encoders_train_their_own_parameters(norm, tied):
    torch.manual_seed(0)
    normed = Autoencoder(6, 5, tied=tied, contractive=0.1).eval()
    norm(normed.encoder)
    for parameters in normed.parameters():
        parameters.data.mul_(1.5)  # a weight from before the norm would now be stale
    loss = normed(rows()).total
    loss.backward()
    normed.encoder(rows())
    decoder = None if tied else normed.decoder.weight
    layer = normed.encoder.weight, normed.encoder.bias
    expected = reference.autoencoder_loss(rows(), *layer, decoder, normed.decoder.bias, contractive=0.1)
    torch.testing.assert_close(loss, expected.total.mean())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in normed.parameters())


def test_hooks_see_codes_and_products_and_may_change_them():
    model, seen = Autoencoder(6, 5, tied=False), {}
    model.encoder.register_forward_hook(lambda module, args, code: seen.update(code=code) or code * 0.0)
    model.decoder.register_forward_hook(lambda module, args, a: seen.update(a=a))
    loss = model(rows())
    assert seen["code"].shape == (8, 5)
    torch.testing.assert_close(seen["a"], model.decoder.bias.expand(8, 6))
    entries = F.binary_cross_entropy_with_logits(seen["a"], rows(), reduction="none")
    torch.testing.assert_close(loss.total, entries.sum(1).mean())


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_the_penalty_of_a_normed_layer_trains_its_own_parameters(norm):
    layer = EncoderLayer(6, 5)
    norm(layer)
    for _ in range(2):
        code, penalty = layer.contractive(rows())
        layer.zero_grad()
        (code.sum() + penalty).backward()  # a weight of an earlier call would have no graph left
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.eval()
    torch.testing.assert_close(layer.contractive(rows())[0], layer(rows()))
    expected = reference.contractive_penalty(rows(), layer.weight, layer.bias, "sigmoid").mean()
    torch.testing.assert_close(layer.contractive(rows())[1], expected)


def test_hooks_of_all_modules_see_the_layers():
    seen = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(type(module)))
    try:
        StackedAutoencoder([6, 5, 4])(rows())
    finally:
        handle.remove()
    assert seen.count(EncoderLayer) == seen.count(TiedDecoder) == 2


def test_diagnostics_read_the_weights_that_a_call_would_compute():
    models = [Autoencoder(6, 5, loss="mse") for _ in range(2)]
    for model in models:
        weight_norm(model.encoder)
    models[0].encoder(rows())
    models[1].load_state_dict(models[0].eval().state_dict())  # its weight is still the one before
    assert diagnose(models[1], rows())["mse"] == pytest.approx(
        float((models[0].reconstruct(rows()) - rows()).square().mean())
    )
    assert models[1].training and models[1].encoder.training
    models[1].decoder.forward = lambda code, weight: code @ weight * 2.0
    with pytest.raises(ValueError, match=r"^model: its TiedDecoder computes something else"):
        diagnose(models[1], rows())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("sizes", [[6, 5], [6, 5, 4]], ids=["one layer", "a stack"])
def test_a_hook_that_does_nothing_changes_nothing(sizes, reduction):
    torch.manual_seed(0)
    plain = StackedAutoencoder(sizes, **OPTIONS, **({"higher_order": 0.1} if len(sizes) == 2 else {}))
    hooked = copy.deepcopy(plain)
    for module in list(hooked.modules()):
        module.register_forward_pre_hook(lambda module, args: None)

    def step(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        total = model(rows(), entry_weight=torch.arange(6.0), reduction=reduction).total.sum()
        return [total, *torch.autograd.grad(total, list(model.parameters()))]

    torch.testing.assert_close(step(hooked), step(plain))


def test_reconstructions_call_a_normed_decoder():
    model = Autoencoder(6, 5, tied=False)
    weight_norm(model.decoder)
    model.decoder.weight_g.data.mul_(2.0)
    expected = torch.sigmoid(model.decoder(model.encode(rows())))
    torch.testing.assert_close(model.reconstruct(rows()), expected)


@pytest.fixture
def process_group():
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def test_layers_sharded_one_by_one_train_like_whole_ones(process_group):
    torch.manual_seed(0)
    whole = StackedAutoencoder([6, 5, 4], **OPTIONS, probes=2)
    sharded = copy.deepcopy(whole)
    for layer in sharded.layers:
        fully_shard(layer)
    fully_shard(sharded)
    for model in (whole, sharded):
        torch.manual_seed(1)
        model(rows()).total.backward()
    for one, two in zip(whole.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(two.grad.full_tensor(), one.grad)


def test_the_penalty_of_a_stack_names_sharded_encoders(process_group):
    stack = StackedAutoencoder([6, 5, 4], contractive=0.1)
    for layer in stack.layers:
        fully_shard(layer.encoder)
    fully_shard(stack)
    with pytest.raises(ValueError, match=r"^contractive: needs whole weights"):
        stack(rows())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_objective_draws_the_same_noise(reentrant):
    model = Autoencoder(6, 5, higher_order=0.1, **OPTIONS)

    def gradients(run) -> tuple[Tensor, ...]:
        x = rows().requires_grad_()
        torch.manual_seed(2)
        model.zero_grad()
        run(x).backward()
        return x.grad, *(p.grad.clone() for p in model.parameters())

    expected = gradients(lambda x: model(x).total)
    got = gradients(lambda x: checkpoint(lambda x: model(x).total, x, use_reentrant=reentrant))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
