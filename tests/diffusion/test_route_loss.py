"""The routed loss against loops over samples, routes, tokens and pixels."""

import math

import pytest
import torch

from tread_ssm.diffusion import AllTokens, LossTerms, PerRoute, patchify, route_loss
from tread_ssm.routing import Draw, Route, RoutePlan, TokenSubset

B, C, P, GRID = 3, 2, 2, (4, 3)
N = GRID[0] * GRID[1]
PLAN = RoutePlan((Route(1, 3, drop=0.5), Route(4, 6, drop=0.75)), depth=8)


def terms() -> LossTerms:
    rng = torch.Generator().manual_seed(0)
    shape = (B, C, GRID[0] * P, GRID[1] * P)
    loss_map, reconstruction, noisy = (
        torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3)
    )
    return LossTerms(loss_map**2, reconstruction, noisy)


def draw() -> Draw:
    return PLAN.draw(B, GRID, torch.Generator().manual_seed(1))


def patch_values(x: torch.Tensor, sample: int, token: int) -> list[float]:
    row, column = divmod(token, GRID[1])
    return [
        float(x[sample, c, row * P + i, column * P + j])
        for i in range(P)
        for j in range(P)
        for c in range(C)
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_hand(t: LossTerms, subset: TokenSubset) -> tuple[float, float, float]:
    """DSM on kept, the same on dropped, MAE on dropped."""
    kept, dropped, errors = [], [], []
    for sample in range(B):
        ids = set(subset.index[sample].tolist())
        for token in range(N):
            loss = mean(patch_values(t.loss_map, sample, token))
            if token in ids:
                kept.append(loss)
                continue
            dropped.append(loss)
            noisy = patch_values(t.noisy, sample, token)
            variance = sum((v - mean(noisy)) ** 2 for v in noisy) / (len(noisy) - 1)
            target = [(v - mean(noisy)) / math.sqrt(variance + 1e-6) for v in noisy]
            guess = patch_values(t.reconstruction, sample, token)
            errors.append(mean([(g - v) ** 2 for g, v in zip(guess, target, strict=True)]))
    return mean(kept), mean(dropped), mean(errors)


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_per_route_is_the_mean_over_routes_of_both_terms(weight: float) -> None:
    t = terms()
    hand = [by_hand(t, subset) for _, subset in draw()]
    losses = route_loss(t, draw(), P, PerRoute(reconstruction_weight=weight))
    assert len(hand) == 2
    expected = mean([h[0] for h in hand]) + weight * mean([h[2] for h in hand])
    assert math.isclose(float(losses.total), expected, rel_tol=1e-9)


@pytest.mark.parametrize("loss", [AllTokens(), PerRoute()])
def test_kept_and_routed_are_means_over_routes(loss: AllTokens | PerRoute) -> None:
    t = terms()
    hand = [by_hand(t, subset) for _, subset in draw()]
    losses = route_loss(t, draw(), P, loss)
    kept, routed = ([h[i] for h in hand] for i in (0, 1))
    assert losses.kept_per_route.tolist() == pytest.approx(kept)
    assert losses.routed_per_route.tolist() == pytest.approx(routed)
    assert float(losses.kept) == pytest.approx(mean(kept))
    assert float(losses.routed) == pytest.approx(mean(routed))
    # One route's two halves make up the whole.
    plain = float(t.loss_map.mean())
    share = [subset.n_kept / N for _, subset in draw()]
    for k, r, s in zip(kept, routed, share, strict=True):
        assert s * k + (1 - s) * r == pytest.approx(plain)


def test_all_tokens_is_the_plain_mean() -> None:
    t = terms()
    losses = route_loss(t, draw(), P, AllTokens())
    assert float(losses.total) == pytest.approx(float(t.loss_map.mean()))


def all_kept() -> Draw:
    everything = TokenSubset(torch.arange(N).expand(B, N), N)
    return ((Route(1, 3, drop=0.0), everything),)


@pytest.mark.parametrize("loss", [AllTokens(), PerRoute()])
@pytest.mark.parametrize("nothing_dropped", [(), all_kept()], ids=["no route", "drop 0"])
def test_without_dropped_tokens_the_loss_is_plain(
    loss: AllTokens | PerRoute, nothing_dropped: Draw
) -> None:
    t = terms()
    losses = route_loss(t, nothing_dropped, P, loss)
    plain = float(t.loss_map.mean())
    assert float(losses.total) == pytest.approx(plain) and float(losses.kept) == float(losses.total)
    assert math.isnan(float(losses.routed)) and losses.kept_per_route.shape == (0,)
    # Beside a route that drops tokens, one that does not changes nothing.
    alone, beside = route_loss(t, draw(), P, loss), route_loss(t, draw() + all_kept(), P, loss)
    assert float(alone.total) == float(beside.total)


@pytest.mark.parametrize("loss", [AllTokens(), PerRoute()])
def test_a_dropped_path_counts_as_all_tokens_alike(loss: AllTokens | PerRoute) -> None:
    t, batch = terms(), draw()[0][1].index.shape[0]
    skipped = RoutePlan((Route(1, 3),), 4).skipping(batch, (3, 4))
    losses = route_loss(t, skipped, P, loss)
    assert float(losses.total) == pytest.approx(float(t.loss_map.mean()))
    assert math.isnan(float(losses.kept)) and math.isnan(float(losses.routed))
    alone, beside = route_loss(t, draw(), P, loss), route_loss(t, draw() + skipped, P, loss)
    assert float(alone.total) == float(beside.total)
    assert float(alone.kept) == float(beside.kept)


def test_gradients_reach_kept_patches_of_the_loss_and_dropped_ones_of_the_reconstruction() -> None:
    t = terms()
    one = draw()[:1]
    kept = one[0][1].mask()
    loss_map, guess = (x.clone().requires_grad_() for x in (t.loss_map, t.reconstruction))
    losses = route_loss(LossTerms(loss_map, guess, t.noisy), one, P, PerRoute())
    losses.total.backward()
    assert loss_map.grad is not None and guess.grad is not None
    assert torch.equal(patchify(loss_map.grad, P).ne(0).all(2), kept)
    assert torch.equal(patchify(guess.grad, P).ne(0).any(2), ~kept)
    assert not losses.kept.requires_grad and not losses.routed.requires_grad


def test_flat_patches_do_not_divide_by_zero() -> None:
    t = terms()
    flat = LossTerms(t.loss_map, t.reconstruction, torch.ones_like(t.noisy))
    assert math.isfinite(float(route_loss(flat, draw(), P, PerRoute()).total))
    # One value a patch: no variance at all.
    x = torch.rand(1, 1, 4, 4)
    single = RoutePlan((Route(0, 1),), 1).draw(1, (4, 4), torch.Generator().manual_seed(0))
    assert math.isfinite(float(route_loss(LossTerms(x, x, x), single, 1, PerRoute()).total))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples with 12 tokens"):
        route_loss(terms(), draw(), 1, AllTokens())
    with pytest.raises(ValueError, match="patches of 4 x 4"):
        patchify(torch.zeros(1, 1, 8, 6), 4)
    with pytest.raises(ValueError, match="loss is 'per_route'; pass AllTokens"):
        route_loss(terms(), draw(), P, "per_route")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reconstruction_weight is -0\.1"):
        PerRoute(reconstruction_weight=-0.1)
