"""Values that mean nothing are refused in a sentence, each before any block runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tread_ssm import Cells, Frames, Layout, Route, RoutePlan, Segments, TokenSubset, Tubes
from tread_ssm.routing.run import run_blocks

PLAN = RoutePlan((Route(1, 3),), depth=4)
RANK = torch.arange(12)


def keep(*positions: Any) -> Callable[[], Any]:
    return lambda: Route(1, 3, keep=positions)


def plan_keep(*positions: int) -> Callable[[], Any]:
    return lambda: RoutePlan((Route(1, 3, keep=positions),), 4).draw(2, (3, 4))


def ordered(rank: torch.Tensor) -> Callable[[], object]:
    return lambda: Layout((3, 4), orders={"a": rank})


def layout(*index: Any, dtype: torch.dtype = torch.int64) -> Callable[[], Any]:
    return lambda: Layout((3, 4), torch.tensor([index], dtype=dtype))


def run(x: torch.Tensor, **arguments: Any) -> Callable[[], Any]:
    draw = PLAN.draw(2, (3, 4), torch.Generator().manual_seed(0))
    blocks = [lambda x, cond, layout: x] * 4
    return lambda: run_blocks(blocks, x, None, Layout((3, 4)), draw, **arguments)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # Routes
    "start between blocks": (
        lambda: Route(1.5, 4),  # type: ignore[arg-type]
        r"Route\(start=1\.5, stop=4\): start is 1\.5; block numbers are whole numbers",
    ),
    "stop between blocks": (
        lambda: Route(1, 4.5),  # type: ignore[arg-type]
        r"Route\(start=1, stop=4\.5\): stop is 4\.5; block numbers are whole numbers",
    ),
    "whole float": (lambda: Route(1.0, 4), "start is 1.0; block"),  # type: ignore[arg-type]
    "bool": (lambda: Route(True, 4), "start is True; block"),
    "text": (lambda: Route("1", 4), "start is '1'; block"),  # type: ignore[arg-type]
    "drop nan": (lambda: Route(1, 3, drop=float("nan")), "drop is nan.*0 <= drop < 1"),
    "drop a text": (lambda: Route(1, 3, drop="0.5"), "drop is '0.5'"),  # type: ignore[arg-type]
    "half a cell": (lambda: Cells(size=1.5), r"Cells\(size=1\.5\)"),  # type: ignore[arg-type]
    "half a segment": (lambda: Segments(length=2.5), "length=2.5"),  # type: ignore[arg-type]
    "subset, ids are a mask": (
        lambda: TokenSubset.of(torch.ones(2, 12, dtype=torch.bool), 12),
        "index must be an integer tensor",
    ),
    "keep a float": (keep(1.0), r"keep is \(1\.0,\); positions are whole numbers"),
    "keep twice": (keep(3, 3), r"keep is \(3, 3\).*each is named once"),
    "keep from both ends": (plan_keep(0, -12), r"keep=\(0, -12\) names one of 12 tokens twice"),
    "keep outside": (plan_keep(12), "keep names position 12, but there are 12 tokens"),
    # Plans
    "depth a float": (lambda: RoutePlan((), 4.0), "depth is 4.0"),  # type: ignore[arg-type]
    "depth negative": (lambda: RoutePlan((), -1), "depth is -1; it is the number of blocks"),
    "grid negative": (lambda: PLAN.draw(2, (-3, -4)), r"grid is \(-3, -4\).*at least 1"),
    "grid zero": (lambda: PLAN.draw(2, (0, 4)), r"grid is \(0, 4\)"),
    "grid of floats": (
        lambda: PLAN.draw(2, (3.0, 4)),  # type: ignore[arg-type]
        r"grid is \(3\.0, 4\).*whole numbers",
    ),
    "grid a number": (lambda: PLAN.draw(2, 12), "grid is 12;"),  # type: ignore[arg-type]
    "grid of one side": (lambda: PLAN.draw(2, (12,)), r"grid is \(12,\); it is \(rows, columns\)"),
    "kept of a negative grid": (lambda: PLAN.n_kept((-3, -4)), r"grid is \(-3, -4\)"),
    "batch zero": (lambda: PLAN.draw(0, (3, 4)), "batch is 0; use a whole number, at least 1"),
    "batch a float": (lambda: PLAN.draw(2.0, (3, 4)), "batch is 2.0"),  # type: ignore[arg-type]
    "frames of a picture": (
        lambda: RoutePlan((Route(1, 3, select=Frames()),), 4).draw(2, (3, 4)),
        "Frames: a grid of 3 x 4 tokens has no frames",
    ),
    "tubes of a picture": (
        lambda: RoutePlan((Route(1, 3, select=Tubes()),), 4).n_kept((3, 4)),
        "Tubes: a grid of 3 x 4 tokens has no frames",
    ),
    # Layouts
    "layout, no grid": (lambda: Layout((3, -4)), r"Layout: grid is \(3, -4\)"),
    "layout, prefix": (lambda: Layout((3, 4), n_prefix=-1), "n_prefix is -1"),
    "layout, ids unsorted": (layout(3, 1), "ascending, distinct positions in 0..11"),
    "layout, ids doubled": (layout(1, 1, 4), "ascending, distinct positions"),
    "layout, ids outside": (layout(1, 12), r"0\.\.11 for a grid of 3 x 4"),
    "layout, ids are floats": (layout(1, 2, dtype=torch.float32), "index is torch.float32"),
    "ranks short": (
        ordered(RANK[:11]),
        r"order 'a' is torch.int64 of shape \(11,",
    ),
    "ranks doubled": (
        ordered(RANK // 2),
        r"holds each of 0\.\.11 once",
    ),
    "ranks are floats": (
        ordered(RANK.float()),
        "order 'a' is torch.float32",
    ),
    # run_blocks
    "stream of another batch": (run(torch.randn(3, 12, 4)), "drawn for 2 samples of 12 tokens"),
    "stream of another length": (run(torch.randn(2, 13, 4)), "the stream has 13 tokens"),
    "skip between blocks": (
        run(torch.randn(2, 12, 4), skips=((0.5, 3),)),
        r"skip \(0\.5, 3\) does not fit 4 blocks",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
