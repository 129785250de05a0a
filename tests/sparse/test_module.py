"""The module: its state, counts, thresholds, start, constraints and training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from fastae import AuxK, Matryoshka, functional
from fastae.nn import SparseAutoencoder
from fastae.optim import constrain
from fastae.sparse import reference as R
from fastae.sparse.module import geometric_median
from fastae.sparse.planted import planted_rows, recovered_share
from fastae.train import TrainingStep

RULES = ["topk:3", "batch_topk:2.5", "relu", "jump_relu:0.1:0.7", "gated"]
EVERY = pytest.mark.parametrize("rule", RULES)


def rows(number: int = 40, features: int = 6) -> torch.Tensor:
    return torch.randn(number, features, generator=torch.Generator().manual_seed(3))


def make(rule: str, **options) -> SparseAutoencoder:
    torch.manual_seed(0)
    return SparseAutoencoder(6, 20, rule, **options)


@EVERY
def test_forward_is_the_function(rule):
    sae = make(rule, auxk=AuxK(k=2, dead_after=1), l1=0.1)
    sae.rows_since_fired[::3] = 5
    dead = sae.dead
    gate = (sae.gate_bias, sae.magnitude, sae.magnitude_bias) if rule == "gated" else None
    threshold = sae.threshold if rule.startswith("jump") else None
    x = rows()
    expected, _ = functional.sparse_autoencoder_loss(
        x,
        sae.encoder.weight,
        sae.encoder.bias,
        sae.decoder.weight,
        sae.decoder.bias,
        activation=rule,
        auxk=sae.options.auxk,
        dead=dead,
        l1=0.1,
        gate=gate,
        threshold=threshold,
    )
    for term, right in zip(sae(x), expected, strict=True):
        assert (term is None and right is None) or torch.equal(term, right)


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_that_hooks_compute_are_those_of_each_call(norm, part):
    sae, seen = make("topk:3"), []
    norm(getattr(sae, part))
    getattr(sae, part).register_forward_hook(lambda module, args, parameters: seen.append(module))
    for _ in range(2):  # a weight of an earlier call would have no graph left
        sae.zero_grad()
        sae(rows()).total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in getattr(sae, part).parameters())
    with torch.no_grad():
        before = sae.eval().reconstruct(rows())
        state = {name: value.clone() for name, value in sae.state_dict().items()}
        for parameter in sae.parameters():
            parameter.mul_(2.0)
        sae.reconstruct(rows())
        sae.load_state_dict(state)
        assert torch.equal(sae.reconstruct(rows()), before)
    assert len(seen) > 4


@EVERY
def test_reconstruct_is_decode_of_encode_and_what_the_loss_measures(rule):
    sae = make(rule)
    x = rows().view(4, 10, 6)
    sae.eval()
    if rule.startswith("batch"):
        sae.calibrate_threshold_(x)
    code = sae.encode(x)
    torch.testing.assert_close(sae.decode(code).view_as(x), sae.reconstruct(x))
    error = (sae.reconstruct(x) - x).square().sum(-1).mean()
    torch.testing.assert_close(error, sae(x).reconstruction)
    if rule.startswith("topk"):
        assert code.values.shape == code.indices.shape == (4, 10, 3)


@EVERY
def test_state_survives_saving_copies_and_pickles(rule):
    sae = make(rule, matryoshka=Matryoshka((5, 20)))
    sae(rows())
    other = SparseAutoencoder(6, 20, rule, matryoshka=Matryoshka((5, 20)))
    other.load_state_dict(sae.state_dict())
    for twin in (other, copy.deepcopy(sae), pickle.loads(pickle.dumps(sae))):
        assert twin.options == sae.options
        for name, value in sae.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value)
        assert torch.equal(twin.eval().reconstruct(rows()), copy.deepcopy(sae).eval().reconstruct(rows()))


def test_dead_latents_are_counted_in_rows_of_training():
    sae = make("topk:1", auxk=AuxK(dead_after=30))
    with torch.no_grad():
        sae.encoder.weight.zero_()
        sae.encoder.bias.copy_(torch.arange(20.0))  # latent 19 is the largest of every row
    for number, dead in ((12, 0), (12, 0), (12, 19)):
        sae(rows(number))
        assert int(sae.dead.sum()) == dead
    assert sae.rows_since_fired.tolist() == [36] * 19 + [0]
    sae.eval()
    sae(rows(12))
    assert sae.rows_since_fired[0] == 36
    sae.train()
    assert sae(rows()).auxk > 0


def test_latents_that_were_selected_without_being_positive_have_not_fired():
    sae = make("topk:3")
    with torch.no_grad():
        sae.encoder.bias.fill_(-100.0)
    sae(rows(7))
    assert sae.rows_since_fired.tolist() == [7] * 20


def test_threshold_of_batch_topk_follows_the_least_value_kept():
    sae = make("batch_topk:2:0.9")
    assert sae.threshold == -1.0
    expected = -1.0
    for seed in range(3):
        x = torch.randn(10, 6, generator=torch.Generator().manual_seed(seed))
        code = R.batch_topk(torch.nn.functional.linear(x, sae.encoder.weight, sae.encoder.bias), 2)
        least = code[code > 0].min().item()
        expected = least if expected < 0 else 0.9 * expected + 0.1 * least
        sae(x)
        assert sae.threshold.item() == pytest.approx(expected, rel=1e-5)
    sae.eval()
    before = sae.threshold.clone()
    sae(rows())
    assert torch.equal(sae.threshold, before)


def test_calibrated_threshold_keeps_k_per_row():
    sae = make("batch_topk:2.5").eval()
    x = rows(400)
    sae.calibrate_threshold_(x.split(90))
    code = sae.encode(x)
    assert len(code.values) == 1000
    assert code.offsets[-1] == 1000
    with pytest.raises(ValueError, match="only batch_topk has a threshold"):
        make("topk:2").calibrate_threshold_(x)
    with pytest.raises(ValueError, match="at least one row"):
        sae.calibrate_threshold_([])


def test_thresholds_of_jump_relu_do_not_become_negative():
    sae = make("jump_relu:0.1", l0=1.0)
    with torch.no_grad():
        sae.threshold[:5] = -0.3
    sae.eval()(rows())
    assert sae.threshold[0] < 0
    loss = sae.train()(rows())
    assert torch.equal(sae.threshold[:5], torch.zeros(5))
    loss.total.backward()
    assert sae.threshold.grad is not None and sae.threshold.dtype == torch.float32


@pytest.mark.parametrize("kind", ["layer_norm", "norm"])
def test_normalization_is_of_rows_and_undone(kind):
    sae = make("topk:3", normalization=kind).eval()
    x = rows() * 5 + 2
    out = sae.reconstruct(x)
    torch.testing.assert_close(sae.reconstruct(7 * x), 7 * out, rtol=1e-4, atol=1e-3)
    shifted = sae.reconstruct(x + 3) - 3
    assert torch.allclose(shifted, out, atol=1e-3) == (kind == "layer_norm")
    scale = x.std(1, keepdim=True) + 1e-5 if kind == "layer_norm" else x.norm(dim=1, keepdim=True) / 6**0.5
    error = ((out - x) / scale).square().sum(1).mean()
    torch.testing.assert_close(sae(x).reconstruction, error, rtol=2e-5, atol=0.0)
    with pytest.raises(ValueError, match="target: expected None with normalization"):
        sae(x, x)


def test_transcoders_have_a_target_and_a_linear_term():
    torch.manual_seed(0)
    sae = SparseAutoencoder(6, 20, "topk:3", out_features=4, skip=True)
    assert not sae.options.center
    assert sae.decoder.weight.shape == (20, 4) and sae.skip.shape == (4, 6)
    x, target = rows(), rows(features=4)
    with torch.no_grad():
        sae.skip.normal_()
    error = (sae.reconstruct(x) - target).square().sum(1).mean()
    torch.testing.assert_close(sae(x, target).total, error)
    with pytest.raises(ValueError, match="target: expected a target"):
        sae(x)


# --- start and constraints ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["topk:3", "batch_topk:3", "relu"])
def test_start_is_tied_and_has_the_length_of_the_data(rule):
    sae = make(rule)
    x = rows(300) * 4 + 1
    assert sae.initialize_(x) is sae
    torch.testing.assert_close(sae.decoder.weight.norm(dim=1), torch.ones(20))
    ratio = sae.encoder.weight / sae.decoder.weight
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    torch.testing.assert_close(sae.decoder.bias, geometric_median(x))
    centred = x - sae.decoder.bias
    estimate = sae.eval().reconstruct(x) - sae.decoder.bias
    length = centred.norm(dim=1).mean() * (0.01 if rule == "batch_topk:3" else 1.0)
    torch.testing.assert_close(estimate.norm(dim=1).mean(), length, rtol=1e-4, atol=0.0)


def test_batch_topk_finds_planted_directions_from_its_start():
    x, directions = planted_rows(100_000, 64, 128, 4.0, 0.02)
    torch.manual_seed(0)
    sae = SparseAutoencoder(64, 1024, "batch_topk:4", auxk=AuxK(dead_after=10_000)).initialize_(x)
    optimizer = constrain(torch.optim.Adam(sae.parameters(), lr=3e-3), sae)
    for batch in x.split(250):
        sae(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert recovered_share(sae.decoder.weight, directions) > 0.9


def test_geometric_median_is_robust():
    x = torch.cat((rows(99) * 0.1, torch.full((10, 6), 1e4)))
    assert geometric_median(x).norm() < 0.2
    line = torch.tensor([[0.0], [1.0], [10.0]])
    torch.testing.assert_close(geometric_median(line), torch.tensor([1.0]), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_constrained_optimizers_keep_unit_rows(kind):
    sae = make("topk:3").initialize_(rows())
    optimizer = constrain(kind(sae.parameters(), lr=0.05), sae)
    assert isinstance(optimizer, kind)
    sae(rows()).total.backward()
    optimizer.step()
    along = (sae.decoder.weight.grad * sae.decoder.weight).sum(1)
    torch.testing.assert_close(sae.decoder.weight.norm(dim=1), torch.ones(20))
    assert along.abs().max() < 0.3 * sae.decoder.weight.grad.norm(dim=1).max()
    with pytest.raises(ValueError, match="expected one that has the decoder's weight"):
        constrain(kind(sae.encoder.parameters(), lr=0.1), sae)


def test_projection_removes_what_lies_along_rows():
    sae = make("topk:3")
    with torch.no_grad():
        sae.decoder.weight.mul_(3.0)
        sae.decoder.weight[4] = 0.0
    sae(rows()).total.backward()
    gradient = sae.decoder.weight.grad.clone()
    sae.project_decoder_gradient_()
    assert (sae.decoder.weight.grad * sae.decoder.weight).sum(1).abs().max() < 1e-4
    unit = torch.nn.functional.normalize(sae.decoder.weight, dim=1)
    expected = gradient - unit * (gradient * unit).sum(1, keepdim=True)
    torch.testing.assert_close(sae.decoder.weight.grad, expected)
    sae.normalize_decoder_()
    assert sae.decoder.weight[4].norm() == 0.0


def test_training_step_takes_the_module_as_it_is():
    torch.manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(16, 12), dim=1)
    x = (torch.rand(800, 16) * (torch.rand(800, 16) < 0.1)) @ truth
    sae = SparseAutoencoder(12, 32, "topk:2", auxk=AuxK(dead_after=2000)).initialize_(x)
    step = TrainingStep(sae, constrain(torch.optim.Adam(sae.parameters(), 3e-3), sae))
    first = step(x[:200]).total.item()
    for _ in range(60):
        for batch in x.split(200):
            last = step(batch)
    assert last.reconstruction.item() < 0.2 * first
    assert "auxk" in step.sums()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features: must be a whole number >= 1, got 0"),
        ({"code_features": 2}, "activation: expected k of at most 2 latents, got topk:3"),
        ({"out_features": 4, "center": True}, "center: needs as many outputs"),
        ({"out_features": 4, "normalization": "norm"}, "normalization: expected none"),
        ({"matryoshka": Matryoshka((2, 4))}, "matryoshka: expected the last width to be 20"),
    ],
)
def test_errors_name_the_option(options, message):
    arguments = {"in_features": 6, "code_features": 20, "activation": "topk:3"} | options
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(**arguments)
