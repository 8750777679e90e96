"""A learned map at a route's end; test_run.py compares it with a loop written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.routing.test_run import DEPTH, GRID, SKIPS, N, case, draw, live_maps
from tread_ssm import Fuse, Route, RoutePlan, SelfDrawing, TokenSubset, attach, run_blocks
from tread_ssm.routing.fuse import resolved

FUSED, START = Route(2, 6, rejoin="fuse"), Route(2, 6)


def test_a_new_map_is_rejoin_start_bit_for_bit_and_every_part_of_it_learns() -> None:
    c, fuse = case(), Fuse(4).double()
    kinds = {"start": (draw(START), None), "fuse": (draw(FUSED), {(2, 6): fuse})}
    outs = {
        kind: run_blocks(c.blocks, c.x, c.cond, c.layout, routing, skips=SKIPS, rejoins=maps)
        for kind, (routing, maps) in kinds.items()
    }
    assert torch.equal(outs["start"], outs["fuse"])
    grads = torch.autograd.grad(outs["fuse"].square().sum(), list(fuse.parameters()))
    assert all(bool((g != 0).any()) for g in grads)


def test_a_new_map_samples_no_random_numbers() -> None:
    state = torch.get_rng_state()
    Fuse(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_nothing_is_dropped_a_map_is_the_same_with_and_without_a_draw() -> None:
    c, maps = case(), live_maps((2, 6))
    everything = TokenSubset(torch.arange(N).expand(3, N), N)
    dense = run_blocks(c.blocks, c.x, c.cond, c.layout, rejoins=maps)
    routed = run_blocks(c.blocks, c.x, c.cond, c.layout, ((FUSED, everything),), rejoins=maps)
    assert torch.equal(dense, routed)
    assert not torch.equal(dense, run_blocks(c.blocks, c.x, c.cond, c.layout))
    new = {(2, 6): Fuse(4).double()}
    dense = run_blocks(c.blocks, c.x, c.cond, c.layout, rejoins=new)
    assert torch.equal(dense, run_blocks(c.blocks, c.x, c.cond, c.layout))


def test_a_map_in_half_precision_leaves_the_stream_as_it_is() -> None:
    fuse, start = Fuse(4), torch.randn(2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fuse(start, start + 1), start + 1)


def test_two_streams_have_a_map_each() -> None:
    c = case()
    maps = [live_maps((2, 6))[2, 6], Fuse(4).double()]

    def paired(block: nn.Module):
        def run(streams: tuple[Tensor, Tensor], cond: Tensor, layout):
            hidden, residual = streams
            return block(hidden, cond, layout), residual * 0.5

        return run

    blocks = [paired(b) for b in c.blocks]
    x, routing = (c.x, c.x * 2), draw(FUSED)
    hidden, residual = run_blocks(blocks, x, c.cond, c.layout, routing, rejoins={(2, 6): maps})
    alone = run_blocks(c.blocks, c.x, c.cond, c.layout, routing, rejoins={(2, 6): maps[0]})
    assert torch.equal(hidden, alone)
    assert torch.equal(residual, run_blocks(blocks, x, c.cond, c.layout, draw(START))[1])


def test_one_graph_serves_all_draws_of_a_fused_route() -> None:
    c, maps = case(), live_maps((2, 6))
    compiled = torch.compile(
        lambda x, routing: run_blocks(c.blocks, x, c.cond, c.layout, routing, rejoins=maps),
        backend="aot_eager",
        fullgraph=True,
    )
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            routing = RoutePlan((FUSED,), DEPTH).draw(3, GRID, torch.Generator().manual_seed(seed))
            expected = run_blocks(c.blocks, c.x, c.cond, c.layout, routing, rejoins=maps)
            torch.testing.assert_close(compiled(c.x, routing), expected)


@pytest.mark.parametrize(
    ("spans", "routes", "message"),
    [
        ((), (FUSED,), r"rejoin='fuse'\) needs a map for its blocks, and the maps are none; build"),
        (((2, 7),), (FUSED,), r"the maps are those for \(2, 7\).*rejoins=\{\(2, 6\): Fuse\(dim\)"),
        (((2, 6),), (START,), r"rejoin='start'\) meets blocks 2 to 5.* Route\(start=2, stop=6, re"),
        (((2, 6),), (Route(5, 7),), "meets blocks 2 to 5"),
        (((2, 9),), (), r"the map for blocks \(2, 9\) does not fit 8 blocks"),
        (((1, 4), (3, 6)), (), r"the map for blocks \(3, 6\) does not fit 8 blocks"),
    ],
)
def test_maps_and_routes_that_do_not_belong_together_are_refused(
    spans: tuple[tuple[int, int], ...], routes: tuple[Route, ...], message: str
) -> None:
    c = case()
    with pytest.raises(ValueError, match=message):
        run_blocks(c.blocks, c.x, c.cond, c.layout, draw(*routes), rejoins=live_maps(*spans))


def test_spans_are_resolved_and_checked() -> None:
    assert resolved([(5, -1), (1, 3)], 8) == ((1, 3), (5, 7))
    with pytest.raises(ValueError, match="begins inside"):
        resolved([(1, 4), (3, 5)], 8)


def test_attach_refuses_a_map_which_it_could_not_keep() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    with pytest.raises(ValueError, match=r"Route\(start=2, stop=6, rejoin='fuse'\).*run_blocks\("):
        attach(layers, drawing=SelfDrawing((FUSED,)))
    routing = attach(layers)
    with (
        pytest.raises(ValueError, match="attach adds nothing to a model"),
        routing.using(draw(FUSED)),
    ):
        pass
