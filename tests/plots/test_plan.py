"""The picture of a plan."""

from tread_ssm.plots.plan import plot_plan
from tread_ssm.routing import Route, RoutePlan


def test_numbers_of_tokens_and_routes_are_written_into_it() -> None:
    plan = RoutePlan((Route(1, 3), Route(4, 5, 0.25, rejoin="sum")), 6)
    tokens = (66, 34, 34, 66, 50, 66)
    figure = plot_plan(plan, tokens, 66, skips=((0, 5),), title="a plan")
    (axes,) = figure.axes
    written = [t.get_text() for t in axes.texts]
    assert axes.get_title() == "a plan"
    assert {"66", "34", "50", "long skips", *"012345"} <= set(written)
    assert "32 tokens pass by (50% of the image), rejoin: start" in written
    assert "16 tokens pass by (25% of the image), rejoin: sum" in written
    widths = [line.get_linewidth() for line in axes.lines]
    assert len(widths) == 5
    assert widths[1] / widths[0] == 34 / 66
