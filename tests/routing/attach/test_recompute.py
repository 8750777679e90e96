"""Checkpoints repeat the forward pass that they belong to, whatever is drawn meanwhile."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.routing.attach.stack import BATCH, GRID, D, N, Stack, data, drawn, plan
from tread_ssm.routing import Route, attach


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("stretch", [1, 2, 4, 6])
@pytest.mark.parametrize(
    "routes",
    [
        (Route(1, -1),),
        (Route(2, 3),),
        (Route(0, 3, rejoin="sum"), Route(3, 5, rejoin="input")),
    ],
)
def test_recomputed_blocks_take_the_draw_of_their_own_forward_pass(
    model: Stack, routes: tuple[Route, ...], stretch: int
) -> None:
    """A block in each checkpoint, several, or all."""
    routing = attach(model.blocks, per_token={"table": "b n d"})
    table = torch.randn(BATCH, N, D)
    first, second = (plan(*routes).draw(BATCH, GRID) for _ in range(2))
    with routing.using(first):
        expected = gradients(model, model(data(), table=table))
    model.recompute = stretch
    with routing.using(first):
        y = model(data(), table=table)
    with routing.using(second):
        model(data(2), table=table)  # another draw of the same size before the backward pass
        found = gradients(model, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_dense_and_routed_passes_in_one_backward(model: Stack) -> None:
    routing, draw = attach(model.blocks), drawn()

    def both() -> Tensor:
        with routing.using(draw):
            y = model(data())
        return torch.cat([y, model(data(2))])

    expected = gradients(model, both())
    for stretch in (1, 3):
        model.recompute = stretch
        torch.testing.assert_close(gradients(model, both()), expected, rtol=1e-5, atol=1e-6)


def test_one_tensor_under_two_draws(model: Stack) -> None:
    routing, x = attach(model.blocks), data()
    model.recompute = 1
    for seed in range(2):  # one after the other is all right
        with routing.using(drawn(seed)):
            y = model(x)
        gradients(model, y)
    with routing.using(drawn(2)):
        y = model(x)
    with routing.using(drawn(3)):
        model(x)
    with pytest.raises(ValueError, match=r"block 0 \(Block\).*two draws.*clone"):
        gradients(model, y)


def test_blocks_compiled_by_themselves(model: Stack) -> None:
    plain, first, second = copy.deepcopy(model), drawn(0), drawn(1)
    with attach(plain.blocks).using(first):
        expected = gradients(plain, plain(data()))
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    routing = attach(model.blocks)
    for model.recompute in (0, 1, 2):
        with routing.using(first):
            y = model(data())
        with routing.using(second):
            model(data(2))
            found = gradients(model, y)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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
    routing = attach(model.blocks)
    model.recompute = 1
    x = data().requires_grad_()
    with routing.using(plan(Route(1, 2), Route(3, 5)).draw(BATCH, GRID)):
        y = model(x)
    alive = weakref.ref(y)
    y.sum().backward()
    del y, x
    gc.collect()
    assert alive() is None
    assert all(len(kept) == 0 for kept in routing._repeats._passes)
