"""The recurrence against the sums of its definition, and what it promises of subsets and gaps."""

from __future__ import annotations

import pytest
import torch

from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import relative_rms, run_with_gradients
from tread_ssm.scan import ssd

SUBSET = SSDCase("s", length=40, visits=23, per_sample=True, groups=2, heads=4)


def as_sums(q, k, v, log_decay, order, gap, scale=None, diagonal=None):
    """y_i = sum over j not after i of (q_i . k_j) exp(c_i - c_j) scale_j v_j + diagonal_i v_i, per
    sample and head."""
    batch, length, heads, _ = v.shape
    per_group = heads // q.shape[2]
    y = []
    for b in range(batch):
        visit = torch.arange(length) if order is None else order.expand(batch, -1)[b]
        stretch = 1 + (torch.zeros_like(visit) if gap is None else gap.expand(batch, -1)[b])
        of_heads = []
        for h in range(heads):
            c = (log_decay[b, visit, h] * stretch).cumsum(0)
            decay = (c[:, None] - c[None, :]).tril().exp().tril()
            scores = q[b, visit, h // per_group] @ k[b, visit, h // per_group].T
            if scale is not None:
                decay = decay * scale[b, visit, h]
            rows = (scores * decay) @ v[b, visit, h]
            if diagonal is not None:
                rows = rows + diagonal[b, visit, h, None] * v[b, visit, h]
            of_heads.append(torch.zeros_like(v[b, :, h]).index_copy(0, visit, rows))
        y.append(torch.stack(of_heads, 1))
    return torch.stack(y)


@pytest.mark.parametrize(
    "case",
    [
        SSDCase("plain", length=20),
        SSDCase("near_0", length=20, decay="near_0"),
        SSDCase("shared", length=20, visits=11, groups=3, heads=6),
        SSDCase("gap", length=20, visits=11, per_sample=True, gap=True),
        SSDCase("one", length=20, visits=1),
        SSDCase("terms", length=20, visits=11, per_sample=True, gap=True, terms=True),
    ],
    ids=str,
)
def test_the_recurrence_is_the_sum_of_its_definition(case):
    inputs = ssd_inputs(case, torch.float64)
    got = run_with_gradients(ssd, inputs, backend="reference")
    want = run_with_gradients(as_sums, inputs)
    for name in want:
        assert relative_rms(got[name], want[name]) < 1e-12, name


@pytest.mark.parametrize("backend", ["reference", "matmul"])
def test_a_subset_is_the_full_product_without_the_dropped_tokens(backend):
    """Dropped tokens have k = 0 and log_decay = 0 in the full product, along the same order."""
    x = ssd_inputs(SUBSET, torch.float64)
    ranked = [[*row, *(set(range(SUBSET.length)) - set(row))] for row in x["order"].tolist()]
    full_order = torch.tensor(ranked)
    # any interleaving keeps the kept tokens' order: put every dropped token at a random place
    shuffle = torch.rand(full_order.shape, generator=torch.Generator().manual_seed(3))
    shuffle[:, : SUBSET.visits] = shuffle[:, : SUBSET.visits].sort(1).values
    full_order = full_order.gather(1, shuffle.argsort(1))
    kept = torch.zeros(SUBSET.batch, SUBSET.length, dtype=torch.bool).scatter_(1, x["order"], True)
    kept = kept[:, :, None]

    def without_the_dropped(q, k, v, log_decay):
        k, log_decay = k * kept[..., None], log_decay * kept
        return ssd(q, k, v, log_decay, full_order, backend=backend) * kept[..., None]

    floats = {name: x[name] for name in ("q", "k", "v", "log_decay")}
    got = run_with_gradients(ssd, x, backend=backend)
    want = run_with_gradients(without_the_dropped, floats)
    for name in want:
        assert relative_rms(got[name], want[name]) < 1e-12, name


@pytest.mark.parametrize("backend", ["reference", "matmul"])
def test_a_gap_is_so_many_empty_tokens_of_the_same_decay(backend):
    g = torch.Generator().manual_seed(0)
    gap = torch.tensor([0, 2, 0, 1, 3])
    x = ssd_inputs(SSDCase("g", length=5), torch.float64)
    place = (gap + 1).cumsum(0) - 1
    length = int(place[-1]) + 1
    long = {
        name: torch.randn(2, length, *x[name].shape[2:], generator=g, dtype=torch.float64)
        for name in ("q", "v")
    }
    long["k"] = torch.zeros(2, length, *x["k"].shape[2:], dtype=torch.float64)
    for name in ("q", "k", "v"):
        long[name][:, place] = x[name]
    log_decay = x["log_decay"].repeat_interleave(gap + 1, 1)
    want = ssd(**long, log_decay=log_decay, backend=backend)[:, place]
    got = ssd(**{**x, "gap": gap}, backend=backend)
    assert relative_rms(got, want) < 1e-13


def test_dropped_tokens_are_zero_and_receive_no_gradient():
    x = ssd_inputs(SUBSET, torch.float64)
    dropped = torch.ones(SUBSET.batch, SUBSET.length, dtype=torch.bool)
    dropped.scatter_(1, x["order"], False)
    for backend in ("reference", "matmul"):
        for name, value in run_with_gradients(ssd, x, backend=backend).items():
            assert not value[dropped].any(), (backend, name)
            assert value[~dropped].any(), (backend, name)
