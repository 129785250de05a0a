"""Groups of two and of four processes, each started once."""

import pytest
import torch

from tests.distributed.group import Group


def _group(size: int, patch: pytest.MonkeyPatch) -> Group:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    patch.setenv("OMP_NUM_THREADS", "1")
    return Group(size)


@pytest.fixture(scope="session")
def two():
    with pytest.MonkeyPatch.context() as patch:
        group = _group(2, patch)
        yield group
        group.close()


@pytest.fixture(scope="session")
def four():
    with pytest.MonkeyPatch.context() as patch:
        group = _group(4, patch)
        yield group
        group.close()
