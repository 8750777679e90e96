"""run_blocks against loops written out by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tread_ssm import Fuse, Layout, Route, RoutePlan, TokenSubset, run_blocks
from tread_ssm.routing import Draw
from tread_ssm.routing.plan import Rejoin

GRID = (3, 4)
N = 12
DEPTH = 8
SKIPS = ((0, 7), (1, 6), (2, 5), (3, 4))


class Block(nn.Module):
    """Mixes tokens along the layout's order, so that a wrong layout or a wrong token shows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner, self.skip = nn.Linear(dim, dim), nn.Linear(2 * dim, dim)

    def forward(
        self, x: Tensor, cond: Tensor, layout: Layout, skip: Tensor | None = None
    ) -> Tensor:
        assert x.shape[1] == layout.n_tokens
        if skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        place = torch.arange(N) if layout.index is None else layout.index
        weight = 1.0 / (1.0 + place.double())
        mixed = (x[:, layout.n_prefix :] * weight[..., None]).cumsum(dim=1)
        mixed = torch.cat([x[:, : layout.n_prefix], mixed], dim=1)
        return x + torch.tanh(self.inner(mixed) + cond[:, None])


@dataclass
class Case:
    blocks: nn.ModuleList
    x: Tensor
    cond: Tensor
    layout: Layout


def case(n_prefix: int = 2, batch: int = 3) -> Case:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(4) for _ in range(DEPTH)).double()
    x = torch.randn(batch, n_prefix + N, 4, dtype=torch.float64, requires_grad=True)
    cond = torch.randn(batch, 4, dtype=torch.float64)
    return Case(blocks, x, cond, Layout(GRID, n_prefix=n_prefix))


def draw(*routes: Route, batch: int = 3) -> Draw:
    return RoutePlan(routes, DEPTH).draw(batch, GRID, torch.Generator().manual_seed(1))


Maps = dict[tuple[int, int], Fuse]


def live_maps(*spans: tuple[int, int], dim: int = 4) -> Maps:
    """Maps with random weights."""
    torch.manual_seed(2)
    maps = {span: Fuse(dim).double() for span in spans}
    for fuse in maps.values():
        for parameter in fuse.parameters():
            nn.init.normal_(parameter)
    return maps


def by_hand(
    c: Case, routing: Draw, skips: tuple[tuple[int, int], ...] = (), maps: Maps | None = None
) -> Tensor:
    """Sample by sample, token by token; skips are always kept as whole streams."""
    maps = maps or {}
    results = []
    for b in range(c.x.shape[0]):
        whole = list(c.x[b].unbind(0))
        first = list(whole)
        places = list(range(len(whole)))
        saved: dict[int, list[Tensor]] = {}
        start: list[Tensor] = []
        for i, block in enumerate(c.blocks):
            if any(i == first for first, _ in maps):
                start = list(whole)
            for route, subset in routing:
                if route.start == i:
                    p = c.layout.n_prefix
                    places = [*range(p), *(p + int(j) for j in subset.index[b])]
                    start = list(whole)
            stream = torch.stack([whole[j] for j in places])[None]
            index = torch.tensor([[j - c.layout.n_prefix for j in places[c.layout.n_prefix :]]])
            arguments = [stream, c.cond[b : b + 1], Layout(GRID, index, c.layout.n_prefix)]
            if i in saved:
                arguments.append(torch.stack([saved[i][j] for j in places])[None])
            out = block(*arguments)[0]
            for k, j in enumerate(places):
                whole[j] = out[k]
            for source, target in skips:
                if source == i:
                    saved[target] = list(whole)  # dropped places still hold the route's start
            for (_, stop), fuse in maps.items():
                if stop == i + 1:
                    u, v = fuse.of_start.weight, fuse.of_end.weight
                    for j in range(len(whole)):
                        end = whole[j] if j in places else start[j] + fuse.mask_token
                        whole[j] = end + u @ start[j] + v @ end
            for route, _ in routing:
                if route.stop == i + 1:
                    for j in range(len(whole)):
                        if j not in places and route.rejoin != "fuse":
                            whole[j] = {
                                "start": start[j],
                                "input": first[j],
                                "sum": start[j] + first[j],
                            }[route.rejoin]
                    places = list(range(len(whole)))
        results.append(torch.stack(whole))
    return torch.stack(results)


PLANS = {
    "none": (),
    "one": (Route(2, 6),),
    "everything": (Route(0, 8),),
    "two": (Route(1, 3), Route(5, 7, drop=0.75)),
    "adjacent": (Route(1, 4), Route(4, 7)),
    "input": (Route(2, 6, rejoin="input"),),
    "sum": (Route(1, 3, rejoin="sum"), Route(4, 6, rejoin="sum")),
    "odd": (Route(2, 6, drop=0.3),),
    "single token": (Route(2, 6, drop=0.95),),
    "skips leave": (Route(0, 3),),
    "skips enter": (Route(5, 8),),
    "skips cross": (Route(1, 3), Route(4, 8)),
    "fuse": (Route(2, 6, rejoin="fuse"),),
    "two fuse": (Route(1, 4, 0.25, rejoin="fuse"), Route(4, 7, 0.75, rejoin="fuse")),
    "fuse and start": (Route(0, 3, rejoin="fuse"), Route(5, 7)),
}
MORE_MAPS = {"none": ((1, 3), (3, 7)), "one": ((6, 8),), "fuse": ((0, 1),)}
"""Blocks with a map that no route of the plan covers: they drop nothing."""


