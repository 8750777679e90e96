"""Each row of the table of presets against a dense pass with the dropped keys hidden.

Where that is not the same (linear attention, convolutions, scans), a loop over the blocks by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.cases import BATCH, CASES, Case, built
from tests.routing.attach.masked import masked_dense
from tread_ssm.routing import (
    Draw,
    RandomTokens,
    Route,
    RoutePlan,
    Rows,
    SelfDrawing,
    TokenSubset,
    attach,
)
from tread_ssm.routing.attach.drawing import default_route, serves_the_batch
from tread_ssm.routing.attach.presets import PRESETS


def drawn(model: nn.Module, case: Case, routing: Any, *route: int, **options: Any) -> Draw:
    shared = any(serves_the_batch(how) for row in routing._rows for how in row.per_token.values())
    plan = RoutePlan((Route(*route, **options),), routing.depth)
    return plan.draw(1 if shared else BATCH, case.grid, torch.Generator().manual_seed(1))


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exact])
def test_outputs_and_gradients_are_those_of_the_dense_model_with_keys_hidden(name: str) -> None:
    model, case = built(name), CASES[name]
    dense = case.run(model)
    routing = attach(model)
    draw = drawn(model, case, routing, 1, -1)
    with routing.using(draw):
        found = case.run(model)
    returns = [None if row.returns is None else row.returns[0] for row in routing._rows]
    expected = masked_dense(
        routing.blocks, lambda: case.run(model), draw, case.image, returns, BATCH
    )
    assert not torch.allclose(found, dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    wanted, got = gradients(model, expected), gradients(model, found)
    for a, b in zip(wanted, got, strict=True):
        assert float((a - b).norm()) <= 3e-3 * float(a.norm()) + 1e-4
    assert "agree" in routing.verify(lambda: case.run(model), grid=case.grid)
    routing.detach()
    assert torch.equal(case.run(model), dense)


TABLES = {"rotary_emb", "position_embeddings", "position_ids", "original_hidden_states"}
MASKS = {"attention_mask", "causal_mask"}


def of_kept(value: Any, subset: TokenSubset) -> Any:
    """The kept tokens' part of what has (batch or 1, tokens, ...), and of masks for pairs."""
    if isinstance(value, tuple):
        return tuple(of_kept(v, subset) for v in value)
    if value is None:
        return None
    value = value.expand(BATCH, *value.shape[1:])
    if value.dim() == 4 and value.shape[1:3] == (1, subset.length):
        pairs = [m[:, ids][:, :, ids] for m, ids in zip(value, subset.index, strict=True)]
        return torch.stack(pairs)
    return subset.take(value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.exact])
def test_other_blocks_are_what_a_loop_by_hand_gives(name: str) -> None:
    model, case = built(name), CASES[name]
    routing = attach(model)
    grid = routing._rows[0].grid_arguments
    select = Rows() if grid else RandomTokens()
    ((route, subset),) = draw = drawn(model, case, routing, 1, -1, select=select)
    sizes = dict(zip(grid, subset.grid or (), strict=bool(grid)))
    with routing.using(draw):
        found = case.run(model)
    routing.detach()
    blocks, start = list(routing.blocks), []

    def before(i: int) -> Any:
        def hook(block: nn.Module, args: Any, kwargs: Any) -> Any:
            names = routing._names[i]
            values = dict(zip(names, args, strict=False)) | kwargs
            if i == route.start:
                start.append(values[names[0]])
                values[names[0]] = subset.take(values[names[0]])
            for table in sorted((TABLES | MASKS) & values.keys()):
                values[table] = of_kept(values[table], subset)
            return (), values | sizes

        return hook

    handles = [
        blocks[i].register_forward_pre_hook(before(i), with_kwargs=True)
        for i in range(route.start, route.stop)
    ]

    def behind(block: nn.Module, args: Any, output: Any) -> Any:
        single = isinstance(output, Tensor)
        whole = subset.put(output if single else output[0], start[0])
        return whole if single else (whole, *output[1:])

    handles.append(blocks[route.stop - 1].register_forward_hook(behind))
    expected = case.run(model)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(model, expected), gradients(model, found), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "diffusers.DiTTransformer2DModel",
        "diffusers.FluxTransformer2DModel",
        "diffusers.HiDreamImageTransformer2DModel",
        "diffusers.PixArtTransformer2DModel",
        "timm.Eva, EVA-02",
        "timm.VisionTransformer",
        "transformers.MambaModel",
    ],
)
def test_checkpoints_of_the_library_give_the_same_gradients(name: str) -> None:
    model, case, found = built(name), CASES[name], []
    model.train(case.grid[0] == 1)  # transformers' layers checkpoint in training only
    routing = attach(model)
    first = drawn(model, case, routing, 0, 2, rejoin="sum")
    draw = first + drawn(model, case, routing, 2, 5, drop=0.7)
    for checkpoints in (False, True):
        if checkpoints:
            enable_checkpoints(model)
        with routing.using(draw):
            y = case.run(model)
        repeats = counted_calls(next(routing.blocks[1].children()))
        found.append(gradients(model, y))
        assert (repeats() > 0) == checkpoints
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def enable_checkpoints(model: Any) -> None:
    names = (
        "enable_gradient_checkpointing",
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
        "set_grad_checkpointing",
    )
    next(getattr(model, name) for name in names if hasattr(model, name))()


def counted_calls(part: nn.Module) -> Callable[[], int]:
    """Start counting the calls of a module; the result ends it."""
    calls: list[nn.Module] = []
    handle = part.register_forward_pre_hook(lambda module, args: calls.append(module))

    def end() -> int:
        handle.remove()
        return len(calls)

    return end


TEXT_FROM_THE_START = ("Lumina2", "OmniGen", "ZImage")  # how many tokens are text, is unknown


@pytest.mark.parametrize("name", CASES)
def test_every_model_trains_in_three_lines(name: str) -> None:
    model, case = built(name).train(), CASES[name]
    routing = attach(model, drop=0.5)
    if any(part in name for part in TEXT_FROM_THE_START):
        with pytest.raises(ValueError, match=r"grid is unknown.*SelfDrawing\(routes, grid="):
            case.run(model)
        routing.detach()
        drawing = SelfDrawing((default_route(0.5, routing.depth),), grid=case.grid)
        routing = attach(model, drawing=drawing)
    case.run(model).square().mean().backward()
    ((route, subset),) = routing.draw
    assert (route.start, route.stop) == (1, routing.depth - 1)
    assert 2 * subset.n_kept == subset.length == math.prod(case.grid)
    routing.step()
    assert torch.isfinite(case.run(model.eval())).all() and routing.draw == ()


def test_a_model_with_convolutions_needs_rows() -> None:
    name = "diffusers.SanaTransformer2DModel"
    model = built(name).train()
    attach(model, drawing=SelfDrawing((Route(1, -1),)))
    with pytest.raises(ValueError, match=r"needs the grid of its tokens.*\(Rows\)"):
        CASES[name].run(model)


def test_every_row_has_a_case() -> None:
    assert set(PRESETS) == {name.split(",")[0] for name in CASES}
