"""The specification itself: gradients, and the identities that define orders, subsets and gaps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.scan.selective.cases import (
    ConvCase,
    ScanCase,
    conv_inputs,
    run_with_gradients,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.order import ORDER_NAMES, rank_table

SMALL = dict(length=6, dim=3, state=2)
PER_TOKEN = ("u", "delta", "B", "C", "z")


def scan(**kwargs):
    return selective_scan(**kwargs, backend="reference")


def conv(**kwargs):
    return causal_conv(**kwargs, backend="reference")


def gradcheck(function, inputs):
    leaves = {
        k: v.requires_grad_()
        for k, v in inputs.items()
        if isinstance(v, torch.Tensor) and v.is_floating_point()
    }

    def call(*values):
        return function(**{**inputs, **dict(zip(leaves, values, strict=True))})

    return torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize(
    "case",
    [
        ScanCase("plain", **SMALL),
        ScanCase("bare", **SMALL, skip=False, gate=False, bias=False, softplus=False),
        ScanCase("subset_gap", **SMALL, visits=4, per_sample=True, gap=True),
    ],
    ids=str,
)
def test_gradients_of_the_scan_are_numerically_right(case):
    assert gradcheck(scan, scan_inputs(case, torch.float64))


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_gradients_of_the_convolution_are_numerically_right(gap, activation):
    case = ConvCase("c", length=7, dim=2, visits=5, gap=gap, activation=activation, width=3)
    assert gradcheck(conv, conv_inputs(case, torch.float64))


def test_the_scan_is_the_recurrence_written_out():
    x = scan_inputs(ScanCase("plain", batch=1, length=5, dim=1, state=1), torch.float64)
    h, expected = 0.0, []
    for k in range(5):
        dt = F.softplus(x["delta"][0, k, 0] + x["delta_bias"][0])
        h = torch.exp(dt * x["A"][0, 0]) * h + dt * x["B"][0, k, 0] * x["u"][0, k, 0]
        y = x["C"][0, k, 0] * h + x["D"][0] * x["u"][0, k, 0]
        expected.append(y * F.silu(x["z"][0, k, 0]))
    assert_close(scan(**x)[0, :, 0], torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_without_an_order_the_convolution_is_torchs():
    x = conv_inputs(ConvCase("c", width=4), torch.float64)
    rows = F.pad(x["x"].transpose(1, 2), (3, 0))
    want = F.silu(F.conv1d(rows, x["weight"].unsqueeze(1), x["bias"], groups=x["x"].shape[2]))
    assert_close(conv(**x), want.transpose(1, 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_a_subset_equals_the_full_scan_with_dt_zero_at_the_dropped_tokens(name):
    grid = (5, 4)
    # exactly, so without the gate: torch's SiLU rounds differently at different addresses
    case = ScanCase("c", length=20, dim=3, softplus=False, bias=False, gate=False)
    x = scan_inputs(case, torch.float64)
    g = torch.Generator().manual_seed(3)
    kept = torch.rand(2, 20, generator=g).argsort(1)[:, :11]
    rank = rank_table(name, grid)
    order = kept.gather(1, rank[kept].argsort(1))
    mask = torch.zeros(2, 20, dtype=torch.float64).scatter_(1, kept, 1.0).unsqueeze(-1)
    full = scan(**{**x, "delta": x["delta"] * mask, "order": rank.argsort()})
    assert torch.equal(scan(**{**x, "order": order}), full * mask)


def by_hand(order, **x):
    """Gather by the order, scan the row as it stands, scatter back."""
    index = order.unsqueeze(-1)

    def take(t):
        return t.gather(1, index.expand(-1, -1, t.shape[2]))

    moved = {k: take(v) if k in (*PER_TOKEN, "x") else v for k, v in x.items()}
    y = scan(**moved) if "u" in x else conv(**moved)
    like = x["u"] if "u" in x else x["x"]
    return torch.zeros_like(like).scatter(1, index.expand_as(y), y)


@pytest.mark.parametrize("visits", [20, 9])
def test_an_order_equals_gather_scan_scatter(visits):
    x = scan_inputs(
        ScanCase("c", length=20, dim=3, visits=visits, per_sample=True, gap=True), torch.float64
    )
    got, want = run_with_gradients(scan, x), run_with_gradients(by_hand, x)
    for name in want:
        assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


def test_an_ordered_convolution_equals_gather_convolve_scatter():
    x = conv_inputs(ConvCase("c", length=20, visits=9, per_sample=True), torch.float64)
    got, want = run_with_gradients(conv, x), run_with_gradients(by_hand, x)
    for name in want:
        assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


def test_a_gap_decays_like_empty_visits():
    """A gap of g with the decay of its own dt equals g tokens before it with that dt, no input."""
    x = scan_inputs(ScanCase("c", batch=1, length=3, dim=2, gate=False), torch.float64)
    got = scan(**{**x, "gap": torch.tensor([0, 2, 1])})
    stretched = [0, 1, 1, 1, 2, 2]  # two empty copies before token 1, one before token 2
    real = torch.tensor([0, 3, 5])
    full = {k: v[:, stretched] if k in PER_TOKEN and v is not None else v for k, v in x.items()}
    is_real = torch.zeros(6, dtype=torch.bool).index_fill_(0, real, True)
    full["B"] = full["B"] * is_real.view(1, 6, 1)
    assert_close(got, scan(**{**full, "gap": None})[:, real], rtol=1e-12, atol=1e-14)


def test_true_distance_reads_zero_where_the_neighbour_is_missing():
    """Over a subset with gaps it equals the full convolution of the row with zeros filled in."""
    x = conv_inputs(ConvCase("c", batch=1, length=12, width=4), torch.float64)
    kept = torch.tensor([1, 2, 5, 6, 7, 11])
    gap = torch.diff(kept, prepend=torch.tensor([-1])) - 1
    mask = torch.zeros(12, dtype=torch.float64).index_fill_(0, kept, 1.0).view(1, 12, 1)
    full = conv(**{**x, "x": x["x"] * mask}) * mask
    assert_close(conv(**{**x, "order": kept, "gap": gap}), full, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", [[0, 1, 5], [-1, 0, 1], [0, 1, 1]])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_bad_positions_are_refused(order, backend):
    x = scan_inputs(ScanCase("c", length=5, dim=2, state=2), torch.float32)
    with pytest.raises(ValueError, match=r"order: (positions run from|a position is visited)"):
        selective_scan(**{**x, "order": torch.tensor(order)}, backend=backend)
