"""Random calls of every operation: shapes, dtypes, optional arguments, orders, gaps, layouts.

A seed is one call, so that a failure is run again by its number. `python -m
tests.scan.random_calls 300` runs so many of each with the compiled kernels, forward and backward.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import (
    ConvCase,
    ScanCase,
    conv_inputs,
    run_with_gradients,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, gated_norm, selective_scan, ssd
from tread_ssm.scan.compiled import DTYPES

Inputs = dict[str, Any]


def random_inputs(operation: str, dtype: torch.dtype, seed: int) -> Inputs:
    """Keyword arguments of one call of an operation, a name in OPERATIONS."""
    choose = random.Random(seed)
    inputs = OPERATIONS[operation][1](choose, dtype, seed)
    return {name: _laid_out(x, choose) for name, x in inputs.items()}


def _laid_out(x: Any, choose: random.Random) -> Any:
    """The same values with another layout: as they are, transposed in memory, or every other."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x
    layout = choose.choice(("contiguous", "transposed", "strided"))
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x


def _tokens(choose: random.Random) -> dict[str, Any]:
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


def _channels(choose: random.Random) -> int:
    return choose.choice((1, 3, 7, 8, 15, 16, 17, 40))


def _scan(choose: random.Random, dtype: torch.dtype, seed: int) -> Inputs:
    case = ScanCase(
        f"seed {seed}",
        **_tokens(choose),
        dim=_channels(choose),
        state=choose.choice((1, 3, 4, 8, 9, 16, 17)),
        **{name: choose.random() < 0.7 for name in ("skip", "gate", "bias", "softplus")},
        a_max=choose.choice((1.0, 16.0, 64.0)),
    )
    return scan_inputs(case, dtype, seed=seed)


def _conv(choose: random.Random, dtype: torch.dtype, seed: int) -> Inputs:
    case = ConvCase(
        f"seed {seed}",
        **_tokens(choose),
        dim=_channels(choose),
        width=choose.choice((2, 3, 4)),
        **{name: choose.random() < 0.7 for name in ("bias", "activation")},
    )
    return conv_inputs(case, dtype, seed=seed)


def _ssd(choose: random.Random, dtype: torch.dtype, seed: int) -> Inputs:
    groups = choose.choice((1, 2, 3))
    case = SSDCase(
        f"seed {seed}",
        **_tokens(choose),
        groups=groups,
        heads=groups * choose.choice((1, 2, 3)),
        states=choose.choice((1, 5, 16, 17)),
        channels=_channels(choose),
        decay=choose.choice(("usual", "near_0", "strong", "mixed")),
        terms=choose.random() < 0.5,
    )
    return ssd_inputs(case, dtype, seed=seed)


def gate(u: Tensor, z: Tensor, weight: Tensor | None, groups: int, **options: Any) -> Tensor:
    """gated_norm; its argument y is called u here, because y is what comes out."""
    return gated_norm(u, z, weight, groups, **options)


def _gate(choose: random.Random, dtype: torch.dtype, seed: int) -> Inputs:
    groups, weight = choose.choice((1, 2, 3)), choose.random() < 0.7
    shape = (choose.randint(1, 3), choose.choice((1, 2, 5, 33)), groups * (_channels(choose) + 2))
    g = torch.Generator().manual_seed(seed)
    u, z = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    w = torch.rand(shape[-1], generator=g).to(wide) if weight else None
    return {"u": u, "z": z, "weight": w, "groups": groups}


OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Inputs]]] = {
    "scan": (selective_scan, _scan),
    "conv": (causal_conv, _conv),
    "ssd": (ssd, _ssd),
    "gate": (gate, _gate),
}


def main(count: int) -> None:
    """`count` calls of each operation by the compiled kernels."""
    for operation, (function, _) in OPERATIONS.items():
        for seed in range(count):
            inputs = random_inputs(operation, DTYPES[seed % len(DTYPES)], seed)
            got = run_with_gradients(function, inputs, backend="cpu")
            assert all(bool(x.isfinite().all()) for x in got.values()), (operation, seed)
        print(f"{count} calls of {operation}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
