"""The cases that every backend of the decayed product must pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tests.scan.selective.cases import (
    TOLERANCE,
    assert_close_to_reference,
    make_gap,
    make_order,
)
from tread_ssm.scan import ssd


@dataclass(frozen=True)
class SSDCase:
    """One decayed product; `visits` is K, the number of visited positions (None: no order).

    `terms`: with scale and diagonal, some of which are zero.

    Log decays: "usual" spreads from -0.001 to -10, "near_0" is about -1e-5, "strong" is -50, and
    "mixed" has -50 at half of the places and the usual ones elsewhere.
    """

    name: str
    batch: int = 2
    length: int = 63
    groups: int = 1
    heads: int = 3
    states: int = 16
    channels: int = 8
    visits: int | None = None
    per_sample: bool = False
    gap: bool = False
    terms: bool = False
    decay: Literal["usual", "near_0", "strong", "mixed"] = "usual"

    def __str__(self) -> str:
        return self.name


CASES = (
    SSDCase("plain"),
    SSDCase("length_1", length=1),
    SSDCase("length_64", length=64),
    SSDCase("length_65", length=65),
    SSDCase("length_238", length=238),
    SSDCase("length_500", length=500, batch=1),
    SSDCase("groups", groups=2, heads=6, length=70),
    SSDCase("a_group_a_head", groups=3, heads=3, length=70),
    SSDCase("one_head", heads=1, length=70),
    SSDCase("states_1", states=1),
    SSDCase("states_5_channels_3", states=5, channels=3, length=70),
    SSDCase("states_40_channels_33", states=40, channels=33, length=70),
    SSDCase("as_in_mamba_2", states=128, channels=64, length=70, batch=1),
    SSDCase("order_shared", length=100, visits=100),
    SSDCase("order_per_sample", length=100, visits=100, per_sample=True),
    SSDCase("subset_shared", length=140, visits=71),
    SSDCase("subset_per_sample", length=140, visits=69, per_sample=True),
    SSDCase("subset_one_token", visits=1, per_sample=True),
    SSDCase("subset_238_of_500", length=500, visits=238, per_sample=True),
    SSDCase("gap_shared", length=140, visits=71, gap=True),
    SSDCase("gap_per_sample", length=140, visits=70, per_sample=True, gap=True, groups=2, heads=4),
    SSDCase("gap_without_order", length=70, gap=True),
    SSDCase("terms", terms=True, length=150, groups=2, heads=4),
    SSDCase("terms_subset", length=140, visits=71, per_sample=True, terms=True),
    SSDCase("terms_gap_strong", length=140, visits=70, gap=True, terms=True, decay="mixed"),
    SSDCase("decay_near_0", decay="near_0", length=238),
    SSDCase("decay_strong", decay="strong", length=130),
    SSDCase("decay_mixed", decay="mixed", length=238),
)


def ssd_inputs(
    case: SSDCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor | None]:
    """Keyword arguments of ssd; log_decay stays float32 for 16-bit inputs."""
    g = torch.Generator().manual_seed(seed)
    tokens = (case.batch, case.length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*tokens, *shape, generator=g)

    log_decay = -torch.exp(2 * normal(case.heads) - 2)
    if case.decay == "near_0":
        log_decay = 1e-5 * log_decay
    elif case.decay != "usual":
        share = 1.0 if case.decay == "strong" else 0.5
        log_decay[torch.rand(*tokens, case.heads, generator=g) < share] = -50.0
    order = make_order(*tokens, case.visits, case.per_sample, g)
    gap = make_gap(*tokens, case.visits, case.per_sample, g) if case.gap else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def term(negative: float) -> Tensor | None:
        if not case.terms:
            return None
        x = torch.rand(*tokens, case.heads, generator=g).sub(negative).mul(2)
        return x.masked_fill(x.abs() < 0.1, 0.0).to(device, wide)

    return {
        "q": normal(case.groups, case.states).to(device, dtype),
        "k": normal(case.groups, case.states).to(device, dtype),
        "v": normal(case.heads, case.channels).to(device, dtype),
        "log_decay": log_decay.to(device, wide),
        "order": None if order is None else order.to(device),
        "gap": None if gap is None else gap.to(device),
        "scale": term(0.1),
        "diagonal": term(0.5),
    }


def assert_ssd_matches(
    case: SSDCase,
    dtype: torch.dtype,
    backend: str,
    device: str = "cpu",
    tolerance: float | None = None,
) -> None:
    """Output and all gradients against the recurrence in float64."""
    inputs = ssd_inputs(case, dtype, device)
    assert_close_to_reference(ssd, inputs, backend, tolerance or TOLERANCE[dtype])