@pytest.mark.parametrize("skips", [(), SKIPS], ids=["plain", "skips"])
@pytest.mark.parametrize("n_prefix", [0, 2])
@pytest.mark.parametrize("name", PLANS)
def test_equals_the_loop_by_hand(
    name: str, n_prefix: int, skips: tuple[tuple[int, int], ...]
) -> None:
    c, routing = case(n_prefix), draw(*PLANS[name])
    fused = tuple((r.start, r.stop) for r in PLANS[name] if r.rejoin == "fuse")
    maps = live_maps(*fused, *MORE_MAPS.get(name, ()))
    out = run_blocks(c.blocks, c.x, c.cond, c.layout, routing, skips=skips, rejoins=maps)
    expected = by_hand(c, routing, skips, maps)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = [c.x, *c.blocks.parameters(), *(p for f in maps.values() for p in f.parameters())]
    ours = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_subset_of_all_tokens_is_bit_identical_to_dense() -> None:
    c = case()
    everything = TokenSubset(torch.arange(N).expand(3, N), N)
    routed = run_blocks(c.blocks, c.x, c.cond, c.layout, ((Route(1, 6), everything),), skips=SKIPS)
    assert torch.equal(routed, run_blocks(c.blocks, c.x, c.cond, c.layout, skips=SKIPS))


def test_dropped_tokens_stand_unchanged_at_stop_and_get_gradients() -> None:
    c, routing = case(), draw(Route(2, 8))
    at_start = run_blocks(c.blocks[:2], c.x, c.cond, c.layout)
    out = run_blocks(c.blocks, c.x, c.cond, c.layout, routing)
    dropped = ~routing[0][1].mask()
    assert torch.equal(out[:, 2:][dropped], at_start[:, 2:][dropped])
    (grad,) = torch.autograd.grad(out[:, 2:][dropped].sum(), c.x)
    assert bool((grad[:, 2:][dropped].abs().sum(dim=-1) > 0).all())


def test_blocks_in_a_route_see_only_the_kept_tokens() -> None:
    c, routing = case(), draw(Route(2, 6, drop=0.5))
    seen: list[int] = []

    def spy(block: nn.Module):
        def run(x: Tensor, cond: Tensor, layout: Layout) -> Tensor:
            seen.append(x.shape[1])
            return block(x, cond, layout)

        return run

    run_blocks([spy(b) for b in c.blocks], c.x, c.cond, c.layout, routing)
    assert seen == [14, 14, 8, 8, 8, 8, 14, 14]


@pytest.mark.parametrize("n_prefix", [0, 2])
@pytest.mark.parametrize("rejoin", ["start", "input", "sum", "fuse"])
def test_a_route_that_keeps_nothing_skips_its_blocks(rejoin: Rejoin, n_prefix: int) -> None:
    """The prefix skips them as well; of a long skip that begins inside, the start is left."""
    c = case(n_prefix)
    plan, maps = RoutePlan((Route(2, 6, rejoin=rejoin),), DEPTH), None
    start = run_blocks(c.blocks[:2], c.x, c.cond, c.layout)
    expected = {"start": start, "input": c.x, "sum": start + c.x}.get(rejoin)
    if expected is None:
        maps = live_maps((2, 6))
        fuse = maps[2, 6]
        end = start + fuse.mask_token
        expected = end + start @ fuse.of_start.weight.T + end @ fuse.of_end.weight.T
    first = run_blocks(c.blocks[:1], c.x, c.cond, c.layout)
    after = c.blocks[6](expected, c.cond, c.layout, start)  # from block 4, which is skipped
    after = c.blocks[7](after, c.cond, c.layout, first)
    skips = ((0, 7), (1, 3), (4, 6))
    draws = plan.skipping(3, GRID)
    out = run_blocks(c.blocks, c.x, c.cond, c.layout, draws, skips=skips, rejoins=maps)
    torch.testing.assert_close(out, after, rtol=1e-12, atol=1e-12)


def test_order_of_ids_from_outside_does_not_matter() -> None:
    c, (drawn,) = case(), draw(Route(2, 6))
    route, subset = drawn
    shuffled = TokenSubset(subset.index[:, torch.randperm(subset.n_kept)], N)  # not sorted
    sorted_again = TokenSubset.of(shuffled.index, N)
    out = [
        run_blocks(c.blocks, c.x, c.cond, c.layout, ((route, s),), skips=SKIPS)
        for s in (subset, sorted_again)
    ]
    assert torch.equal(out[0], out[1])
    # Blocks that ask their layout for the order do not even need sorted ids.
    taken = shuffled.take(c.x[:, 2:])
    assert torch.equal(shuffled.put(taken, c.x[:, 2:]), c.x[:, 2:])


