"""What is known to go wrong with routes, said before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tread_ssm.routing.plan import Route, RoutePlan
from tread_ssm.tokens import Grid

FEW_KEPT = 64
FEW_TOKENS = 256
LARGE_DROP = 0.65
TOY = 100  # image tokens; nothing is known about images of fewer


def advice(
    plan: RoutePlan,
    grid: Grid,
    skips: Sequence[tuple[int, int]] = (),
    dense_tail: float | None = None,
) -> tuple[str, ...]:
    """A sentence for each thing that speaks against a plan; none where nothing does.

    Cautions and their sources: a route into the last block hurt in every run, and dropping 0.75
    undid the gain of 0.5 (49.29 against 21.34 FID, DiT-B/2; none: 43.47), both TREAD, arXiv
    2501.04765; at 256 tokens routing hurt a text-to-image model that it helped at 1024, while
    class-conditional ImageNet-256 gains (Photoroom PRX against TREAD); a dense tail of 10 to 15 %
    left +1.2 % of validation loss instead of +7.4 % (takenoko).

    Args:
        plan: What is to be trained.
        grid: (rows, columns) of the image tokens.
        skips: (source, target) blocks of long skips.
        dense_tail: Last part of training without routes, None where that is not known.
    """
    if not plan.routes:
        return ()
    found = []
    n = math.prod(grid)
    for route, kept in zip(plan.routes, plan.n_kept(grid), strict=True):
        found += _of_route(route, kept if n >= TOY else FEW_KEPT, plan.depth, skips)
    if TOY <= n <= FEW_TOKENS:
        found.append(
            f"{n} image tokens: routing saves little here and is known to help class-conditional "
            f"models at 256 tokens, but to hurt a text-to-image model; compare with the dense "
            f"partner, or use a smaller patch."
        )
    if dense_tail == 0:
        found.append(
            "No dense tail: training ends with routes, sampling has none; routing.schedule."
            "dense_tail=0.1 lets the last steps train the network that is sampled from."
        )
    return tuple(found)


def _of_route(route: Route, kept: int, depth: int, skips: Sequence[tuple[int, int]]) -> list[str]:
    name, found = f"Route(start={route.start}, stop={route.stop})", []
    if route.stop == depth:
        found.append(
            f"{name} ends in the last block, which hurts: nothing works on the tokens that come "
            f"back; end it a few blocks earlier, e.g. stop={max(route.start + 1, depth - 3)}."
        )
    if kept < FEW_KEPT:
        found.append(
            f"{name} keeps {kept} tokens, fewer than about {FEW_KEPT}: its blocks see little of an "
            f"image, and the time goes into overhead; use a smaller drop or a smaller patch."
        )
    if route.drop > LARGE_DROP:
        found.append(
            f"{name} drops {route.drop:.0%}; beyond {LARGE_DROP:.0%} images got worse than "
            f"without routes; use about 50 %."
        )
    inside = range(route.start, route.stop)
    stranded = [s for s in skips if (s[0] in inside) != (s[1] in inside)]
    if stranded:
        source, target = stranded[0]
        more = f" and {len(stranded) - 1} more" if len(stranded) > 1 else ""
        found.append(
            f"{name} strands the long skip from block {source} to {target}{more}: one end is "
            f"inside, one outside; a route that is symmetric about the middle block leaves none."
        )
    return found
