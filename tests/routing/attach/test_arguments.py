"""Arguments that go by tokens follow the route where they are declared, and are refused if not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.stack import BATCH, GRID, D, N, Stack, data, drawn, refused
from tread_ssm.routing import Layout, PerToken, Route, RoutePlan, Rows, attach, run_blocks


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


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
    dims = "n d -> b n d | b n d"
    routing = attach(model.blocks, per_token={"table": PerToken(dims)})
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


class Wrapper(nn.Module):
    """As wrappers for checkpoints and compilation do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Loose(nn.Module):
    """A block that takes anything."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


class Named(NamedTuple):
    cos: Tensor
    sin: Tensor


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("argument 3", (None, torch.zeros(N, D)), {}),
        ("rope", (), {"rope": torch.zeros(N, D)}),
        ("rope", (), {"rope": {"cos": torch.zeros(N, D)}}),
        ("rope", (), {"rope": Named(torch.zeros(1), torch.zeros(N, D))}),
        ("rope", (), {"rope": torch.zeros(5 + N, D), "text": torch.zeros(BATCH, 5, D)}),
    ],
)
def test_undeclared_arguments_hide_nowhere(name: str, args: Any, kwargs: Any) -> None:
    block, draw = Loose(), RoutePlan((Route(0, 1),), 1).draw(BATCH, GRID)
    routing = attach([block])
    with routing.using(draw), pytest.raises(ValueError, match=f"block 0.*`{name}` has shape"):
        block(data(), *args, **kwargs)


def test_wrapped_blocks_have_the_names_of_what_they_wrap(model: Stack) -> None:
    draw, table = drawn(), torch.randn(BATCH, N, D)
    with attach(model.blocks, per_token={"table": "b n d"}).using(draw):
        expected = model(data(), table=table)
    wrapped = Stack()
    wrapped.load_state_dict(model.state_dict())
    wrapped.blocks = nn.ModuleList(Wrapper(b) for b in wrapped.blocks)
    with attach(wrapped.blocks, per_token={"table": "b n d"}).using(draw):
        torch.testing.assert_close(wrapped(data(), table=table), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(N, N), (BATCH * 2, N, N)])
def test_a_mask_for_pairs_of_tokens(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True) for _ in range(3)]
    mask, draw = torch.randn(shape), RoutePlan((Route(1, 2),), 3).draw(1, GRID)
    (_, subset), x = draw[0], layers[0](data(), mask)
    ids = subset.index[0]
    inner = layers[1](x[:, ids], mask[..., ids, :][..., ids])
    expected = layers[2](x.index_copy(1, ids, inner), mask)
    routing = attach(layers, per_token={"src_mask": PerToken("n n | bh n n")})
    y = data()
    with routing.using(draw):
        for layer in layers:
            y = layer(y, mask)
    torch.testing.assert_close(y, expected)


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
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(D, GRID, num_heads=2, window_size=2)
    routing = attach([block])
    draw = RoutePlan((Route(0, 1),), 1).draw(BATCH, GRID)
    with (
        routing.using(draw),
        pytest.raises(ValueError, match=r"SwinTransformerBlock.*\(3, 4, 4, 8\).*4-D"),
    ):
        block(torch.randn(BATCH, 4, 4, D))
