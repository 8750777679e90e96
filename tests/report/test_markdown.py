"""Sentences that several pages say."""

from tread_ssm.report.markdown import routes_text
from tread_ssm.routing import Route, RoutePlan


def test_routes_are_named_by_the_blocks_of_the_network() -> None:
    plan = RoutePlan((Route(start=5, stop=-1, drop=0.125), Route(start=1, stop=3)), depth=8)
    assert routes_text(plan, " past blocks ") == (
        "50% past blocks 1 to 2, 12.5% past blocks 5 to 6"
    )
    assert routes_text(RoutePlan((), depth=8), " past blocks ") == ""
