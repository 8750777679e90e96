"""The one loop that runs a stack of blocks with routes.

Shape legend: B batch, S tokens of a stream (prefix and image tokens), D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.checkpoint import checkpoint as recompute

from tread_ssm.routing.fuse import Rejoins, check_fused
from tread_ssm.routing.plan import Draw
from tread_ssm.routing.rejoin import OpenRoute, Stream, fused
from tread_ssm.tokens import Layout, grid_text, is_whole


def run_blocks(
    blocks: Sequence[Callable[..., Stream]],
    x: Stream,
    cond: Any,
    layout: Layout,
    routing: Draw = (),
    *,
    skips: Sequence[tuple[int, int]] = (),
    rejoins: Rejoins | None = None,
    checkpoint: bool = False,
    taps: Sequence[int] = (),
) -> Stream | tuple[Stream, tuple[Stream, ...]]:
    """Run `blocks` over a stream; inside a route they see only the tokens that it keeps.

    Args:
        blocks: Called as block(x, cond, layout), or block(x, cond, layout, skip) where a long
            skip ends; each returns the new stream.
        x: x_BSD in raster order behind the prefix, or a tuple of such tensors.
        cond: Conditioning, handed to every block untouched.
        layout: Where the tokens of x sit; blocks in a route get the layout of what is left.
        routing: A draw over the image tokens of `layout`; () runs the dense network. The blocks of
            a route that keeps nothing are not called.
        skips: (source, target) pairs: the stream behind block `source` is handed to block
            `target`. Where it crosses a route's end, the kept part is put back onto the stream
            as it was at the route's start; where it enters a route, it is taken.
        rejoins: The maps of routes that rejoin with "fuse", by (start, stop) of their blocks, as
            {(2, 6): Fuse(dim)}. They are part of the network and run without a draw as well.
        checkpoint: Recompute each block in the backward pass instead of keeping its activations.
        taps: Numbers of blocks, from 0, whose output streams are wanted as well.

    Returns:
        The stream with every token at its place. With `taps`: that stream, and a tuple of the
        streams behind those blocks; where a route drops tokens, they stand in it as they were at
        the route's start.

    Raises:
        ValueError: Draw, blocks and stream do not belong together.
    """
    _check(len(blocks), x, layout, routing, skips)
    _check_taps(len(blocks), taps)
    maps = dict(rejoins or {})
    check_fused("run_blocks", len(blocks), routing, maps)
    targets = dict(skips)
    routes = {route.start: (route, subset) for route, subset in routing}
    saved: dict[int, tuple[Stream, bool]] = {}  # by target: stream, whether inside a route
    tapped: dict[int, Stream] = {}
    network_input, dense_layout = x, layout
    inside: OpenRoute | None = None
    fuse_ends = {start: stop for start, stop in maps if start not in routes}  # dense ones
    begun: dict[int, tuple[int, Stream]] = {}  # by their end: first block, stream in front of it
    for i, block in enumerate(blocks):
        if i in routes:
            route, subset = routes[i]
            subset = subset.with_prefix(layout.n_prefix)
            fuse = maps.get((route.start, route.stop))
            inside = OpenRoute(route, subset, x, network_input, fuse)
            x, layout = inside.enter(x), layout.take(routes[i][1])
        if i in fuse_ends:
            begun[fuse_ends[i]] = i, x
        arguments = [x, cond, layout]
        if i in saved:
            skip, partial = saved.pop(i)
            arguments.append(skip if inside is None or partial else inside.enter(skip))
        if inside is None or not inside.subset.is_none:
            x = _recomputed(block, arguments) if checkpoint else block(*arguments)
        if i in taps:
            tapped[i] = x if inside is None else inside.unroute(x)
        if i in targets:
            saved[targets[i]] = (x, inside is not None)
        if inside is not None and i + 1 == inside.route.stop:
            x, layout = inside.rejoin(x), dense_layout
            saved = {t: (inside.unroute(s) if part else s, False) for t, (s, part) in saved.items()}
            inside = None
        if i + 1 in begun:
            first, start = begun.pop(i + 1)
            x = fused(maps[first, i + 1], start, x)
    return (x, tuple(tapped[i] for i in taps)) if taps else x


def _recomputed(block: Callable[..., Stream], arguments: list[Any]) -> Stream:
    # All randomness of a step is drawn before the model runs, so there is no state to restore.
    return recompute(block, *arguments, use_reentrant=False, preserve_rng_state=False)


def _check_taps(depth: int, taps: Sequence[int]) -> None:
    for block in taps:
        if not is_whole(block) or not 0 <= block < depth:
            raise ValueError(
                f"run_blocks: tap {block!r} is none of the {depth} blocks, which count from 0."
            )


def _check(
    depth: int, x: Stream, layout: Layout, routing: Draw, skips: Sequence[tuple[int, int]]
) -> None:
    tensor = x[0] if isinstance(x, tuple) else x
    if tensor.shape[1] != layout.n_tokens:
        raise ValueError(
            f"run_blocks: the stream has {tensor.shape[1]} tokens, its layout {layout.n_tokens} "
            f"({layout.n_prefix} prefix, grid {grid_text(layout.grid)})."
        )
    free_from = 0
    for route, subset in routing:
        place = f"run_blocks: Route(start={route.start}, stop={route.stop})"
        if not free_from <= route.start < route.stop <= depth:
            raise ValueError(
                f"{place} does not fit: routes must follow one another inside {depth} blocks; "
                f"draw from a RoutePlan(routes, depth={depth})."
            )
        free_from = route.stop
        n = layout.n_tokens - layout.n_prefix
        if subset.length != n or subset.index.shape[0] != tensor.shape[0]:
            raise ValueError(
                f"{place} was drawn for {subset.index.shape[0]} samples of {subset.length} tokens, "
                f"the stream has {tensor.shape[0]} of {n}; draw with plan.draw(batch, grid)."
            )
        if subset.index.device != tensor.device:
            raise ValueError(
                f"{place} was drawn on {subset.index.device}, the stream is on {tensor.device}; "
                f"draw with plan.draw(batch, grid, device=x.device)."
            )
    for source, target in skips:
        whole = is_whole(source) and is_whole(target)
        if not whole or not 0 <= source < target < depth:
            raise ValueError(
                f"run_blocks: skip ({source}, {target}) does not fit {depth} blocks; it must run "
                f"from one block to a later one."
            )
    if len({s for s, _ in skips}) < len(skips) or len({t for _, t in skips}) < len(skips):
        raise ValueError("run_blocks: a block may be the source of one skip and the target of one.")