def test_two_streams_are_taken_and_put_alike() -> None:
    c, routing = case(), draw(Route(2, 6))

    def paired(block: nn.Module):
        def run(streams: tuple[Tensor, Tensor], cond: Tensor, layout: Layout):
            hidden, residual = streams
            new = block(hidden + residual, cond, layout) - residual
            return new, residual * 0.5 + hidden * 0.5

        return run

    blocks = [paired(b) for b in c.blocks]
    x = (c.x, c.x * 0.5)
    hidden, residual = run_blocks(blocks, x, c.cond, c.layout, routing)
    start = run_blocks(blocks[:2], x, c.cond, c.layout)
    subset = routing[0][1].with_prefix(2)
    layout = c.layout.take(routing[0][1])
    inner = tuple(subset.take(s) for s in start)
    for block in blocks[2:6]:
        inner = block(inner, c.cond, layout)
    outer = tuple(subset.put(i, s) for i, s in zip(inner, start, strict=True))
    for block in blocks[6:]:
        outer = block(outer, c.cond, c.layout)
    assert torch.equal(hidden, outer[0]) and torch.equal(residual, outer[1])


@pytest.mark.parametrize("name", ["one", "two", "skips cross"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    c, routing = case(), draw(*PLANS[name])
    parameters = [c.x, *(p for b in c.blocks for p in b.inner.parameters())]
    grads = []
    for checkpoint in (False, True):
        out = run_blocks(
            c.blocks, c.x, c.cond, c.layout, routing, skips=SKIPS, checkpoint=checkpoint
        )
        grads.append(torch.autograd.grad(out.square().sum(), parameters))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_one_graph_serves_all_draws_of_equal_size() -> None:
    c = case()
    compiled = torch.compile(
        lambda x, routing: run_blocks(c.blocks, x, c.cond, c.layout, routing, skips=SKIPS),
        backend="aot_eager",
        fullgraph=True,
    )
    plan = RoutePlan((Route(2, 6),), DEPTH)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            routing = plan.draw(3, GRID, torch.Generator().manual_seed(seed))
            expected = run_blocks(c.blocks, c.x, c.cond, c.layout, routing, skips=SKIPS)
            torch.testing.assert_close(compiled(c.x, routing), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_draw_on_another_device_is_refused() -> None:
    c, ((route, subset),) = case(), draw(Route(2, 6))
    with pytest.raises(ValueError, match=r"was drawn on meta, the stream is on cpu; draw with"):
        run_blocks(c.blocks, c.x, c.cond, c.layout, ((route, subset.to("meta")),))


@pytest.mark.parametrize(
    ("grid", "routing", "skips", "message"),
    [
        ((3, 5), (), (), "the stream has 14 tokens, its layout 17"),
        (GRID, draw(Route(2, 6), batch=2), (), "was drawn for 2 samples of 12 tokens"),
        (
            GRID,
            RoutePlan((Route(2, 10),), 10).draw(3, GRID),
            (),
            "does not fit: routes must follow one another inside 8 blocks",
        ),
        (GRID, (), ((3, 3),), r"skip \(3, 3\) does not fit 8 blocks"),
        (GRID, (), ((1, 5), (1, 6)), "source of one skip"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    grid: tuple[int, int], routing: Draw, skips: tuple[tuple[int, int], ...], message: str
) -> None:
    c = case()
    with pytest.raises(ValueError, match=message):
        run_blocks(c.blocks, c.x, c.cond, Layout(grid, n_prefix=2), routing, skips=skips)


def test_taps_give_what_a_block_puts_out_with_dropped_tokens_as_they_were() -> None:
    c = case()
    routing = draw(Route(2, 5), Route(6, 7))
    plain = run_blocks(c.blocks, c.x, c.cond, c.layout, routing)
    y, streams = run_blocks(c.blocks, c.x, c.cond, c.layout, routing, taps=(1, 4, 4, 7))
    assert torch.equal(y, plain)
    assert torch.equal(streams[3], y) and torch.equal(streams[1], streams[2])
    kept = routing[0][1].with_prefix(2).mask()
    assert bool((streams[1] != streams[0])[kept].all())
    # Rejoining with the route's start puts the same there.
    assert torch.equal(streams[1][~kept], streams[0][~kept])
    front = run_blocks(c.blocks[:5], c.x, c.cond, c.layout, routing[:1])
    assert torch.equal(streams[1], front)


@pytest.mark.parametrize("tap", [-1, DEPTH, 1.0])
def test_a_tap_that_is_no_block_is_refused(tap: float) -> None:
    c = case()
    with pytest.raises(ValueError, match="none of the 8 blocks"):
        run_blocks(c.blocks, c.x, c.cond, c.layout, taps=(tap,))  # type: ignore[arg-type]
