"""Random calls of every operation, forward and backward, against the reference in float64.

The shapes, dtypes, optional arguments, orders, gaps and memory layouts are drawn; fresh memory
holds NaN (conftest.py). Every seed is one call, so that a failure is run again by its number.
"""

from __future__ import annotations

import random

import pytest
import torch

from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import (
    TOLERANCE,
    ConvCase,
    ScanCase,
    assert_close_to_reference,
    conv_inputs,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, selective_scan, ssd
from tread_ssm.scan.selective import cpu

COMPILED = cpu.library() is not None


def laid_out(x, choose):
    """The same values with another layout: as they are, transposed in memory, or every other."""
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        return x
    layout = choose.choice(("contiguous", "transposed", "strided"))
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x


def backend_and_dtype(choose, fallback):
    """A backend that is tested here, and a dtype that it takes."""
    if COMPILED and choose.random() < 0.6:
        return "cpu", choose.choice((torch.float32, torch.bfloat16, torch.float16))
    return fallback, choose.choice(tuple(TOLERANCE))


def tokens(choose):
    """Sizes, order and gap, as the cases of every operation have them."""
    length = choose.choice((1, 2, 5, 16, 33, 63, 64, 65, 100))
    visits = choose.choice((None, 1, length, choose.randint(1, length)))
    return {
        "batch": choose.randint(1, 3),
        "length": length,
        "visits": visits,
        "per_sample": visits is not None and choose.random() < 0.5,
        "gap": choose.random() < 0.5,
    }


def channels(choose):
    return choose.choice((1, 3, 7, 8, 15, 16, 17, 40))


@pytest.mark.parametrize("seed", range(40))
def test_scan(seed):
    choose = random.Random(seed)
    backend, dtype = backend_and_dtype(choose, "chunked")
    case = ScanCase(
        f"seed {seed}",
        **tokens(choose),
        dim=channels(choose),
        state=choose.choice((1, 3, 4, 8, 9, 16, 17)),
        **{name: choose.random() < 0.7 for name in ("skip", "gate", "bias", "softplus")},
        a_max=choose.choice((1.0, 16.0, 64.0)),
    )
    inputs = scan_inputs(case, dtype, seed=seed)
    inputs = {name: laid_out(x, choose) for name, x in inputs.items()}
    assert_close_to_reference(selective_scan, inputs, backend, TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(40))
def test_conv(seed):
    choose = random.Random(seed)
    backend, dtype = backend_and_dtype(choose, "chunked")
    case = ConvCase(
        f"seed {seed}",
        **tokens(choose),
        dim=channels(choose),
        width=choose.choice((2, 3, 4)),
        **{name: choose.random() < 0.7 for name in ("bias", "activation")},
    )
    inputs = conv_inputs(case, dtype, seed=seed)
    inputs = {name: laid_out(x, choose) for name, x in inputs.items()}
    assert_close_to_reference(causal_conv, inputs, backend, TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(40))
def test_ssd(seed):
    choose = random.Random(seed)
    backend, dtype = backend_and_dtype(choose, "matmul")
    groups = choose.choice((1, 2, 3))
    case = SSDCase(
        f"seed {seed}",
        **tokens(choose),
        groups=groups,
        heads=groups * choose.choice((1, 2, 3)),
        states=choose.choice((1, 5, 16, 17)),
        channels=channels(choose),
        decay=choose.choice(("usual", "near_0", "strong", "mixed")),
    )
    inputs = ssd_inputs(case, dtype, seed=seed)
    inputs = {name: laid_out(x, choose) for name, x in inputs.items()}
    assert_close_to_reference(ssd, inputs, backend, TOLERANCE[dtype])
