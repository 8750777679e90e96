"""Models of diffusers where it was easy to go wrong: equal sizes, texts, skips, forms, videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.cases import BATCH, CASES, built
from tests.routing.attach.cases.case import places, randn, sample
from tests.routing.attach.masked import masked_dense
from tread_ssm import Layout, run_blocks
from tread_ssm.routing import Draw, Frames, Route, RoutePlan, Rows, Tubes, attach
from tread_ssm.routing.attach.arguments import for_batch
from tread_ssm.routing.attach.hooks import Attached
from tread_ssm.routing.attach.presets import PRESETS
from tread_ssm.routing.select import Select

DIT, FLUX, HUNYUAN, OMNIGEN, WAN = (
    f"diffusers.{name}"
    for name in (
        "DiTTransformer2DModel",
        "FluxTransformer2DModel",
        "HunyuanDiT2DModel",
        "OmniGenTransformer2DModel",
        "WanTransformer3DModel",
    )
)


def draw(
    routing: Attached, *route: int, batch: int = BATCH, grid: tuple[int, ...] = (4, 4), **more: Any
) -> Draw:
    plan = RoutePlan((Route(*route, **more),), routing.depth)
    return plan.draw(batch, grid, torch.Generator().manual_seed(1))


def assert_masked(
    model: nn.Module,
    routing: Attached,
    run: Callable[[nn.Module], Any],
    drawn: Draw,
    image: str,
    batch: int = BATCH,
) -> None:
    """The routed pass is the dense one with the dropped keys hidden."""
    with routing.using(drawn):
        found = run(model)
    returns = [None if row.returns is None else row.returns[0] for row in routing._rows]
    expected = masked_dense(routing.blocks, lambda: run(model), drawn, image, returns, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- sizes alone never decide


def flux(batch: int, n_text: int, grid: tuple[int, int]) -> Callable[[nn.Module], Any]:
    n = grid[0] * grid[1]
    return sample(
        hidden_states=randn(batch, n, 4),
        encoder_hidden_states=randn(batch, n_text, 12, seed=1),
        pooled_projections=randn(batch, 10, seed=2),
        timestep=torch.full((batch,), 0.3),
        img_ids=places(n),
        txt_ids=torch.zeros(n_text, 3),
    )


def qwen(batch: int, n_text: int, grid: tuple[int, int]) -> Callable[[nn.Module], Any]:
    return sample(
        hidden_states=randn(batch, grid[0] * grid[1], 4),
        encoder_hidden_states=randn(batch, n_text, 12, seed=1),
        encoder_hidden_states_mask=torch.ones(batch, n_text, dtype=torch.bool),
        timestep=torch.full((batch,), 0.3),
        img_shapes=[[(1, *grid)]] * batch,
    )


def sd3(batch: int, n_text: int, grid: tuple[int, int]) -> Callable[[nn.Module], Any]:
    return sample(
        hidden_states=randn(batch, 4, 2 * grid[0], 2 * grid[1]),
        encoder_hidden_states=randn(batch, n_text, 12, seed=1),
        pooled_projections=randn(batch, 10, seed=2),
        timestep=torch.full((batch,), 300),
    )


def hunyuan_image(batch: int, n_text: int, grid: tuple[int, int]) -> Callable[[nn.Module], Any]:
    return sample(
        hidden_states=randn(batch, 4, *grid),
        encoder_hidden_states=randn(batch, n_text, 12, seed=1),
        encoder_attention_mask=torch.arange(n_text)[None] < torch.arange(2, batch + 2)[:, None],
        timestep=torch.full((batch,), 300.0),
    )


@pytest.mark.parametrize(
    ("name", "inputs", "image", "n_drawn"),
    [
        (FLUX, flux, "last", 1),
        ("diffusers.QwenImageTransformer2DModel", qwen, "last", 1),
        ("diffusers.SD3Transformer2DModel", sd3, "first", None),
        ("diffusers.HunyuanImageTransformer2DModel", hunyuan_image, "first", 1),
    ],
)
def test_buckets_of_any_size_one_after_the_other(
    name: str, inputs: Any, image: str, n_drawn: int | None
) -> None:
    """Also as many tokens as channels (24), as samples, and as text has."""
    model = built(name)
    routing = attach(model)
    for batch, n_text, grid in (
        (2, 5, (4, 6)),
        (8, 7, (2, 4)),
        (2, 16, (4, 4)),
        (3, 24, (6, 4)),
        (2, 8, (4, 4)),
    ):
        drawn = draw(routing, 1, -1, batch=n_drawn or batch, grid=grid)
        assert_masked(model, routing, inputs(batch, n_text, grid), drawn, image, batch)


def test_flux_without_returns_and_a_text_as_long_as_what_is_kept() -> None:
    model, run = built(FLUX), flux(BATCH, 8, (4, 4))
    routing = attach(model, rows=[replace(row, returns=None) for row in PRESETS[FLUX]])
    with (
        pytest.raises(
            ValueError, match=r"\(2, 8, 24\) at place 0; .*2 tensors could be it.*\(1,\)"
        ),
        routing.using(draw(routing, 1, 2, batch=1)),
    ):
        run(model)


# --- forms of tables


@pytest.mark.parametrize("name", [HUNYUAN, OMNIGEN])
def test_models_that_take_no_table_for_each_sample(name: str) -> None:
    """What the refusal proposes is right where it can be, and verify finds a form that runs."""
    model, case = built(name), CASES[name]
    routing = attach(model)
    each = draw(routing, 1, 3)
    with pytest.raises(ValueError, match=r"plan\.draw\(1, grid\)"), routing.using(each):
        case.run(model)
    with routing.using(draw(routing, 1, 3, batch=1)):
        case.run(model)
    routing.detach()
    for dims in ("n d -> b n d", "n d -> b 1 n d"):
        rows = [
            replace(row, per_token={**row.per_token, "image_rotary_emb": dims})
            for row in PRESETS[name]
        ]
        routing = attach(model, rows=rows)
        message = "behind the arrow of `image_rotary_emb` is not a form.*declare no arrow"
        with pytest.raises(ValueError, match=message):
            routing.verify(lambda: case.run(model), grid=case.grid)
        routing.detach()


# --- long skips


@pytest.mark.parametrize("route", [(1, 3), (0, 2), (3, 5), (2, 6), (1, 5)], ids=str)
def test_skips_of_hunyuan_that_cross_a_route_s_end(route: tuple[int, int]) -> None:
    model: Any = built(HUNYUAN)
    first: list[tuple[Tensor, dict[str, Any]]] = []
    last: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(
        lambda block, args, kwargs: first.append((args[0], kwargs)), with_kwargs=True
    )
    routing = attach(model)
    model.blocks[-1].register_forward_hook(lambda block, args, y: last.append(y))
    ((taken, one),) = drawn = draw(routing, *route, batch=1)
    with routing.using(drawn):
        CASES[HUNYUAN].run(model)
    routing.detach()
    (x, got), found = first[0], last[0]
    rope = got.pop("image_rotary_emb")
    part = tuple(table[one.index[0]] for table in rope)

    def called(block: nn.Module) -> Any:
        def call(x: Tensor, cond: Any, layout: Layout, skip: Tensor | None = None) -> Tensor:
            tables = rope if layout.index is None else part
            y: Tensor = block(x, **got, image_rotary_emb=tables, skip=skip)
            return y

        return call

    blocks = [called(block) for block in routing.blocks]
    each = ((taken, for_batch(one, BATCH)),)
    expected = run_blocks(blocks, x, None, Layout((4, 4)), each, skips=((1, 4), (0, 5)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_skip_of_hunyuan_that_is_not_declared_is_named() -> None:
    model, run = built(HUNYUAN), CASES[HUNYUAN].run
    routing = attach(model, rows=[replace(row, skips=()) for row in PRESETS[HUNYUAN]])
    for route, kind, message in (
        ((3, 5), ValueError, r"`skip` has shape.*long skip"),
        ((1, 3), RuntimeError, r"block 4(.|\n)*outside the routes.*skips=(.|\n)*`skip` \(2, 8, 24"),
    ):
        with pytest.raises(kind, match=message), routing.using(draw(routing, *route, batch=1)):
            run(model)


# --- grids


@pytest.mark.parametrize("select", [Frames(), Tubes(), Rows()], ids=str)
def test_frames_tubes_and_rows_of_a_video(select: Select) -> None:
    model, case = built(WAN), CASES[WAN]
    routing = attach(model)
    drawn = draw(routing, 1, -1, grid=case.grid, select=select)
    assert drawn[0][1].n_kept == 8 and drawn[0][1].length == 16
    assert_masked(model, routing, case.run, drawn, "last")


@pytest.mark.parametrize("name", ["SanaTransformer2DModel", "SanaVideoTransformer3DModel"])
def test_a_draw_for_another_grid_than_sana_s(name: str) -> None:
    model, case = built(f"diffusers.{name}"), CASES[f"diffusers.{name}"]
    routing = attach(model)
    other = (2, 8) if len(case.grid) == 2 else (4, 2, 2)
    drawn = draw(routing, 1, -1, grid=other, select=Rows())
    with pytest.raises(ValueError, match=r"told a grid of .*draw is for"), routing.using(drawn):
        case.run(model)
