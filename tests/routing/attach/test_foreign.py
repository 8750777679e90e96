"""Attached routes on other people's models are what a hand-written loop over the blocks gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.foreign import BATCH, MODELS, Foreign
from tread_ssm.routing import Draw, Route, RoutePlan, attach
from tread_ssm.tokens import TokenSubset

ROUTES = {
    "one": (Route(1, -1),),
    "two, input and sum": (Route(0, 2, rejoin="input"), Route(3, 5, 0.7, rejoin="sum")),
    "one block": (Route(2, 3, 0.3),),
}


@pytest.fixture(params=list(MODELS))
def foreign(request: pytest.FixtureRequest) -> Foreign:
    torch.manual_seed(0)
    return MODELS[request.param]()


def draw_for(f: Foreign, routes: tuple[Route, ...], seed: int = 0) -> Draw:
    plan = RoutePlan(routes, len(f.blocks))
    batch = 1 if f.shared else BATCH
    return plan.draw(batch, f.grid, torch.Generator().manual_seed(seed))


def arguments_of_first_block(f: Foreign) -> dict[str, Any]:
    calls: list[dict[str, Any]] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(block.forward).parameters
        calls.append(dict(zip(names, args, strict=False)) | kwargs)

    handle = f.blocks[0].register_forward_pre_hook(record, with_kwargs=True)
    f.run(f.model)
    handle.remove()
    return calls[0]


def each(function: Any, *streams: Any) -> Any:
    if isinstance(streams[0], tuple):
        return tuple(function(*parts) for parts in zip(*streams, strict=True))
    return function(*streams)


def by_hand(f: Foreign, draw: Draw) -> Any:
    """The stream behind the last block."""
    call = arguments_of_first_block(f)
    x = call.pop(f.stream)
    if "residual" in call:
        x = (x, call.pop("residual"))
    beside = call.pop(f.beside) if f.beside else None
    first, start, kept, route = x, x, None, None
    n_prefix = f.attach.get("n_prefix", 0)
    for i, block in enumerate(f.blocks):
        for opened, subset in draw:
            if opened.start == i:
                rows = subset.index.expand(BATCH, -1)
                kept = TokenSubset(rows, subset.length)
                route, start = opened, x
                x = each(kept.with_prefix(n_prefix).take, x)
        x, beside = f.step(block, x, beside, call, kept)
        if kept is not None and route is not None and route.stop == i + 1:
            into = {"start": start, "input": first}.get(route.rejoin)
            if into is None:
                into = each(torch.add, start, first)
            x, kept = each(kept.with_prefix(n_prefix).put, x, into), None
    return x


def attached(f: Foreign, draw: Draw) -> Any:
    """The stream behind the last block, of the model's own forward pass."""
    found: list[Any] = []
    routing = attach(f.blocks, **f.attach)
    handle = f.blocks[-1].register_forward_hook(lambda m, a, out: found.append(out))
    with routing.using(draw):
        result = f.run(f.model)
    handle.remove()
    routing.detach()
    assert result.isfinite().all()
    out = found[0]
    if isinstance(out, tuple):
        streams = tuple(out[i] for i in f.attach["returns"])
        return streams if len(streams) > 1 else streams[0]
    return out


def gradients(f: Foreign, x: Any) -> list[Tensor]:
    loss = sum(t.square().sum() for t in (x if isinstance(x, tuple) else (x,)))
    assert isinstance(loss, Tensor)
    parameters = [p for b in f.blocks for p in b.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_outputs_and_gradients_are_the_hand_written_loop_s(
    foreign: Foreign, routes: tuple[Route, ...]
) -> None:
    draw = draw_for(foreign, routes)
    expected, got = by_hand(foreign, draw), attached(foreign, draw)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    wanted, found = gradients(foreign, expected), gradients(foreign, got)
    assert len(wanted) > len(foreign.blocks)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_routes_change_the_result_and_detaching_restores_it(foreign: Foreign) -> None:
    before = foreign.run(foreign.model)
    names, modules = list(foreign.model.state_dict()), list(foreign.model.named_modules())
    routing = attach(foreign.blocks, **foreign.attach)
    torch.testing.assert_close(foreign.run(foreign.model), before, rtol=0, atol=0)
    with routing.using(()):
        torch.testing.assert_close(foreign.run(foreign.model), before, rtol=0, atol=0)
    with routing.using(draw_for(foreign, ROUTES["one"])):
        assert not torch.allclose(foreign.run(foreign.model), before, atol=1e-6)
    assert list(foreign.model.state_dict()) == names
    assert list(foreign.model.named_modules()) == modules
    routing.detach()
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in foreign.blocks)
    torch.testing.assert_close(foreign.run(foreign.model), before, rtol=0, atol=0)


def test_checkpoints_of_the_library_give_the_same_gradients(foreign: Foreign) -> None:
    model: Any = foreign.model
    names = ("enable_gradient_checkpointing", "activation_checkpointing_enable")
    switch = next((getattr(model, n) for n in names if hasattr(model, n)), None)
    switch = switch or getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        pytest.skip("the library has no checkpoints for this model")
    if foreign.grid[0] == 1:
        model.train()  # transformers' layers checkpoint in training only
    routing, found = attach(foreign.blocks, **foreign.attach), []
    for checkpoints in (False, True):
        if checkpoints:
            switch()
        with routing.using(draw_for(foreign, ROUTES["two, input and sum"])):
            result = foreign.run(model)
        repeats = counted_calls(next(foreign.blocks[1].children()))
        found.append(gradients(foreign, result))
        assert (repeats() > 0) == checkpoints
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def counted_calls(part: nn.Module) -> Callable[[], int]:
    """Start counting the calls of a module; the result ends it."""
    calls: list[nn.Module] = []
    handle = part.register_forward_pre_hook(lambda module, args: calls.append(module))

    def end() -> int:
        handle.remove()
        return len(calls)

    return end


def test_order_of_the_kept_tokens_is_kept(foreign: Foreign) -> None:
    """Blocks inside a route see tokens by ascending position, whatever order ids came in."""
    (route, subset) = draw_for(foreign, ROUTES["one"])[0]
    shuffled = TokenSubset.of(subset.index.flip(1), subset.length)
    one, other = attached(foreign, ((route, subset),)), attached(foreign, ((route, shuffled),))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
