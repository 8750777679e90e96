"""Every test of the operators finds fresh memory full of NaN: luck must not hide a gap."""

from collections.abc import Iterator

import pytest

from tests.scan.selective.cases import poisoned_memory


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield
