"""Sparsity rules and options as text and as JSON, and their refusals."""

from __future__ import annotations

import json

import pytest

from fastae import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, TopK
from fastae.sparse import ReLU, SparseOptions, parse_sparsity

RULES = {
    "topk:32": TopK(32),
    "batch_topk:32": BatchTopK(32),
    "batch_topk:0.5:0.9": BatchTopK(0.5, 0.9),
    "jump_relu:0.001": JumpReLU(),
    "jump_relu:0.2": JumpReLU(0.2),
    "jump_relu:0.001:0.001:rectangle:True": JumpReLU(to_input=True),
    "gated": Gated(),
    "relu": ReLU(),
}


@pytest.mark.parametrize("text", RULES)
def test_rules_are_their_text(text):
    assert parse_sparsity(text) == RULES[text]
    assert parse_sparsity(str(RULES[text])) == RULES[text]
    assert parse_sparsity(RULES[text]) is RULES[text]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_sparsity("top:3"), "'top:3' is not one of topk, batch_topk"),
        (lambda: parse_sparsity("topk"), "'topk' is not a rule"),
        (lambda: parse_sparsity("topk:many"), "'topk:many' is not a rule"),
        (lambda: parse_sparsity("topk:1:2"), "has 2 numbers; topk takes k"),
        (lambda: parse_sparsity("jump_relu:1:1:rectangle:maybe"), "neither true nor false"),
        (lambda: parse_sparsity(3), "expected a sparsity rule or its text, got int"),
        (lambda: TopK(0), "TopK: k must be a whole number >= 1, got 0"),
        (lambda: TopK(2.5), "TopK: k"),
        (lambda: BatchTopK(0.0), "BatchTopK: k must be"),
        (lambda: BatchTopK(2, 1.0), "momentum must be in"),
        (lambda: JumpReLU(-1.0), "JumpReLU: threshold"),
        (lambda: JumpReLU(bandwidth=0.0), "JumpReLU: bandwidth"),
        (lambda: JumpReLU(kernel="cosine"), "kernel: 'cosine' is not one of rectangle, triangle"),
        (lambda: AuxK(weight=-1.0), "AuxK: weight"),
        (lambda: AuxK(k=0), "AuxK: k"),
        (lambda: AuxK(dead_after=0), "AuxK: dead_after"),
        (lambda: AuxK(normalize="both"), "normalize: 'both' is not one of"),
        (lambda: Matryoshka((4, 4)), "widths must rise"),
        (lambda: Matryoshka(()), "widths must rise"),
        (lambda: Matryoshka((2, 4), (1.0,)), "got 1 weights for 2 widths"),
        (lambda: SparseOptions(l0=1.0), "l0: needs a jump_relu activation, got topk:32"),
        (lambda: SparseOptions(l0_target=0.0), "l0_target"),
        (lambda: SparseOptions(auxk=3), "auxk: expected AuxK or None, got int"),
        (lambda: SparseOptions(normalization="batch"), "normalization: 'batch'"),
    ],
)
def test_refusals_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_survive_json():
    options = SparseOptions(
        activation=JumpReLU(0.1, to_input=True),
        auxk=AuxK(k=3, normalize="target"),
        matryoshka=Matryoshka((4, 8), (1.0, 0.5)),
        l0=2.0,
        l0_target=20.0,
        skip=True,
        normalization="norm",
    )
    assert SparseOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert SparseOptions.from_dict(json.loads(json.dumps(SparseOptions().to_dict()))) == SparseOptions()
