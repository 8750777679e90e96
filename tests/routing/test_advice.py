"""Each caution is given where it is due, and only there."""

import pytest

from tread_ssm.routing import Route, RoutePlan
from tread_ssm.routing.advice import advice

GRID = (32, 32)
SKIPS = tuple((i, 12 - i) for i in range(1, 6))


def cautions(*routes: Route, grid: tuple[int, int] = GRID, **known: float) -> tuple[str, ...]:
    return advice(RoutePlan(routes, 12), grid, SKIPS, **known)


def test_a_symmetric_half_dropped_route_with_a_dense_tail_is_fine() -> None:
    assert cautions(Route(2, -1), dense_tail=0.1) == ()
    assert cautions() == ()


@pytest.mark.parametrize(
    ("route", "sentence"),
    [
        (Route(0, 12), r"Route(start=0, stop=12) ends in the last block"),
        (Route(2, -1, 0.7), "drops 70%; beyond 65%"),
        (Route(3, -1), "strands the long skip from block 2 to 10: one end is inside"),
    ],
)
def test_cautions(route: Route, sentence: str) -> None:
    (found,) = cautions(route, dense_tail=0.1)
    assert sentence in found


def test_remedies_remedy() -> None:
    (ending,) = cautions(Route(3, 12), grid=GRID, dense_tail=0.1)[:1]
    assert "stop=9" in ending
    assert cautions(Route(3, 9 + 1), dense_tail=0.1) == ()


def test_toys_are_left_alone() -> None:
    assert cautions(Route(2, -1), grid=(8, 8), dense_tail=0.1) == ()
    (ending,) = cautions(Route(2, 12), grid=(8, 8), dense_tail=0.1)[:1]
    assert "ends in the last block" in ending


def test_few_tokens_and_no_tail() -> None:
    few, small, tail = cautions(Route(2, -1, 0.6), grid=(8, 16), dense_tail=0.0)
    assert "keeps 52 tokens" in few
    assert "128 image tokens" in small
    assert "dense_tail=0.1" in tail
