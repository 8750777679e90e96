"""Guidance: which passes run, with what labels and draws, and what comes of them."""

from collections.abc import Callable

import pytest
import torch

from tests.diffusion.oracle import Tiny
from tread_ssm.diffusion import (
    EDM,
    Extrapolation,
    Flow,
    classifier_free,
    edm_churn,
    euler,
    guide,
    heun,
    path_guidance,
    route_guidance,
)
from tread_ssm.routing import Draw, Route, RoutePlan

FLOW, NULL, GRID = Flow(), 4, (4, 4)
PLAN = RoutePlan((Route(1, 3), Route(4, 6)), depth=8)
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 3])


def network() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def drawer(batch: int = 3) -> Callable[[RoutePlan, float], Draw]:
    """Draws that are a function of t."""

    def draw(plan: RoutePlan, t: float) -> Draw:
        return plan.draw(batch, GRID, torch.Generator().manual_seed(round(t * 1000)))

    return draw


def kept(draw: Draw) -> list[list[list[int]]]:
    return [subset.index.tolist() for _, subset in draw]


def test_scale_1_is_bit_identical_to_no_guidance() -> None:
    plain = FLOW.denoiser(network())
    guided = classifier_free(plain, 1.0, NULL)
    assert torch.equal(guided(X, 0.5, LABELS), plain(X, 0.5, LABELS))
    times = FLOW.timesteps(4)
    assert torch.equal(heun(guided, FLOW, X, times, LABELS), heun(plain, FLOW, X, times, LABELS))


@pytest.mark.parametrize("scale", [0.0, 2.0, 4.5])
def test_guidance_leads_away_from_the_null_label(scale: float) -> None:
    model = network()
    plain = FLOW.denoiser(model)
    with_label, without = plain(X, 0.5, LABELS), plain(X, 0.5, torch.full_like(LABELS, NULL))
    model.seen.clear()
    found = classifier_free(plain, scale, NULL)(X, 0.5, LABELS)
    torch.testing.assert_close(found, without + scale * (with_label - without))
    assert len(model.seen) == 1, "both passes belong into one call"
    assert model.seen[0][0].tolist() == [0, 2, 3, 4, 4, 4]


def test_outside_the_interval_the_second_pass_is_skipped() -> None:
    model = network()
    guided = classifier_free(FLOW.denoiser(model), 3.0, NULL, interval=(0.2, 0.6))
    for t in (1.0, 0.61, 0.6, 0.4, 0.2, 0.1):
        guided(X, t, LABELS)
    assert [len(labels) for labels, _ in model.seen] == [3, 3, 6, 6, 3, 3]
    plain = FLOW.denoiser(model)
    assert torch.equal(guided(X, 0.1, LABELS), plain(X, 0.1, LABELS))
    assert not torch.equal(guided(X, 0.4, LABELS), plain(X, 0.4, LABELS))


def test_a_draw_goes_with_both_halves() -> None:
    model = network()
    draw = PLAN.draw(3, GRID, torch.Generator().manual_seed(0))
    classifier_free(FLOW.denoiser(model), 2.0, NULL)(X, 0.5, LABELS, draw)
    assert kept(model.seen[0][1]) == [ids + ids for ids in kept(draw)]


def test_route_guidance_extrapolates_from_weak_to_strong_with_the_label() -> None:
    model = network()
    plain = FLOW.denoiser(model)
    guided = route_guidance(plain, PLAN, 1.8, 0.75, 0.25, drawer())
    found = guided(X, 0.5, LABELS)
    (strong_labels, strong), (weak_labels, weak) = model.seen
    assert torch.equal(strong_labels, LABELS) and torch.equal(weak_labels, LABELS)
    assert [s.n_kept for _, s in strong] == [12, 12] and [s.n_kept for _, s in weak] == [4, 4]
    low, high = plain(X, 0.5, LABELS, weak), plain(X, 0.5, LABELS, strong)
    assert not torch.equal(low, high)
    torch.testing.assert_close(found, low + 1.8 * (high - low))


