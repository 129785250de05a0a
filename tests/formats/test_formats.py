"""Files of sparse autoencoders: fastae's own, and those of others in their documented layouts.

What a file means is computed here from its tensors by its library's own formula, not by fastae.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastae import AuxK, Matryoshka
from fastae.formats import FORMATS, FormatError, read, write
from fastae.nn import SparseAutoencoder

D, H = 6, 20
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = draw(30, D, seed=9) * 2 + 0.5


def make(rule: str, **options: Any) -> SparseAutoencoder:
    sae = SparseAutoencoder(D, H, rule, **options)
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
        if "threshold" in sae.state_dict():
            sae.threshold.copy_(sae.threshold.abs() if sae.threshold.dim() else torch.tensor(0.7))
    return sae.eval()


def top(z: Tensor, k: int) -> Tensor:
    values, indices = z.relu().topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, indices, values)


def save(folder: Path, format: str, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    module = FORMATS[format]
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(module, "CONFIG"):
        (folder / module.CONFIG).write_text(json.dumps(config))
    if module.WEIGHTS.endswith(".safetensors"):
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / module.WEIGHTS)
    else:
        torch.save(tensors, folder / module.WEIGHTS)
    return folder


# --- both ways ------------------------------------------------------------------------------------------

WRITABLE = {
    "fastae": [
        ("topk:3", {"auxk": AuxK(k=2)}),
        ("batch_topk:2.5", {"matryoshka": Matryoshka((5, 20))}),
        ("jump_relu:0.1", {"l0": 0.1, "l0_target": 3.0}),
        ("gated", {"l1": 0.1}),
        ("relu", {"normalization": "norm", "center": False}),
        ("topk:3", {"out_features": 4, "skip": True}),
    ],
    "saelens": [
        ("topk:3", {"normalization": "layer_norm"}),
        ("batch_topk:2", {}),
        ("jump_relu", {"center": False, "normalization": "norm"}),
        ("gated", {}),
        ("relu", {}),
        ("relu", {"out_features": 4, "skip": True}),
        ("jump_relu", {"out_features": 4}),
    ],
    "sparsify": [("topk:3", {}), ("topk:3", {"center": False, "skip": True})],
    "dictionary_learning": [
        ("topk:3", {}),
        ("batch_topk:2", {}),
        ("batch_topk:2", {"matryoshka": Matryoshka((5, 20))}),
        ("jump_relu", {"center": False}),
        ("gated", {}),
        ("relu", {}),
        ("relu", {"center": False}),
    ],
    "openai": [("topk:3", {"normalization": "layer_norm"}), ("relu", {})],
}
CASES = [(format, *case) for format, cases in WRITABLE.items() for case in cases]


@pytest.mark.parametrize(
    ("format", "rule", "options"), CASES, ids=[f"{f} {r} {','.join(o)}" for f, r, o in CASES]
)
def test_what_is_written_is_read_again(format, rule, options, tmp_path):
    sae = make(rule, **options)
    file = write(sae, tmp_path / "sae", format)
    assert file.parent == tmp_path / "sae"
    for other in (read(tmp_path / "sae"), read(tmp_path / "sae", format), read(file)):
        assert torch.equal(other.eval().reconstruct(X), sae.reconstruct(X))
        assert all(p.requires_grad for p in other.parameters())
    if format == "fastae":
        assert other.options == sae.options
        for name, value in sae.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype, tmp_path):
    sae = make("topk:3").to(dtype)
    for format in ("fastae", "saelens", "sparsify"):
        write(sae, tmp_path / format, format)
        assert read(tmp_path / format).encoder.weight.dtype == dtype


@pytest.mark.parametrize(
    ("format", "rule", "options", "reason"),
    [
        ("sparsify", "relu", {}, "the activation relu"),
        ("sparsify", "topk:3", {"normalization": "norm"}, "normalization 'norm'"),
        ("sparsify", "topk:3", {"out_features": 4}, "an output of another width"),
        ("dictionary_learning", "topk:3", {"center": False}, "topk:3, not centred"),
        ("dictionary_learning", "batch_topk:2.5", {}, "k = 2.5"),
        ("dictionary_learning", "relu", {"skip": True}, "linear terms"),
        ("openai", "topk:3", {}, "topk:3 with normalization 'none'"),
        ("openai", "gated", {}, "the activation gated"),
        ("saelens", "topk:3", {"out_features": 4}, "a transcoder with topk:3"),
    ],
)
def test_what_a_format_cannot_say_is_refused(format, rule, options, reason, tmp_path):
    with pytest.raises(FormatError, match=f"{format}: cannot represent .*{reason}"):
        write(make(rule, **options), tmp_path / "sae", format)
    assert not (tmp_path / "sae").exists()


def test_a_threshold_that_is_not_set_is_refused(tmp_path):
    sae = SparseAutoencoder(D, H, "batch_topk:2")
    with pytest.raises(FormatError, match="calibrate it first"):
        write(sae, tmp_path, "saelens")


# --- SAELens --------------------------------------------------------------------------------------------


def saelens(**config: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"W_enc": draw(D, H), "W_dec": draw(H, D), "b_enc": draw(H), "b_dec": draw(D)}
    return tensors, {"d_in": D, "d_sae": H, "apply_b_dec_to_input": True, **config}


def test_saelens_codes_rescaled_by_decoder_norms_are_folded(tmp_path):
    t, config = saelens(architecture="topk", k=3, rescale_acts_by_decoder_norm=True)
    norms = t["W_dec"].norm(dim=1)
    code = top(((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms, 3)
    expected = (code / norms) @ t["W_dec"] + t["b_dec"]
    sae = read(save(tmp_path, "saelens", t, config))
    torch.testing.assert_close(sae.reconstruct(X), expected, **CLOSE)
    torch.testing.assert_close(sae.encode(X).to_dense(H), code, **CLOSE)
    torch.testing.assert_close(sae.decoder.weight.norm(dim=1), torch.ones(H))


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_saelens_rows_are_scaled_at_run_time(kind, tmp_path):
    t, config = saelens(architecture="standard", normalize_activations=kind)
    if kind == "layer_norm":
        mean, std = X.mean(1, keepdim=True), X.std(1, keepdim=True)
        x, undo = (X - mean) / (std + 1e-5), lambda out: out * std + mean
    else:
        factor = D**0.5 / X.norm(dim=1, keepdim=True)
        x, undo = X * factor, lambda out: out / factor
    code = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    sae = read(save(tmp_path, "saelens", t, config))
    torch.testing.assert_close(sae.reconstruct(X), undo(code @ t["W_dec"] + t["b_dec"]), **CLOSE)


@pytest.mark.parametrize("centred", [True, False])
def test_saelens_jumprelu_has_relu_first(centred, tmp_path):
    t, config = saelens(architecture="jumprelu", apply_b_dec_to_input=centred)
    t["threshold"] = draw(H)  # also negative ones
    z = (X - t["b_dec"] * centred) @ t["W_enc"] + t["b_enc"]
    expected = (z.relu() * (z > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(read(save(tmp_path, "saelens", t, config)).reconstruct(X), expected, **CLOSE)


def test_saelens_training_files_of_batchtopk(tmp_path):
    t, config = saelens(architecture="batchtopk", k=2.5, rescale_acts_by_decoder_norm=False)
    t["topk_threshold"] = torch.tensor(0.4, dtype=torch.float64)
    z = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    sae = read(save(tmp_path, "saelens", t, config)).eval()
    torch.testing.assert_close(sae.encode(X).to_dense(H), z * (z > 0.4), **CLOSE)
    assert sae.options.activation.k == 2.5


def test_saelens_gated_and_old_topk(tmp_path):
    t, config = saelens(architecture="gated")
    del t["b_enc"]
    t |= {"b_gate": draw(H), "r_mag": draw(H, seed=3), "b_mag": draw(H, seed=4)}
    u = (X - t["b_dec"]) @ t["W_enc"]
    code = (u + t["b_gate"] > 0) * (t["r_mag"].exp() * u + t["b_mag"]).relu()
    sae = read(save(tmp_path / "gated", "saelens", t, config))
    torch.testing.assert_close(sae.encode(X).to_dense(H), code, **CLOSE)
    t, config = saelens(activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    assert str(read(save(tmp_path / "old", "saelens", t, config)).options.activation) == "topk:4"


def test_saelens_files_hold_the_weights_of_their_layout(tmp_path):
    sae = make("batch_topk:2")
    t = load_file(write(sae, tmp_path, "saelens"))
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu" and config["normalize_activations"] == "none"
    z = (X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    expected = (z.relu() * (z > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(sae.reconstruct(X), expected, **CLOSE)


# --- the others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(transcode, tmp_path):
    t = {"encoder.weight": draw(H, D), "encoder.bias": draw(H), "W_dec": draw(H, D, seed=2), "b_dec": draw(D)}
    if transcode:
        t["W_skip"] = draw(D, D)
    # num_latents of 0 means expansion_factor times the width: the tensors tell
    config = {"num_latents": 0, "expansion_factor": 9, "k": 3, "transcode": transcode, "d_in": D}
    x = X if transcode else X - t["b_dec"]
    expected = top(x @ t["encoder.weight"].T + t["encoder.bias"], 3) @ t["W_dec"] + t["b_dec"]
    if transcode:
        expected = expected + X @ t["W_skip"].T
    sae = read(save(tmp_path, "sparsify", t, config))
    torch.testing.assert_close(sae.reconstruct(X), expected, **CLOSE)
    with pytest.raises(FormatError, match="activation 'groupmax' is not supported"):
        read(save(tmp_path, "sparsify", t, config | {"activation": "groupmax"}))


def dictionary(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """A class's tensors, and its reconstruction of X."""
    linear = {"encoder.weight": draw(H, D), "encoder.bias": draw(H), "decoder.weight": draw(D, H)}
    matrices = {"W_enc": draw(D, H), "b_enc": draw(H), "W_dec": draw(H, D), "b_dec": draw(D)}
    b = draw(D)
    z = lambda x: x @ linear["encoder.weight"].T + linear["encoder.bias"]  # noqa: E731
    back = lambda f: f @ linear["decoder.weight"].T  # noqa: E731
    k, threshold = torch.tensor(3, dtype=torch.int), torch.tensor(0.3)
    if name == "AutoEncoder":
        return linear | {"bias": b}, back(z(X - b).relu()) + b
    if name == "AutoEncoderNew":
        return linear | {"decoder.bias": b}, back(z(X).relu()) + b
    if name == "AutoEncoderTopK":
        own = {"b_dec": b, "k": k, "threshold": torch.tensor(-1.0)}
        return linear | own, back(top(z(X - b), 3)) + b
    if name == "BatchTopKSAE":
        f = z(X - b).relu()
        return linear | {"b_dec": b, "k": k, "threshold": threshold}, back(f * (f > threshold)) + b
    if name == "JumpReluAutoEncoder":
        f = X @ matrices["W_enc"] + matrices["b_enc"]
        t = draw(H, seed=5)
        f = (f * (f > t)).relu()
        return matrices | {"threshold": t}, f @ matrices["W_dec"] + b
    if name == "MatryoshkaBatchTopKSAE":
        f = ((X - b) @ matrices["W_enc"] + matrices["b_enc"]).relu()
        own = {"k": k, "threshold": threshold, "group_sizes": torch.tensor([5, 15])}
        return matrices | own, (f * (f > threshold)) @ matrices["W_dec"] + b
    own = {
        "decoder_bias": b,
        "r_mag": draw(H, seed=6),
        "gate_bias": draw(H, seed=7),
        "mag_bias": draw(H, seed=8),
    }
    u = (X - b) @ linear["encoder.weight"].T
    f = (u + own["gate_bias"] > 0) * (own["r_mag"].exp() * u + own["mag_bias"]).relu()
    del linear["encoder.bias"]
    return linear | own, back(f) + b


