"""Random calls of every operation, forward and backward, against the reference in float64.

Fresh memory holds NaN (conftest.py).
"""

from __future__ import annotations

import random

import pytest

from tests.scan.random_calls import OPERATIONS, random_inputs
from tests.scan.selective.cases import TOLERANCE, assert_close_to_reference
from tread_ssm.scan.compiled import DTYPES
from tread_ssm.scan.selective import cpu

COMPILED = cpu.library() is not None
PLAIN = {"scan": "chunked", "conv": "chunked", "ssd": "matmul", "gate": "reference"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("seed", range(40))
def test_a_random_call_is_what_the_reference_gives(operation: str, seed: int) -> None:
    choose = random.Random(seed)
    compiled = COMPILED and choose.random() < 0.6
    dtype = choose.choice(DTYPES if compiled else tuple(TOLERANCE))
    assert_close_to_reference(
        OPERATIONS[operation][0],
        random_inputs(operation, dtype, seed),
        "cpu" if compiled else PLAIN[operation],
        TOLERANCE[dtype],
    )
