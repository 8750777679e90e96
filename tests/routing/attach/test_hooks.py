"""What attach refuses, and that it works under compilation, checkpointing, autocast, processes."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.stack import BATCH, GRID, Block, D, N, Stack, data, drawn, plan, refused
from tread_ssm.routing import (
    Layout,
    PerToken,
    Route,
    RoutePlan,
    TokenSubset,
    attach,
    guided_by_routes,
    run_blocks,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


def test_it_is_run_blocks(model: Stack) -> None:
    routes = (Route(0, 2, rejoin="sum"), Route(2, 3, 0.25), Route(4, 6, 0.6, rejoin="input"))
    draw = plan(*routes).draw(BATCH, GRID)
    calls = [lambda x, cond, layout, b=b: b(x) for b in model.blocks]
    expected = run_blocks(calls, data(), None, Layout(GRID), draw)
    with attach(model.blocks).using(draw):
        torch.testing.assert_close(model(data()), expected, rtol=0, atol=0)


class ResidualBlock(nn.Module):
    """The classic block of Mamba language models: the sum is made at the next block's start."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(D), nn.GRU(D, D, batch_first=True)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual = hidden + residual
        return self.mix(self.norm(residual))[0], residual


def test_both_streams_of_blocks_with_a_residual_are_routed() -> None:
    torch.manual_seed(0)
    blocks = [ResidualBlock() for _ in range(5)]
    routes = (Route(0, 2, rejoin="input"), Route(3, 5, 0.7, rejoin="sum"))
    draw, x = RoutePlan(routes, 5).draw(BATCH, GRID), (data(1), data(2))
    calls = [lambda x, cond, layout, b=b: b(*x) for b in blocks]
    expected = run_blocks(calls, x, None, Layout(GRID), draw)
    with attach(blocks, streams=("hidden", "residual"), returns=(0, 1)).using(draw):
        for block in blocks:
            x = block(*x)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_nothing_of_the_model_changes_and_detaching_restores_it(model: Stack) -> None:
    dense, names = model(data()), list(model.state_dict())
    modules = list(model.named_modules())
    routing = attach(model.blocks)
    assert torch.equal(model(data()), dense)
    with routing.using(()):
        assert torch.equal(model(data()), dense)
    with routing.using(drawn()):
        assert not torch.allclose(model(data()), dense, atol=1e-6)
    assert list(model.state_dict()) == names and list(model.named_modules()) == modules
    routing.detach()
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in model.blocks)
    assert torch.equal(model(data()), dense)


# --- refusals


def test_a_draw_for_another_batch_or_grid(model: Stack) -> None:
    routing = attach(model.blocks)
    refused(routing, drawn(batch=2), model, r"draw is for 2 samples of 16.*stream has 3 of 16")
    other = plan().draw(BATCH, (4, 5))
    refused(routing, other, model, r"3 samples of 20 tokens.*n_prefix")


def test_a_forgotten_prefix(model: Stack) -> None:
    routing = attach(model.blocks, n_prefix=1)
    refused(routing, drawn(), model, r"stream has 3 of 15 beside 1 others")


def test_nested_and_double_use(model: Stack) -> None:
    routing = attach(model.blocks)
    with (
        routing.using(()),
        pytest.raises(ValueError, match="inside another `using`"),
        routing.using(drawn()),
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


def test_copies_by_pickling_stay_dense(model: Stack) -> None:
    routing, x = attach(model.blocks), data()
    copied = pickle.loads(pickle.dumps(model))
    with routing.using(drawn()):
        routed = model(x)
        dense = copied(x)
    assert torch.equal(dense, model(x)) and not torch.equal(routed, dense)


def test_using_without_the_blocks(model: Stack) -> None:
    routing, average = attach(model.blocks), copy.deepcopy(model)
    with pytest.raises(ValueError, match="none of the 6 blocks was called"), routing.using(drawn()):
        average(data())
    with pytest.raises(ZeroDivisionError), routing.using(drawn()):
        _ = 1 / 0


def test_a_model_compiled_and_run_before_is_not_silently_dense(model: Stack) -> None:
    compiled = torch.compile(model, backend="eager")
    compiled(data())
    routing = attach(model.blocks)
    with pytest.raises(ValueError, match=r"torch\.compiler\.reset"), routing.using(drawn()):
        compiled(data())
    torch.compiler.reset()
    with routing.using(drawn()):
        assert torch.allclose(compiled(data()), model(data()))
    routing.detach()
    assert torch.allclose(compiled(data()), model(data()))


def test_a_block_that_is_skipped_or_shared(model: Stack) -> None:
    routing, blocks = attach(model.blocks), list(model.blocks)
    for missing in (1, 4):
        x = data()
        with routing.using(drawn()), pytest.raises(ValueError, match=f"block {missing} before it"):
            for block in blocks[:missing] + blocks[missing + 1 :]:
                x = block(x)
    block = Block()
    with pytest.raises(ValueError, match=r"block 1 \(Block\).*stands twice"):
        attach([block, block])


def test_a_result_that_is_not_the_stream() -> None:
    class Joint(nn.Module):
        def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            return text, x

    block, draw = Joint(), RoutePlan((Route(0, 1),), 1).draw(BATCH, GRID)
    routing = attach([block])
    message = r"block 0 \(Joint\) returned \(3, 5, 8\) at place 0; expected.*\(3, 8, \.\.\.\)"
    with routing.using(draw), pytest.raises(ValueError, match=message):
        block(data(), torch.randn(BATCH, 5, D))


def test_routes_that_do_not_fit(model: Stack) -> None:
    deep = RoutePlan((Route(5, 8),), 9).draw(BATCH, GRID)
    with pytest.raises(ValueError, match="inside 6 blocks"), attach(model.blocks).using(deep):
        pass


def test_unknown_names(model: Stack) -> None:
    with pytest.raises(ValueError, match="no block has an argument `rope`; they have cond"):
        attach(model.blocks, per_token=("rope",))
    with pytest.raises(ValueError, match=r"1 streams, but returns=\(0, 1\)"):
        attach(model.blocks, returns=(0, 1))


# --- compile, autocast, processes


def test_one_graph_serves_all_draws_of_equal_size(model: Stack) -> None:
    graphs = 0

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    routing = attach(model.blocks, per_token={"table": PerToken("n d -> b n d")})
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


def test_two_processes_draw_for_themselves_and_a_rerun_draws_the_same() -> None:
    worker = Path(__file__).with_name("attach_processes.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker)]
    runs = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    found = []
    for run in runs:
        out, error = run.communicate(timeout=240)
        assert run.returncode == 0, error[-2000:]
        found.append(dict(re.findall(r"process (\d) drew ([0-9a-f]{64})", out)))
    assert found[0] == found[1] and found[0].keys() == {"0", "1"}
    assert found[0]["0"] != found[0]["1"]


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
    with pytest.raises(ValueError, match=r"weak_drop is 0\.5 and strong_drop 0\.5"):
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
