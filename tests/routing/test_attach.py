"""What attach refuses, and that it works under compilation, checkpointing, autocast, processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tread_ssm.routing import (
    Attached,
    Draw,
    Layout,
    PerToken,
    Route,
    RoutePlan,
    Rows,
    TokenSubset,
    attach,
    guided_by_routes,
    run_blocks,
)

GRID, N, D, BATCH = (4, 4), 16, 8, 3
ROOT = Path(__file__).parents[2]


class Block(nn.Module):
    """Attention that may get a table, a condition and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        table: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        q = x if table is None else x + table
        return x + self.attention(q, q, x, need_weights=False)[0] + (0 if skip is None else skip)


class Stack(nn.Module):
    """Six blocks."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.recompute = False

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, **arguments, use_reentrant=False)
            else:
                x = block(x, **arguments)
        return x


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


def plan(*routes: Route, depth: int = 6) -> RoutePlan:
    return RoutePlan(routes or (Route(1, -1),), depth)


def drawn(seed: int = 0, batch: int = BATCH, **route: Any) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return plan(Route(1, -1, **route)).draw(batch, GRID, generator)


def data(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, N, D, generator=torch.Generator().manual_seed(seed))


def refused(routing: Attached, draw: Draw, model: Stack, match: str, **arguments: Any) -> None:
    with routing.using(draw), pytest.raises(ValueError, match=match):
        model(data(), **arguments)


def test_it_is_run_blocks(model: Stack) -> None:
    routes = (Route(0, 2, rejoin="sum"), Route(2, 3, 0.25), Route(4, 6, 0.6, rejoin="input"))
    draw = plan(*routes).draw(BATCH, GRID)
    calls = [lambda x, cond, layout, b=b: b(x) for b in model.blocks]
    expected = run_blocks(calls, data(), None, Layout(GRID), draw)
    with attach(model.blocks).using(draw):
        torch.testing.assert_close(model(data()), expected, rtol=0, atol=0)


# --- refusals


def test_an_undeclared_argument_that_goes_by_tokens(model: Stack) -> None:
    table = torch.randn(N, D)
    message = r"block 1 \(Block\).*`table` has shape \(16, 8\).*per_token=.*whole="
    refused(attach(model.blocks), drawn(), model, message, table=table)


def test_one_table_for_samples_that_keep_other_tokens(model: Stack) -> None:
    routing = attach(model.blocks, per_token=("table",))
    message = r"`table` of shape \(16, 8\).*plan.draw\(1, grid\).*PerToken"
    refused(routing, drawn(), model, message, table=torch.randn(N, D))


@pytest.mark.parametrize("shape", [(N, D), (1, N, D), (BATCH, N, D)])
def test_a_declared_argument_goes_with_its_tokens(model: Stack, shape: tuple[int, ...]) -> None:
    table, draw = torch.randn(shape), drawn()
    routing = attach(model.blocks, per_token={"table": PerToken(per_sample="batch")})
    subset = draw[0][1]
    part = subset.take(table.expand(BATCH, N, D))
    calls = [
        lambda x, cond, layout, b=b: b(x, table=table if layout.index is None else part)
        for b in model.blocks
    ]
    expected = run_blocks(calls, data(), None, Layout(GRID), draw)
    with routing.using(draw):
        torch.testing.assert_close(model(data(), table=table), expected, rtol=1e-6, atol=1e-6)


def test_an_argument_that_only_looks_like_tokens_may_be_declared_whole(model: Stack) -> None:
    routing, draw = attach(model.blocks, whole=("cond",)), drawn()
    with routing.using(draw):
        with_condition = model(data(), cond=torch.zeros(BATCH, N, D))
        torch.testing.assert_close(with_condition, model(data()))


def test_a_skip_that_leaves_the_route(model: Stack) -> None:
    refused(attach(model.blocks), drawn(), model, r"`skip`.*long skip", skip=data())


def test_a_draw_for_another_batch_or_grid(model: Stack) -> None:
    routing = attach(model.blocks)
    refused(routing, drawn(batch=2), model, r"draw is for 2 samples of 16.*stream has 3 of 16")
    other = plan().draw(BATCH, (4, 5))
    refused(routing, other, model, r"3 samples of 20 tokens.*n_prefix")


def test_a_forgotten_prefix(model: Stack) -> None:
    routing = attach(model.blocks, n_prefix=1)
    refused(routing, drawn(), model, r"stream has 3 of 15 behind 1 prefix")


def test_nested_and_double_use(model: Stack) -> None:
    routing = attach(model.blocks)
    with (
        routing.using(drawn()),
        pytest.raises(ValueError, match="inside another `using`"),
        routing.using(()),
    ):
        pass
    with pytest.raises(ValueError, match=r"block 0 \(Block\) has routes already"):
        attach(model.blocks)
    routing.detach()
    attach(model.blocks).detach()


def test_a_deep_copy_stays_dense_and_can_have_routes_of_its_own(model: Stack) -> None:
    routing, draw, x = attach(model.blocks), drawn(), data()
    average = copy.deepcopy(model)
    dense = model(x)
    with routing.using(draw):
        assert torch.equal(average(x), dense)
        routed = model(x)
    assert not torch.equal(routed, dense)
    with attach(average.blocks).using(draw):
        assert torch.equal(average(x), routed)
        assert torch.equal(model(x), dense)


def test_a_block_that_fails_leaves_nothing_behind(model: Stack) -> None:
    routing, x = attach(model.blocks), data()
    draw, other = drawn(), drawn(seed=5)
    dense = model(x)
    with routing.using(other):
        expected = model(x)
    for failing in (0, 3):
        handle = model.blocks[failing].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), routing.using(draw):
            model(x)
        handle.remove()
        assert torch.equal(model(x), dense)
        with routing.using(other):
            assert torch.equal(model(x), expected)
            with torch.inference_mode():
                assert torch.equal(model(x), expected)


def test_several_passes_with_one_draw_add_up(model: Stack) -> None:
    routing, draw = attach(model.blocks), drawn()
    first, second = data(1), data(2)
    with routing.using(draw):
        together = model(first).square().sum() + model(second).square().sum()
    grads = torch.autograd.grad(together, list(model.parameters()))
    apart = []
    for x in (first, second):
        with routing.using(draw):
            y = model(x).square().sum()
        apart.append(torch.autograd.grad(y, list(model.parameters())))
    for got, a, b in zip(grads, *apart, strict=True):
        torch.testing.assert_close(got, a + b)


def test_routes_that_do_not_fit(model: Stack) -> None:
    deep = RoutePlan((Route(5, 8),), 9).draw(BATCH, GRID)
    with pytest.raises(ValueError, match="inside 6 blocks"), attach(model.blocks).using(deep):
        pass


def test_unknown_names(model: Stack) -> None:
    with pytest.raises(ValueError, match="no block has an argument `rope`; they have cond"):
        attach(model.blocks, per_token=("rope",))
    with pytest.raises(ValueError, match=r"1 streams, but returns=\(0, 1\)"):
        attach(model.blocks, returns=(0, 1))


class ConvBlock(nn.Module):
    """A depthwise convolution over the grid that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(D, D, 3, padding=1, groups=D)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        image = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return x + self.conv(image).flatten(2).transpose(1, 2)


class ConvStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, height=4, width=4)
        return x


def test_a_convolution_needs_a_rectangle() -> None:
    model = ConvStack()
    routing = attach(model.blocks, grid_arguments=("height", "width"))
    with (
        routing.using(drawn()),
        pytest.raises(ValueError, match=r"block 1 \(ConvBlock\).*2-D convolution.*rectangle"),
    ):
        model(data())
    draw = drawn(select=Rows())
    subset = draw[0][1]
    assert subset.grid == (2, 4)
    x = model.blocks[0](data(), 4, 4)
    inner = subset.take(x)
    for block in model.blocks[1:5]:
        inner = block(inner, 2, 4)
    expected = model.blocks[5](subset.put(inner, x), 4, 4)
    with routing.using(draw):
        torch.testing.assert_close(model(data()), expected)
    routing.detach()
    undeclared = attach(model.blocks)
    with undeclared.using(draw), pytest.raises(ValueError, match="name the arguments that hold"):
        model(data())


def test_windows_on_maps() -> None:
    block = nn.Conv2d(D, D, 1)
    routing = attach([block])
    draw = RoutePlan((Route(0, 1),), 1).draw(BATCH, GRID)
    with routing.using(draw), pytest.raises(ValueError, match=r"\(3, 8, 4, 4\).*4-D maps"):
        block(torch.randn(BATCH, D, 4, 4))


