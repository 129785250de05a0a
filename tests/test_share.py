"""Parts of a batch: every row once, and noise and draws that are those of the whole batch."""

from __future__ import annotations

import pytest
import torch

from fastae import Gaussian, Masking, functional
from fastae.share import Share, current_share, part_of, sharing


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 11, 64])
def test_parts_cover_a_batch_once(total, size):
    shares = [Share(total, rank, size) for rank in range(size)]
    counted = [list(range(total))[share.first : share.first + share.rows] for share in shares]
    assert [row for part in counted for row in part] == list(range(total))
    assert max(map(len, counted)) - min(map(len, counted)) <= 1
    assert sum(share.weight for share in shares) == pytest.approx(1.0)
    for share, part in zip(shares, counted, strict=True):
        taken = list(range(total))[part_of(total, share.rank, size)]
        assert taken == (part or [share.first])


@pytest.mark.parametrize("corruption", [Masking(0.3), Gaussian(0.2)])
def test_a_part_draws_what_the_whole_batch_draws(corruption):
    x = torch.rand(10, 33)
    torch.manual_seed(1)
    whole = functional.corrupt(x, corruption)
    for rank in range(3):
        share = Share(10, rank, 3)
        torch.manual_seed(1)
        with sharing(share):
            assert current_share() is share
            part = functional.corrupt(x[part_of(10, rank, 3)], corruption)
        assert torch.equal(part, whole[part_of(10, rank, 3)])
    assert current_share() is None