def test_a_drop_of_zero_is_no_routing() -> None:
    model = network()
    route_guidance(FLOW.denoiser(model), PLAN, 1.5, 0.5, 0.0, drawer())(X, 0.5, LABELS)
    assert model.seen[0][1] == () and len(model.seen[1][1]) == 2


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_scale_1_runs_the_strong_pass_alone(drop: float) -> None:
    model = network()
    plain = FLOW.denoiser(model)
    found = route_guidance(plain, PLAN, 1.0, 0.75, drop, drawer())(X, 0.5, LABELS)
    assert len(model.seen) == 1
    assert torch.equal(found, plain(X, 0.5, LABELS, model.seen[0][1]))


def test_both_passes_are_drawn_at_their_level() -> None:
    asked: list[tuple[float, float]] = []

    def draw(plan: RoutePlan, t: float) -> Draw:
        asked.extend((route.drop, t) for route in plan.routes[:1])
        return drawer()(plan, t)

    model = network()
    guided = route_guidance(FLOW.denoiser(model), PLAN, 2.0, 0.5, 0.25, draw)
    for t in (0.5, 0.4):
        guided(X, t, LABELS)
    assert asked == [(0.25, 0.5), (0.5, 0.5), (0.25, 0.4), (0.5, 0.4)]
    draws = [kept(draw) for _, draw in model.seen]
    assert draws[0] != draws[2]


def test_equal_drops_guide_nowhere() -> None:
    model = network()
    plain = FLOW.denoiser(model)
    found = route_guidance(plain, PLAN, 3.0, 0.5, 0.5, drawer())(X, 0.5, LABELS)
    assert torch.equal(found, plain(X, 0.5, LABELS, model.seen[0][1]))


def test_both_kinds_of_guidance_work_together_with_the_same_tokens_for_both_labels() -> None:
    model = network()
    labelled = classifier_free(FLOW.denoiser(model), 2.0, NULL)
    found = route_guidance(labelled, PLAN, 1.5, 0.5, 0.0, drawer())(X, 0.5, LABELS)
    assert found.shape == X.shape and len(model.seen) == 2
    assert all(labels.tolist() == [0, 2, 3, 4, 4, 4] for labels, _ in model.seen)
    for ids in kept(model.seen[1][1]):
        assert len(ids) == 6 and ids[:3] == ids[3:]


def test_the_other_way_round_is_refused_because_both_labels_would_keep_different_tokens() -> None:
    routed = route_guidance(FLOW.denoiser(network()), PLAN, 1.5, 0.5, 0.25, drawer())
    with pytest.raises(ValueError, match=r"for 3 samples, the batch has 6.*route_guidance\(cl"):
        classifier_free(routed, 2.0, NULL)(X, 0.5, LABELS)


def test_another_network_guides_by_the_same_formula() -> None:
    strong, weak = network(), network()
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.5)
    good, bad = FLOW.denoiser(strong), FLOW.denoiser(weak)
    found = guide(good, bad, Extrapolation(1.7))(X, 0.5, LABELS)
    low, high = bad(X, 0.5, LABELS), good(X, 0.5, LABELS)
    torch.testing.assert_close(found, low + 1.7 * (high - low))
    assert guide(good, bad, Extrapolation(1.0)) is good


def test_path_guidance_skips_the_routes_blocks_and_the_class_in_the_weak_pass() -> None:
    model = network()
    plain = FLOW.denoiser(model)
    found = path_guidance(plain, PLAN, GRID, Extrapolation(2.5), NULL)(X, 0.5, LABELS)
    (strong_labels, strong), (weak_labels, weak) = model.seen
    assert torch.equal(strong_labels, LABELS) and strong == ()
    assert weak_labels.tolist() == [NULL] * 3
    assert [(s.index.shape, s.length) for _, s in weak] == [((3, 0), 16)] * 2
    low, high = plain(X, 0.5, weak_labels, weak), plain(X, 0.5, LABELS)
    torch.testing.assert_close(found, low + 2.5 * (high - low))


