import pytest
import torch

from tread_ssm import Route, RoutePlan, RouteSchedule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_negative_numbers_count_from_the_end() -> None:
    route = RoutePlan((Route(-8, -3),), depth=12).routes[0]
    assert (route.start, route.stop) == (4, 9)


def test_routes_are_sorted() -> None:
    plan = RoutePlan((Route(6, 8), Route(1, 3)), depth=8)
    assert [r.start for r in plan.routes] == [1, 6]


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ((Route(4, 9),), r"Route\(start=4, stop=9\): depth is 8; stop is exclusive and may be at"),
        ((Route(8, 9),), r"depth is 8; start must lie in 0\.\.7"),
        ((Route(-9, 4),), r"start must lie in 0\.\.7"),
        ((Route(3, 3),), "holds no block"),
        ((Route(5, -4),), "runs from block 5 to 4 and holds no block"),
        ((Route(1, 4), Route(3, 6)), r"begins inside Route\(start=1, stop=4\).*at least 4"),
    ],
)
def test_impossible_plans_are_refused(routes: tuple[Route, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutePlan(routes, depth=8)


@pytest.mark.parametrize("drop", [-0.1, 1.0, 1.5])
def test_impossible_drops_are_refused(drop: float) -> None:
    with pytest.raises(ValueError, match="0 <= drop < 1"):
        Route(1, 3, drop=drop)


def test_unknown_rejoin_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of start, input, sum"):
        Route(1, 3, rejoin="end")  # type: ignore[arg-type]


def test_draw_belongs_to_the_generator_alone() -> None:
    plan = RoutePlan((Route(1, 3), Route(4, 7, drop=0.25)), depth=8)
    torch.manual_seed(1)
    first = plan.draw(5, (4, 4), generator())
    torch.manual_seed(2)
    second = plan.draw(5, (4, 4), generator())
    other = plan.draw(5, (4, 4), generator(9))
    assert [s.n_kept for _, s in first] == [8, 12]
    for (_, a), (_, b) in zip(first, second, strict=True):
        assert torch.equal(a.index, b.index)
    assert not torch.equal(first[0][1].index, other[0][1].index)


def test_two_routes_draw_different_tokens() -> None:
    plan = RoutePlan((Route(1, 3), Route(4, 7)), depth=8)
    (_, first), (_, second) = plan.draw(5, (8, 8), generator())
    assert not torch.equal(first.index, second.index)


def test_a_route_that_drops_nothing_is_left_out() -> None:
    assert RoutePlan((Route(1, 3, drop=0.0),), depth=8).draw(2, (4, 4)) == ()
    assert RoutePlan((Route(1, 3, drop=0.05),), depth=8).draw(2, (4, 4)) == ()


def test_a_route_that_keeps_nothing_is_refused() -> None:
    plan = RoutePlan((Route(1, 3, drop=1 - 1e-12),), depth=8)
    with pytest.raises(
        ValueError, match=r"Route\(start=1, stop=3\): drop .* keeps no token of 4 x"
    ):
        plan.draw(2, (4, 4))


def test_fixed_and_given_tokens_stay() -> None:
    plan = RoutePlan((Route(1, 3, drop=0.75, keep=(0, -1)),), depth=8)
    keep = torch.zeros(30, 16, dtype=torch.bool)
    keep[:, 5] = True
    mask = plan.draw(30, (4, 4), generator(), keep=keep)[0][1].mask()
    assert bool(mask[:, [0, 5, 15]].all())
    with pytest.raises(ValueError, match="keep names position 16, but there are 16 tokens"):
        RoutePlan((Route(1, 3, keep=(16,)),), depth=8).draw(1, (4, 4))
    with pytest.raises(ValueError, match=r"keep has shape \(15,\); expected \(16,\) or \(30, 16\)"):
        plan.draw(30, (4, 4), keep=torch.ones(15, dtype=torch.bool))


def test_with_drop_zero_means_no_routes() -> None:
    plan = RoutePlan((Route(1, 3), Route(4, 7)), depth=8)
    assert plan.with_drop(0.0).draw(2, (4, 4)) == ()
    assert [r.drop for r in plan.with_drop(0.75).routes] == [0.75, 0.75]


def test_schedule_ramps_in_levels_then_holds_then_turns_dense() -> None:
    plan = RoutePlan((Route(1, 3, drop=0.6),), depth=8)
    schedule = RouteSchedule(from_share=0.5, ramp=0.4, levels=2, dense_tail=0.1)
    drops = [schedule.at(plan, step, 100).routes for step in range(100)]
    shares = [routes[0].drop if routes else 0.0 for routes in drops]
    assert shares[:20] == pytest.approx([0.3] * 20)
    assert shares[20:40] == pytest.approx([0.45] * 20)
    assert shares[40:90] == pytest.approx([0.6] * 50)
    assert shares[90:] == [0.0] * 10


@pytest.mark.parametrize("total", [10, 20, 100, 4000])
def test_the_dense_tail_has_the_promised_length(total: int) -> None:
    for percent in range(0, 101, 5):
        schedule = RouteSchedule(dense_tail=percent / 100)
        dense = sum(schedule.share(step, total) == 0 for step in range(total))
        assert dense == total * percent // 100


def test_schedule_can_turn_routes_off_for_good() -> None:
    plan = RoutePlan((Route(1, 3),), depth=8)
    schedule = RouteSchedule(off_after=30)
    assert schedule.at(plan, 29, 100) == plan
    assert schedule.at(plan, 30, 100).routes == ()


def test_default_schedule_is_constant() -> None:
    plan = RoutePlan((Route(1, 3),), depth=8)
    assert all(RouteSchedule().at(plan, step, 10) == plan for step in range(10))


@pytest.mark.parametrize("field", ["from_share", "ramp", "dense_tail"])
def test_impossible_schedules_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 1.5"):
        RouteSchedule(**{field: 1.5})


def test_a_path_is_dropped_with_its_probability_and_drawn_with_the_draw() -> None:
    plan = RoutePlan((Route(1, 3, path_drop=0.25), Route(4, 6)), 8)
    draws = [plan.draw(3, (4, 5), generator(seed)) for seed in range(400)]
    dropped = [subset.is_none for ((_, subset), _) in draws]
    assert 0.19 < sum(dropped) / 400 < 0.31
    again = [plan.draw(3, (4, 5), generator(seed)) for seed in range(400)]
    assert dropped == [subset.is_none for ((_, subset), _) in again]
    for (_, first), (_, second) in draws:
        assert first.index.shape == ((3, 0) if first.is_none else (3, 10))
        assert second.index.shape == (3, 10)
    certain = plan.without_path_drop().draw(3, (4, 5), generator())
    assert [subset.n_kept for _, subset in certain] == [10, 10]
    assert [r.path_drop for r in plan.with_drop(0.3).routes] == [0.0, 0.0]


def test_a_plan_without_path_drop_draws_what_it_did_before_there_was_one() -> None:
    ((_, subset),) = RoutePlan((Route(1, 3),), 8).draw(2, (3, 3), generator())
    alone = Route(1, 3).select.draw(2, (3, 3), 0.5, None, generator())
    assert torch.equal(subset.index, alone.index)


def test_skipping_keeps_nothing_of_any_route() -> None:
    draw = RoutePlan((Route(1, 3), Route(4, 6, drop=0.0)), 8).skipping(2, (3, 5))
    assert [(r.start, s.length, s.n_kept, s.is_none) for r, s in draw] == [
        (1, 15, 0, True),
        (4, 15, 0, True),
    ]
    assert not draw[0][1].mask().any()


@pytest.mark.parametrize("path_drop", [-0.1, 1.0, float("nan"), "0.5"])
def test_impossible_path_drops_are_refused(path_drop: float) -> None:
    with pytest.raises(ValueError, match=r"path_drop is .* 0 <= path_drop < 1"):
        Route(1, 3, path_drop=path_drop)
