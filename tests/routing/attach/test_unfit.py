"""Blocks that hold something which looks at where tokens stand are refused, or told the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.joint import BATCH, D, N, attention, draw, randn
from tread_ssm.routing import Frames, PerToken, Route, RoutePlan, Rows, attach


class Holds(nn.Module):
    """A block with something inside that looks at where tokens stand."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, height: int = 2, width: int = 6) -> Tensor:
        return x


class GPSA(nn.Module):
    """By the name of ConViT's attention, which takes the square root of the number of tokens."""


class RotaryEmbedding(nn.Module):
    """By a common name of modules that make positions of a length."""


class ShiftedWindowAttention(nn.Module):
    """By a common name of attention in windows."""


class Partitioned(nn.Module):
    """Attention in windows, as ViTDet's blocks know by an attribute."""

    window_size = 7


class Table(nn.Module):
    """A table for pairs of places, as BEiT's and Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (nn.Conv1d(D, D, 3, padding=1), r"holds `inner` \(Conv1d\), a convolution along the tok"),
        (nn.Conv2d(D, D, 1), "a 2-D convolution, and needs the grid of its tokens"),
        (nn.Conv3d(D, D, 3), "a 3-D convolution, and needs the grid"),
        (nn.AvgPool2d(2), "a 2-D convolution, and needs the grid"),
        (GPSA(), r"\(GPSA\), which works on windows or a square grid"),
        (ShiftedWindowAttention(), "works on windows"),
        (Partitioned(), "works on windows"),
        (RotaryEmbedding(), "seems to make positions inside the block.*closes_gaps=True"),
        (Table(), "seems to make positions inside"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_blocks_that_look_at_where_tokens_stand(inner: nn.Module, message: str) -> None:
    block = Holds(inner)
    with attach([block]).using(draw(1, 0, 1)), pytest.raises(ValueError, match=message):
        block(randn(BATCH, N, D))


class Cuts(nn.Module):
    """Takes as many entries of its own table as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(100, D))

    def forward(self, x: Tensor) -> Tensor:
        q = x + self.table[: x.shape[1]]
        return x + attention(q, q, x, None)


class CutsElsewhere(Cuts):
    """The same, in a method and by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return x + attention(q := self.placed(x, x.size(1)), q, x, None)

    def placed(self, x: Tensor, n: int) -> Tensor:
        table = self.table.to(x.dtype)
        return x + table[:n, :D]


class Numbers(nn.Module):
    """Numbers its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, D)

    def forward(self, x: Tensor) -> Tensor:
        q = x + self.table(torch.arange(x.shape[1], device=x.device))
        return x + attention(q, q, x, None)


class Windows(nn.Module):
    """Attention among neighbours, by reshaping alone."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        windows = x.reshape(batch * (tokens // 3), 3, D)
        return x + attention(windows, windows, windows, None).reshape(x.shape)


class Square(nn.Module):
    """Means over the rows of a square grid."""

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return x + x.unflatten(1, (side, -1)).mean(1, keepdim=True).expand(
            -1, side, -1, -1
        ).flatten(1, 2)


class Fixed(Cuts):
    """Cuts its table, and counts, without regard to the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        half = len(self.table) // 2
        q = x + self.table[:half].mean(0) + torch.arange(half).sum()
        return x + attention(q, q, x, None)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Cuts, r"positions.*self\.table\[:x\.shape\[1\]\]"),
        (CutsElsewhere, r"positions.*table\[:n, :D\]"),
        (Numbers, r"positions.*torch\.arange\(x\.shape\[1\], device=x\.device\)"),
        (Windows, r"windows or rows.*tokens // 3"),
        (Square, r"windows or rows.*x\.shape\[1\] \*\* 0\.5"),
    ],
)
def test_positions_and_windows_made_from_the_number_of_tokens(
    kind: type[nn.Module], line: str
) -> None:
    block, x = kind(), randn(BATCH, N, D)
    message = rf"block 0 \(Sequential\) makes {line}`"
    routing = attach([whole := nn.Sequential(block)])
    with routing.using(draw(1, 0, 1)), pytest.raises(ValueError, match=message):
        whole(x)
    with pytest.raises(ValueError, match=r"gives something else.*may make positions"):
        routing.verify(lambda: whole(x))


def test_what_does_not_vary_with_the_tokens_is_no_position() -> None:
    block, x = Fixed(), randn(BATCH, N, D)
    ((_, subset),) = drawn = draw(1, 0, 1)
    routing = attach([block])
    expected = subset.put(block(subset.take(x)), x)
    with routing.using(drawn):
        torch.testing.assert_close(block(x), expected)
    assert "1 of 1 blocks agree" in routing.verify(lambda: block(x))