@pytest.mark.parametrize("name", FORMATS["dictionary_learning"]._CLASSES)
def test_dictionary_learning(name, tmp_path):
    tensors, expected = dictionary(name)
    save(tmp_path, "dictionary_learning", tensors, {"trainer": {"dict_class": name, "k": 3}, "buffer": {}})
    sae = read(tmp_path).eval()
    torch.testing.assert_close(sae.reconstruct(X), expected, **CLOSE)
    if "Matryoshka" in name:
        assert sae.options.matryoshka.widths == (5, 20)


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai(activation, tmp_path):
    t: dict[str, Any] = {
        "pre_bias": draw(D),
        "encoder.weight": draw(H, D),
        "latent_bias": draw(H),
        "decoder.weight": draw(D, H),
        "stats_last_nonzero": torch.zeros(H, dtype=torch.long),
        "activation": activation,
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }
    mean, std = (X.mean(1, keepdim=True), X.std(1, keepdim=True)) if activation == "TopK" else (0.0, 1.0)
    x = (X - mean) / (std + 1e-5) if activation == "TopK" else X
    z = (x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    code = top(z, 3) if activation == "TopK" else z.relu()
    expected = (code @ t["decoder.weight"].T + t["pre_bias"]) * std + mean
    torch.testing.assert_close(read(save(tmp_path, "openai", t, {})).reconstruct(X), expected, **CLOSE)


def test_gemma_scope(tmp_path):
    t = {
        "W_enc": draw(D, H),
        "W_dec": draw(H, D),
        "b_enc": draw(H),
        "b_dec": draw(D),
        "threshold": draw(H).abs(),
    }
    np.savez(tmp_path / "params.npz", **{name: value.numpy() for name, value in t.items()})
    z = X @ t["W_enc"] + t["b_enc"]
    expected = ((z > t["threshold"]) * z.relu()) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(read(tmp_path).reconstruct(X), expected, **CLOSE)
    with pytest.raises(ValueError, match="format: 'gemma_scope' is not one of"):
        write(make("jump_relu"), tmp_path, "gemma_scope")


# --- files that cannot be used --------------------------------------------------------------------------


class Command:
    """Would run a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("format", ["dictionary_learning", "openai"])
def test_nothing_is_executed(format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, format, {"encoder.weight": Command()}, {"trainer": {"dict_class": "AutoEncoder"}})
    with pytest.raises(FormatError, match="could not be read without executing code"):
        read(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Command()], dtype=object))
    with pytest.raises(FormatError, match="could not be read as npz"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": draw(H - 1, D)}, r"expected decoder.weight of shape \[20, 6\], got \[19, 6\]"),
        ({"b_enc": draw(H + 1)}, r"expected encoder.bias of shape \[20\], got \[21\]"),
        ({"W_enc": draw(D)}, "expected 'W_enc' to be a matrix"),
        ({"W_dec": None}, "expected a tensor 'W_dec'"),
        ({"W_skip": draw(D, H)}, r"expected skip of shape \[6, 6\]"),
    ],
)
def test_tensors_are_checked(change, message, tmp_path):
    t, config = saelens(architecture="topk", k=3)
    t = {name: value for name, value in (t | change).items() if value is not None}
    with pytest.raises(FormatError, match=message):
        read(save(tmp_path, "saelens", t, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "topk"}, "does not say 'k'"),
        ({"architecture": "topk", "k": 21}, "expected k of at most 20 latents"),
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it first"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z' is not supported"),
    ],
)
def test_settings_are_checked(config, message, tmp_path):
    t, own = saelens()
    with pytest.raises(FormatError, match=message):
        read(save(tmp_path, "saelens", t, own | config))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FormatError, match="no such file or folder"):
        read(tmp_path / "nothing")
    with pytest.raises(FormatError, match="no sparse autoencoder found"):
        read(tmp_path)
    with pytest.raises(FormatError, match="no such file, which the openai format needs"):
        read(tmp_path, "openai")
    with pytest.raises(ValueError, match="format: 'tensorflow' is not one of auto"):
        read(tmp_path, "tensorflow")
    (tmp_path / "sae.safetensors").write_bytes(b"not a file of tensors")
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(FormatError, match="could not be read as safetensors"):
        read(tmp_path)
