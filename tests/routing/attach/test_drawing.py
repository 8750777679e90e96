"""Routes that draw by themselves, the table of presets, and the check of what was declared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.routing.attach.cases import CASES, built
from tests.routing.attach.joint import D, Model, attention
from tests.routing.attach.stack import BATCH, GRID, N, Stack, data
from tread_ssm.routing import (
    Blocks,
    PerToken,
    Route,
    RouteSchedule,
    Rows,
    SelfDrawing,
    attach,
)
from tread_ssm.routing.attach.drawing import default_route
from tread_ssm.routing.attach.presets import PRESETS

VIT, EVA = "timm.VisionTransformer", "timm.Eva, EVA-02"


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


def index_of(draw: Any) -> Tensor:
    return draw[0][1].index


# --- drawing


def test_it_draws_in_training_with_gradients_alone(model: Stack) -> None:
    dense = model(data())
    routing = attach(model.blocks, drop=0.5)
    routed = model(data())
    ((route, subset),) = routing.draw
    assert (route.start, route.stop, subset.n_kept, len(subset.index)) == (1, 5, 8, BATCH)
    draw = routing.draw
    assert not torch.allclose(routed, dense)
    with torch.no_grad():
        assert torch.equal(model(data()), dense) and routing.draw == ()
    model.eval()
    assert torch.equal(model(data()), dense) and routing.draw == ()
    with routing.using(draw):
        assert torch.equal(model(data()), routed) and routing.draw is draw
    model.train()
    with routing.using(()):
        assert torch.equal(model(data()), dense)
    model(data())
    assert routing.draw != ()
    routing.detach()
    assert torch.equal(model(data()), dense)


def test_each_pass_of_each_step_has_its_own_draw_and_a_seed_repeats_them(model: Stack) -> None:
    def run(seed: int) -> list[Tensor]:
        routing = attach(model.blocks, drawing=SelfDrawing((Route(1, -1),), seed=seed))
        found = []
        for _ in range(2):
            for _ in range(2):
                model(data())
                found.append(index_of(routing.draw))
            routing.step()
        routing.step(1)
        model(data())
        found.append(index_of(routing.draw))
        routing.detach()
        return found

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(first[4], first[2])  # step 1 again
    assert not any(torch.equal(first[i], first[j]) for i in range(4) for j in range(i))


def test_it_leaves_torch_s_random_numbers_alone(model: Stack) -> None:
    attach(model.blocks, drop=0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model(data())
    assert torch.equal(torch.rand(3), expected)


def test_it_follows_a_schedule(model: Stack) -> None:
    schedule = RouteSchedule(from_share=0.5, ramp=0.5, levels=1, dense_tail=0.25)
    config = SelfDrawing((Route(1, -1),), schedule=schedule, total_steps=4)
    routing, kept = attach(model.blocks, drawing=config), []
    for _ in range(4):
        model(data())
        kept.append([subset.n_kept for _, subset in routing.draw])
        routing.step()
    assert kept == [[12], [12], [8], []]


def test_a_grid_is_asked_for_where_it_matters(model: Stack) -> None:
    rows = attach(model.blocks, drawing=SelfDrawing((Route(1, -1, select=Rows()),)))
    with pytest.raises(ValueError, match=r"grid is unknown from the call of block 0.*grid=\(rows"):
        model(data())
    rows.detach()
    config = SelfDrawing((Route(1, -1, select=Rows()),), grid=GRID)
    routing = attach(model.blocks, drawing=config)
    model(data())
    assert routing.draw[0][1].grid == (2, 4)
    routing.detach()
    buckets = iter([(4, 4), (2, 8)])
    config = SelfDrawing((Route(1, -1, select=Rows()),), grid=lambda: next(buckets))
    routing = attach(model.blocks, drawing=config)
    for expected in ((2, 4), (1, 8)):
        model(data())
        assert routing.draw[0][1].grid == expected


@pytest.mark.parametrize("stretch", [0, 1, 2, 6])
def test_gradients_with_checkpoints_are_those_of_the_draw(model: Stack, stretch: int) -> None:
    routing = attach(model.blocks, drop=0.5)
    model.recompute = stretch
    y = model(data())
    draw = routing.draw
    model(data(2))
    found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    model.recompute = 0
    with routing.using(draw):
        y = model(data())
    expected = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_reentrant_checkpoint_is_not_silently_dense(model: Stack) -> None:
    attach(model.blocks, drop=0.5)
    x = data().requires_grad_()
    for block in model.blocks:
        x = checkpoint(block, x, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        x.sum().backward()


def test_a_compiled_model_is_one_graph_and_draws_anew(model: Stack) -> None:
    graphs = 0

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    schedule = RouteSchedule(from_share=0.5, ramp=0.5, levels=1)
    config = SelfDrawing((Route(1, -1),), schedule=schedule, total_steps=4)
    routing, eager = attach(model.blocks, drawing=config), copy.deepcopy(model)
    reference = attach(eager.blocks, drawing=config)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for kept in (12, 12, 8, 8):
        y = compiled(data())
        torch.testing.assert_close(eager(data()), y)
        ((route, subset),) = routing.draw
        assert torch.equal(index_of(reference.draw), subset.index)
        assert (route.start, route.stop, subset.n_kept, subset.length) == (1, 5, kept, N)
        routing.step()
        reference.step()
    assert graphs == 2
    with torch.no_grad():
        compiled(data())
        assert routing.draw == ()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("depth", "ends"), [(3, (1, 2)), (6, (1, 5)), (8, (2, 5)), (12, (2, 9)), (28, (2, 25))]
)
def test_the_default_route(depth: int, ends: tuple[int, int]) -> None:
    route = default_route(0.5, depth)
    assert (route.start, route.stop) == ends


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": 0.5, "drawing": SelfDrawing(())}, "give drop, or drawing"),
        ({"rows": ()}, "rows belong to a model"),
    ],
)
def test_contradictions(model: Stack, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(model.blocks, **arguments)


def test_step_belongs_to_self_drawing(model: Stack) -> None:
    with pytest.raises(ValueError, match="do not draw by themselves"):
        attach(model.blocks).step()
    with pytest.raises(ValueError, match="schedule needs total_steps"):
        SelfDrawing((), schedule=RouteSchedule())
    with pytest.raises(ValueError, match="needs at least 3 blocks"):
        default_route(0.5, 2)


# --- presets


def test_the_model_alone_is_enough_also_inside_a_wrapper() -> None:
    model = built(VIT).train()
    routing = attach(nn.ModuleDict({"inner": nn.Sequential(model)}), drop=0.5)
    CASES[VIT].run(model)
    ((route, subset),) = routing.draw
    assert (route.start, route.stop, subset.n_kept, subset.length) == (1, 4, 8, 16)


def test_a_class_without_a_row_is_told_how_to_write_one(model: Stack) -> None:
    message = r"no preset for tests.Stack; .*`blocks` \(6 x Block\).*rows=\(Blocks\('PATH'"
    with pytest.raises(ValueError, match=message):
        attach(model)
    with pytest.raises(ValueError, match=r"no list of blocks at `layers`; its lists .*`blocks`"):
        attach(model, rows=(Blocks("layers"),))
    with pytest.raises(ValueError, match=r"described by rows=\(Blocks"):
        attach(model, rows=(Blocks("blocks"),), per_token=("table",))
    routing = attach(model, rows=(Blocks("blocks", whole=("cond",)),))
    assert routing.depth == 6


def test_two_parts_with_routes() -> None:
    two = nn.ModuleDict({"a": built(VIT), "b": built(VIT)})
    with pytest.raises(ValueError, match=r"attach to one of them: model\.a, model\.b"):
        attach(two)


def test_every_row_is_well_formed() -> None:
    for name, rows in PRESETS.items():
        assert name.count(".") == 1 and rows
        for row in rows:
            assert row.path and len(row.returns or (0,)) == len(row.streams or (0,))


# --- verify


def test_verify_finds_the_argument_that_was_not_declared() -> None:
    eva, run = built(EVA), CASES[EVA].run
    routing = attach(eva.blocks, n_prefix=1, whole=("rope",))
    with pytest.raises(ValueError, match=r"block 0 \(EvaBlock\).*declare per_token=\{'rope': P"):
        routing.verify(lambda: run(eva))
    routing.detach()
    assert attach(eva).verify(lambda: run(eva)).startswith("5 of 5 blocks agree")


def test_verify_finds_a_wrong_declaration(model: Stack) -> None:
    class Headed(nn.Module):
        def forward(self, x: Tensor, rope: Tensor) -> Tensor:
            q = x + rope.mean(dim=0)
            return x + attention(q, q, x, None)

    block, x, rope = Headed(), data()[:2], torch.randn(2, N, D)
    routing = attach([block], per_token={"rope": "b n d"})  # its first dimension are heads
    with pytest.raises(
        ValueError, match=r"block 0 \(Headed\).*another order.*'rope': PerToken\('d0 n d2'\)"
    ):
        routing.verify(lambda: block(x, rope))


def test_verify_sees_through_gates_that_start_at_zero_and_leaves_everything_as_it_was() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.dropout = nn.Parameter(torch.zeros(D)), nn.Dropout(0.5)

        def forward(self, x: Tensor, rope: Tensor) -> Tensor:
            q = x + rope
            return x + self.gate * self.dropout(attention(q, q, x, None))

    block, rope = Gated(), torch.randn(N, D)
    routing = attach([block], whole=("rope",))
    with pytest.raises(ValueError, match=r"PerToken\('n d1 -> b n d1'\)"):
        routing.verify(lambda: block(data(), rope))
    routing.detach()
    routing = attach([block], per_token={"rope": "n d -> b n d"})
    routing.verify(lambda: block(data(), rope))
    assert not block.gate.any() and block.training and block.dropout.training


@pytest.mark.parametrize("first", [False, True])
def test_verify_of_joint_blocks_asks_for_the_grid(first: bool) -> None:
    torch.manual_seed(0)
    model = Model(first)
    x, text, rope = data(), torch.randn(BATCH, 5, D), torch.randn(N + 5, D)
    image: Any = "first" if first else "last"
    how = PerToken("n d -> b n d")
    rows = (
        Blocks("doubles", ("hidden",), (1,), {"rope": how}, image=image),
        Blocks("singles", per_token={"rope": how}, image=image, n_prefix=None),
    )
    routing = attach(model, rows=rows)
    with pytest.raises(ValueError, match=r"verify\(call, grid=\(rows, columns\)\)"):
        routing.verify(lambda: model(x, text, rope=rope))
    routing.verify(lambda: model(x, text, rope=rope), grid=GRID)
    routing.detach()
    other = PerToken("n d -> b n d", image="last" if first else "first")
    misplaced = Blocks("doubles", ("hidden",), (1,), {"rope": other}, image=image)
    routing = attach(model, rows=(misplaced, rows[1]))
    with pytest.raises(ValueError, match=r"block 0 \(Double\) gives something else"):
        routing.verify(lambda: model(x, text, rope=rope), grid=GRID)
    wrong = Blocks("singles", whole=("rope",), image=image, n_prefix=None)
    routing.detach()
    routing = attach(model, rows=(rows[0], wrong))
    with pytest.raises(ValueError, match=r"block 3 \(Single\) gives something else"):
        routing.verify(lambda: model(x, text, rope=rope), grid=GRID)