class CutsArgument(nn.Module):
    """Takes as many entries of a table that it gets as there are tokens."""

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        q = x + rope[..., : x.shape[1], :]
        return x + attention(q, q, x, None)


def test_a_table_that_is_longer_than_the_stream_and_cut_inside_the_block() -> None:
    block, rope, x = CutsArgument(), randn(100, D), randn(BATCH, N, D, seed=1)
    ((_, subset),) = drawn = draw(1, 0, 1)
    routing = attach([block], per_token={"rope": "n d -> b n d"})
    message = r"`rope` has entries for 100 tokens, but the stream has 12.*image='first'"
    with routing.using(drawn), pytest.raises(ValueError, match=message):
        block(x, rope)
    routing.detach()
    routing = attach([block], whole=("rope",))
    with pytest.raises(ValueError, match=r"PerToken\('n d1 -> b n d1', image='first'\)"):
        routing.verify(lambda: block(x, rope))
    routing.detach()
    expected = subset.put(block(subset.take(x), rope[subset.index]), x)
    how = PerToken("n d -> b n d", image="first")
    routing = attach([block], per_token={"rope": how})
    with routing.using(drawn):
        torch.testing.assert_close(block(x, rope), expected)
    assert "1 of 1 blocks agree" in routing.verify(lambda: block(x, rope))


@pytest.mark.parametrize("inner", [nn.Conv1d(D, D, 1), nn.Linear(D, D), nn.LayerNorm(D)])
def test_blocks_that_do_not(inner: nn.Module) -> None:
    block = Holds(inner)
    with attach([block]).using(draw(1, 0, 1)):
        assert torch.equal(block(randn(BATCH, N, D)), randn(BATCH, N, D))


def test_scans_may_close_the_gaps() -> None:
    block = Holds(nn.Conv1d(D, D, 4, groups=D))
    with attach([block], closes_gaps=True).using(draw(1, 0, 1)):
        block(randn(BATCH, N, D))


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        ("convit_tiny", "blocks", r"makes positions.*in `attn`: `torch\.arange\(img_size"),
        ("hiera_tiny_224", "blocks", r"makes windows or rows.*in `attn`: `N // \(self\.q_stride"),
        ("volo_d1_224", "network.0", r"\(Outlooker\) is one itself, which works on windows"),
    ],
)
def test_timm_models_with_square_grids(model: str, path: str, message: str) -> None:
    import timm

    block = timm.create_model(model).get_submodule(path)[0]
    width = block.norm1.weight.shape[0]
    with attach([block]).using(draw(1, 0, 1)), pytest.raises(ValueError, match=message):
        block(randn(BATCH, N, width))


def test_sizes_of_the_grid_are_declared() -> None:
    block = Holds(nn.Identity())
    routing = attach([block])
    with (
        routing.using(draw(1, 0, 1)),
        pytest.raises(ValueError, match=r"told a size of the token grid, `height`=2.*grid_arg"),
    ):
        block(randn(BATCH, N, D), height=2, width=6)
    routing.detach()
    with attach([block], whole=("height", "width")).using(draw(1, 0, 1)):
        block(randn(BATCH, N, D), height=2, width=6)


def test_a_grid_that_is_not_the_block_s() -> None:
    routing = attach([block := Holds(nn.Conv2d(D, D, 3))], grid_arguments=("height", "width"))
    plan = RoutePlan((Route(0, 1, select=Rows()),), 1)
    with (
        routing.using(plan.draw(BATCH, (6, 2))),
        pytest.raises(ValueError, match=r"told a grid of \(2, 6\).*draw is for 6 x 2"),
    ):
        block(randn(BATCH, N, D), height=2, width=6)
    with routing.using(plan.draw(BATCH, (2, 6))):
        block(randn(BATCH, N, D), height=2, width=6)


def test_a_video_block_gets_the_frames_that_are_left() -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(D, D, 3, padding=1)

        def forward(self, x: Tensor, frames: int, height: int, width: int) -> Tensor:
            maps = x.transpose(1, 2).unflatten(2, (frames, height, width))
            return x + self.conv(maps).flatten(2).transpose(1, 2)

    torch.manual_seed(0)
    block, grid, x = Video(), (4, 2, 3), randn(BATCH, 24, D)
    drawn = RoutePlan((Route(0, 1, select=Frames()),), 1).draw(BATCH, grid)
    ((_, subset),) = drawn
    expected = subset.put(block(subset.take(x), 2, 2, 3), x)
    with attach([block], grid_arguments=("frames", "height", "width")).using(drawn):
        torch.testing.assert_close(block(x, 4, 2, 3), expected)
