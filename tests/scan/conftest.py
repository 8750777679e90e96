"""Every test of the operators finds fresh memory full of NaN: luck must not hide a gap."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.scan.selective.cases import poisoned_memory


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