# --- checkpointing


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("routes", [(Route(1, -1),), (Route(2, 3),), (Route(0, 3, rejoin="sum"),)])
def test_recomputed_blocks_take_the_draw_of_their_own_forward_pass(
    model: Stack, routes: tuple[Route, ...]
) -> None:
    routing = attach(model.blocks)
    first, second = (plan(*routes).draw(BATCH, GRID) for _ in range(2))
    with routing.using(first):
        expected = gradients(model, model(data()))
    model.recompute = True
    with routing.using(first):
        y = model(data())
    with routing.using(second):
        model(data(2))  # another draw of the same size before the backward pass
        found = gradients(model, y)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_reentrant_checkpoints_are_refused(model: Stack) -> None:
    routing = attach(model.blocks)
    x = data().requires_grad_()
    with routing.using(drawn()):
        y = x
        for block in model.blocks:
            y = checkpoint(block, y, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        y.sum().backward()


def test_nothing_is_kept_alive(model: Stack) -> None:
    import gc
    import weakref

    routing = attach(model.blocks)
    model.recompute = True
    x = data().requires_grad_()
    with routing.using(plan(Route(1, 2), Route(3, 5)).draw(BATCH, GRID)):
        y = model(x)
    alive = weakref.ref(y)
    y.sum().backward()
    del y, x
    gc.collect()
    assert alive() is None
    assert all(len(kept) == 0 for kept in routing._forwards)


# --- compile, autocast, processes


def test_one_graph_serves_all_draws_of_equal_size(model: Stack) -> None:
    graphs = 0

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    routing = attach(model.blocks, per_token={"table": PerToken(per_sample="batch")})
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    table = torch.randn(N, D)
    for seed in range(3):
        with routing.using(drawn(seed)):
            y = compiled(data(seed), table=table)
            expected = model(data(seed), table=table)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    assert graphs == 1


def test_autocast(model: Stack) -> None:
    draw = drawn()
    calls = [lambda x, cond, layout, b=b: b(x) for b in model.blocks]
    with torch.autocast("cpu", torch.bfloat16):
        expected = run_blocks(calls, data(), None, Layout(GRID), draw)
        with attach(model.blocks).using(draw):
            y = model(data())
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_two_processes_and_accelerate() -> None:
    worker = Path(__file__).with_name("attach_processes.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker)]
    run = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("agree") == 2


# --- guidance


def test_guidance_by_routes(model: Stack) -> None:
    routing, routes = attach(model.blocks), plan()

    def denoise(x: Tensor, *, scale: float) -> Tensor:
        return model(x) * scale

    guided = guided_by_routes(
        denoise,
        routing,
        routes,
        GRID,
        1.7,
        weak_drop=0.75,
        strong_drop=0.25,
        generator=torch.Generator().manual_seed(3),
    )
    y = guided(data(), scale=2.0)
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for drop in (0.25, 0.75):
        with routing.using(routes.with_drop(drop).draw(BATCH, GRID, generator)):
            parts[drop] = denoise(data(), scale=2.0)
    expected = parts[0.75] + 1.7 * (parts[0.25] - parts[0.75])
    torch.testing.assert_close(y, expected)
    with pytest.raises(ValueError, match=r"strong_drop is 0\.5 and weak_drop 0\.5"):
        guided_by_routes(denoise, routing, routes, GRID, 2, weak_drop=0.5, strong_drop=0.5)


def test_subset_of_a_shared_draw_serves_every_sample(model: Stack) -> None:
    draw = drawn(batch=1)
    route, subset = draw[0]
    same = ((route, TokenSubset(subset.index.expand(BATCH, -1), N)),)
    with attach(model.blocks).using(draw):
        one = model(data())
    model2 = Stack()
    model2.load_state_dict(model.state_dict())
    with attach(model2.blocks).using(same):
        torch.testing.assert_close(model2(data()), one, rtol=0, atol=0)
