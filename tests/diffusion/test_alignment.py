"""Losses behind a block: their equations, written once more, and what a route hides from them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tread_ssm.diffusion import SRA2, Dispersive, Repa
from tread_ssm.diffusion.alignment import projector
from tread_ssm.diffusion.auxiliary import Seen
from tread_ssm.routing import TokenSubset

B, C, P, ROWS, COLUMNS, D = 4, 3, 2, 3, 5, 6
N, K = ROWS * COLUMNS, 7


def subset() -> TokenSubset:
    rng = torch.Generator().manual_seed(3)
    return TokenSubset.of(torch.rand(B, N, generator=rng).argsort(1)[:, :K], N)


def seen(width: int, kept: TokenSubset | None) -> Seen:
    torch.manual_seed(0)
    x = torch.randn(B, C, P * ROWS, P * COLUMNS, dtype=torch.float64)
    tokens = N if kept is None else kept.n_kept
    features = torch.randn(B, tokens, width, dtype=torch.float64, requires_grad=True)
    return Seen(x, torch.randn_like(x), None, features, kept, P)


@pytest.mark.parametrize("kept", [None, subset()], ids=["all", "routed"])
def test_sra2_is_the_smooth_distance_to_the_patch_at_the_tokens_place(
    kept: TokenSubset | None,
) -> None:
    batch, loss = seen(P * P * C, kept), SRA2(block=1, beta=0.5)
    assert batch.features is not None
    features = batch.features.detach()
    total, count = 0.0, 0
    for b in range(B):
        for k in range(features.shape[1]):
            place = k if kept is None else int(kept.index[b, k])
            row, column = P * (place // COLUMNS), P * (place % COLUMNS)
            for i, (p, q, c) in enumerate(product(range(P), range(P), range(C))):
                apart = abs(float(features[b, k, i] - batch.x[b, c, row + p, column + q]))
                total += apart**2 / (2 * 0.5) if apart < 0.5 else apart - 0.5 / 2
                count += 1
    assert float(loss.loss(batch).detach()) == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("kept", [None, subset()], ids=["all", "routed"])
def test_repa_is_minus_the_cosine_with_the_feature_at_the_tokens_place(
    kept: TokenSubset | None,
) -> None:
    cached = torch.randn(B, N, D, dtype=torch.float64)
    batch = replace(seen(D, kept), cached=cached)
    assert batch.features is not None
    cosines = []
    for b in range(B):
        for k, token in enumerate(batch.features[b].detach()):
            feature = cached[b, k if kept is None else int(kept.index[b, k])]
            cosines.append(token @ feature / token.norm() / feature.norm())
    loss = Repa(block=0, features="", channels=D).loss(batch)
    torch.testing.assert_close(loss.detach(), -torch.stack(cosines).mean())


def distance(batch: Seen, i: int, j: int) -> float:
    """Mean squared difference of the tokens that both samples keep."""
    assert batch.features is not None
    places = torch.arange(N).expand(B, N) if batch.kept is None else batch.kept.index
    at: list[dict[int, Tensor]] = [
        dict(zip(places[b].tolist(), batch.features[b].detach(), strict=True)) for b in (i, j)
    ]
    both = at[0].keys() & at[1].keys()
    return float(torch.stack([(at[0][n] - at[1][n]).square().mean() for n in both]).mean())


@pytest.mark.parametrize("kept", [None, subset()], ids=["all", "routed"])
def test_dispersion_is_the_log_of_the_mean_closeness_of_all_pairs(
    kept: TokenSubset | None,
) -> None:
    batch, tau = seen(D, kept), 0.7
    pairs = [distance(batch, i, j) for i in range(B) for j in range(B)]
    expected = torch.tensor([-d / tau for d in pairs], dtype=torch.float64).exp().mean().log()
    got = Dispersive(block=0, temperature=tau, group=B).loss(batch)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-10, atol=0)


def test_dispersion_in_groups_is_the_mean_over_the_groups() -> None:
    batch = seen(D, subset())
    assert batch.features is not None and batch.kept is not None
    halves = [
        Seen(
            batch.x[rows],
            batch.noise[rows],
            None,
            batch.features[rows],
            TokenSubset(batch.kept.index[rows], N),
            P,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    loss = Dispersive(block=0, group=2)
    mean = torch.stack([loss.loss(half) for half in halves]).mean()
    torch.testing.assert_close(loss.loss(batch), mean)


def test_a_step_down_the_dispersive_loss_moves_samples_apart() -> None:
    batch = seen(D, None)
    assert batch.features is not None
    before = [distance(batch, i, j) for i in range(B) for j in range(i)]
    (gradient,) = torch.autograd.grad(Dispersive(block=0, group=B).loss(batch), batch.features)
    with torch.no_grad():
        batch.features.sub_(gradient)
    after = [distance(batch, i, j) for i in range(B) for j in range(i)]
    assert sum(after) > sum(before) * (1 + 1e-6)


def test_samples_without_a_token_in_common_are_no_pair() -> None:
    halves = torch.stack([torch.arange(7), torch.arange(7, 14)]).repeat(2, 1)
    batch = seen(D, TokenSubset(halves, N))
    loss = Dispersive(block=0, group=2).loss(batch)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)  # each with itself alone
    assert bool(torch.autograd.grad(loss, batch.features)[0].isfinite().all())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_projectors_keep_every_token_at_its_place(kind: str) -> None:
    torch.manual_seed(0)
    head = projector(kind, D, 4, (ROWS, COLUMNS), layers=3)  # type: ignore[arg-type]
    x = torch.randn(B, N, D, requires_grad=True)
    out = head(x)
    assert out.shape == (B, N, 4)
    (reached,) = torch.autograd.grad(out[0, 7].sum(), x)  # the middle: row 1, column 2
    places = {n for n in range(N) if bool(reached[0, n].any())}
    near = {r * COLUMNS + c for r in range(3) for c in (1, 2, 3)}
    assert places == ({7} if kind == "mlp" else near)
    assert not bool(reached[1:].any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SRA2(block=0, weight=0.0), "sra2: weight is 0.0"),
        (lambda: SRA2(block=0, beta=-1.0), "sra2: beta is -1.0"),
        (lambda: SRA2(block=0, layers=0), "sra2: layers is 0"),
        (lambda: Dispersive(block=0, group=1), "dispersive: group is 1"),
        (lambda: Dispersive(block=0, temperature=0.0), "temperature is 0.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