STEPS = (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.mark.parametrize("kind", ["class", "path", "routes", "model"])
def test_an_interval_is_decided_once_a_step(kind: str) -> None:
    """The step from 0.75 to 0.5 is guided in both of its calls, that from 1.0 in neither."""
    model, weak = network(), network()
    plain, interval = FLOW.denoiser(model), (0.5, 0.8)
    rule = Extrapolation(2.0, interval)
    guided = {
        "class": classifier_free(plain, 2.0, NULL, interval),
        "path": path_guidance(plain, PLAN, GRID, rule, NULL),
        "routes": route_guidance(plain, PLAN, 2.0, 0.5, 0.0, drawer(), interval=interval),
        "model": guide(plain, FLOW.denoiser(weak), rule),
    }[kind]
    heun(guided, FLOW, X, torch.tensor(STEPS), LABELS)
    calls = [[3], [3], [6], [6], [3], [3], [3]]
    if kind != "class":
        twice = [3] if kind == "model" else [3, 3]
        calls = [[3], [3], twice, twice, [3], [3], [3]]
        assert len(weak.seen) == (2 if kind == "model" else 0)
    assert [len(labels) for labels, _ in model.seen] == [n for call in calls for n in call]


def test_a_step_that_adds_noise_first_is_guided_by_where_it_began() -> None:
    model, objective = network(), EDM()
    at = (0.3, 0.45)
    guided = classifier_free(objective.denoiser(model), 2.0, NULL, interval=at)
    steps = torch.tensor([0.5, 0.4, 0.2, 0.0])
    edm_churn(guided, objective, X, steps, LABELS, fresh=lambda i: torch.ones_like(X))
    assert [len(labels) for labels, _ in model.seen] == [3, 3, 6, 6, 3]
    model.seen.clear()
    euler(guided, objective, X, steps, LABELS)
    assert [len(labels) for labels, _ in model.seen] == [3, 6, 3]


def test_channels_that_are_not_guided_come_from_the_strong_pass() -> None:
    plain = FLOW.denoiser(network())
    all_of_them = classifier_free(plain, 3.0, NULL)(X, 0.5, LABELS)
    first = classifier_free(plain, 3.0, NULL, channels=1)(X, 0.5, LABELS)
    assert torch.equal(first[:, :1], all_of_them[:, :1])
    assert torch.equal(first[:, 1:], plain(X, 0.5, LABELS)[:, 1:])
    both = classifier_free(plain, 3.0, NULL, channels=2)(X, 0.5, LABELS)
    assert torch.equal(both, all_of_them)
    with pytest.raises(ValueError, match="channels is 3, but there are 2"):
        classifier_free(plain, 3.0, NULL, channels=3)(X, 0.5, LABELS)
    with pytest.raises(ValueError, match="channels is 0"):
        Extrapolation(2.0, channels=0)


def test_impossible_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="no route, so there is nothing to skip"):
        path_guidance(FLOW.denoiser(network()), RoutePlan((), 8), GRID, Extrapolation(2.0))
    by_path = path_guidance(FLOW.denoiser(network()), PLAN, GRID, Extrapolation(2.0))
    with pytest.raises(ValueError, match="path_guidance: it draws the routing itself"):
        by_path(X, 0.5, LABELS, PLAN.draw(3, GRID))
    plain = FLOW.denoiser(network())
    with pytest.raises(ValueError, match="interval is"):
        classifier_free(plain, 2.0, NULL, interval=(0.6, 0.2))
    with pytest.raises(ValueError, match="scale is nan"):
        classifier_free(plain, float("nan"), NULL)
    with pytest.raises(ValueError, match=r"weak_drop is 0\.2 and strong_drop 0\.5"):
        route_guidance(plain, PLAN, 2.0, 0.2, 0.5, drawer())
    impossible = RoutePlan((Route(1, 3, keep=(99,)),), 8)
    with pytest.raises(ValueError, match="position 99"):
        route_guidance(plain, impossible, 2.0, 0.5, 0.25, drawer())(X, 0.5, LABELS)
    guided = route_guidance(plain, PLAN, 2.0, 0.5, 0.0, drawer())
    with pytest.raises(ValueError, match="draws the routing itself"):
        guided(X, 0.5, LABELS, PLAN.draw(3, GRID))
