"""Activations of modules as rows: of all positions or those of a mask, in memory or as shards."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastae.train import Shards, collect


class Output(NamedTuple):
    hidden: Tensor
    attention: Tensor | None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Output:
        return Output(x + self.drop(self.linear(x)), None)


class Model(nn.Module):
    """Sequences of tokens [B, S] to [B, S, 6], by two blocks and a norm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, 6), nn.ModuleList([Block(), Block()])
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x).hidden
        self.calls += 1
        return {"last": self.norm(x.flatten(0, 1)).view_as(x)}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = Model()
    model.blocks[1].eval()  # a mixture of modes
    return model


def tokens(rows: int) -> Tensor:
    return torch.arange(rows * 5).view(rows, 5) % 9


def expected(model: Model, batches: list[Tensor], depth: int) -> Tensor:
    rows = []
    for batch in batches:
        x = model.embed(batch)
        for block in list(model.blocks)[:depth]:
            assert isinstance(block, Block)
            x = x + block.linear(x)
        rows.append(x.flatten(0, 1))
    return torch.cat(rows).detach()


BATCHES = [tokens(4), tokens(3)]


def test_several_modules_are_collected_at_once(model):
    found = collect(model, ["blocks.0", model.blocks[1], "embed", ""], BATCHES)
    assert list(found) == ["blocks.0", "blocks.1", "embed", ""]
    for name, depth in (("embed", 0), ("blocks.0", 1), ("blocks.1", 2)):
        rows = found[name]
        assert isinstance(rows, Tensor)
        torch.testing.assert_close(rows, expected(model, BATCHES, depth))
    assert found[""].shape == (35, 6)


def test_the_model_is_left_as_it_was(model):
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    collect(model, "blocks.0", BATCHES)
    with pytest.raises(ValueError, match="boom"):
        collect(model, "blocks.0", BATCHES, mask=lambda batch: (_ for _ in ()).throw(ValueError("boom")))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("by_name", [True, False])
def test_masked_positions_are_left_out(model, by_name):
    keep = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    batch = {"tokens": BATCHES[0], "attention_mask": keep.long()}
    mask = "attention_mask" if by_name else lambda batch: batch["attention_mask"]
    rows = collect(model, "blocks.0", [batch], mask=mask)["blocks.0"]
    assert isinstance(rows, Tensor)
    torch.testing.assert_close(rows, expected(model, BATCHES[:1], 1)[keep.flatten()])


def test_a_pass_stops_after_the_last_module(model):
    whole = collect(model, ["blocks.0"], BATCHES)["blocks.0"]
    assert model.calls == 2
    stopped = collect(model, ["blocks.0"], BATCHES, stop=True)["blocks.0"]
    assert model.calls == 2 and isinstance(whole, Tensor) and isinstance(stopped, Tensor)
    assert torch.equal(whole, stopped)


def test_shards_hold_the_same_rows(model, tmp_path):
    options = {"dtype": torch.bfloat16, "rows_per_shard": 16, "metadata": {"model": "tiny"}}
    found = collect(model, ["blocks.0", "blocks.1"], BATCHES, out=tmp_path, **options)
    memory = collect(model, ["blocks.0", "blocks.1"], BATCHES, dtype=torch.bfloat16)
    for name, shards in found.items():
        assert isinstance(shards, Shards) and len(shards.files) == 3 and shards.kind == "bfloat16"
        assert shards.metadata == {"model": "tiny", "module": name} and shards.path == tmp_path / name
        assert torch.equal(torch.from_numpy(shards[:]).bfloat16(), memory[name])


@pytest.mark.parametrize(
    "modules, mask, words",
    [
        ("blocks.7", None, ["modules", "blocks.7", "embed"]),
        (nn.Linear(2, 2), None, ["modules", "Linear"]),
        ([], None, ["modules", "at least one"]),
        ("blocks.0", lambda batch: torch.ones(2, 2), ["mask", "[4, 5]", "[2, 2]"]),
    ],
)
def test_collect_refuses(modules, mask, words, model):
    with pytest.raises(ValueError) as caught:
        collect(model, modules, BATCHES, mask=mask)
    assert all(word in str(caught.value) for word in words)
