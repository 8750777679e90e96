"""Where the image stands and which dimension is which is declared, never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.joint import BATCH, GRID, D, Model, N, attention, draw, randn
from tests.routing.attach.stack import Stack
from tread_ssm.routing import Blocks, PerToken, Route, RoutePlan, attach
from tread_ssm.tokens import TokenSubset

# --- joint streams, tables and masks


def rows(first: bool, **tables: Any) -> tuple[Blocks, ...]:
    image: Any = "first" if first else "last"
    per_token = {"rope": "b n d", "mask": "b 1 1 n"} | tables
    return (
        Blocks("doubles", ("hidden",), (1,), per_token, image=image),
        Blocks("singles", per_token=per_token, image=image, n_prefix=None),
    )


@pytest.mark.parametrize("first", [False, True], ids=["image last", "image first"])
@pytest.mark.parametrize("route", [(1, 3), (3, 5), (1, 5), (0, 6)], ids=str)
@pytest.mark.parametrize("n_text", [5, N, 6], ids="{} text tokens".format)
def test_joint_blocks_are_attention_with_dropped_keys_masked(
    first: bool, route: tuple[int, int], n_text: int
) -> None:
    """One route may span blocks with the image alone and with both; no text is dropped."""
    torch.manual_seed(0)
    model = Model(first).double()
    x, text = randn(BATCH, N, D).double(), randn(BATCH, n_text, D, seed=1).double()
    mask = torch.rand(BATCH, 1, 1, N + n_text, generator=torch.Generator().manual_seed(3)) > 0.2
    mask[:, :, :, :1], mask[..., -1:] = True, True
    tables = {"rope": randn(BATCH, N + n_text, D, seed=2).double(), "mask": mask}
    drawn = draw(6, *route)
    expected = model.masked(x, text, drawn[0][1].mask(), *route, **tables)
    with attach(model, rows=rows(first)).using(drawn):
        found = model(x, text, **tables)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = [torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-9)


def test_images_that_begin_elsewhere_in_each_sample() -> None:
    torch.manual_seed(0)
    model, offsets = Model(False), torch.tensor([1, 4, 0])
    both, drawn, rope = randn(BATCH, N + 4, D), draw(3, 1, 2), randn(N + 4, D, seed=1)
    kept = torch.ones(BATCH, N + 4, dtype=torch.bool)
    for b, o in enumerate(offsets.tolist()):
        kept[b, o : o + N] = drawn[0][1].mask()[b]
    a, b, c = model.singles
    x = a(both, rope)
    x = torch.where(kept[..., None], b(x, rope, kept[:, None, None]), x)
    expected = c(x, rope)
    routing = attach(model.singles, n_prefix=None, per_token={"rope": "n d -> b n d"})
    with routing.using(drawn, offsets=offsets):
        found = c(b(a(both, rope), rope), rope)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_stream_with_text_is_not_taken_for_one_with_a_prefix() -> None:
    """The remedy asks on which side the text stands: a wrong answer would drop it."""
    blocks, x = Model(True).singles, randn(BATCH, N + 5, D)
    routing = attach(blocks)
    message = r"3 of 17 beside 0 others.*n_prefix \(None: any number\), and image='first' if"
    with routing.using(draw(3, 1, 2)), pytest.raises(ValueError, match=message):
        blocks[1](blocks[0](x))


# --- dimensions


class Biased(nn.Module):
    """Attention with a bias for each head and pair, or a table for each head."""

    def forward(self, x: Tensor, bias: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        q = x if rope is None else x + rope.mean(dim=-3)
        return x + attention(q, q, x, bias)


@pytest.mark.parametrize("batch", [2, 3])
def test_heads_are_not_samples_even_where_both_are_two(batch: int) -> None:
    bias, x = randn(2, N, N), randn(batch, N, D, seed=1)
    ((_, subset),) = drawn = draw(1, 0, 1, batch=batch)
    block = Biased()
    part = torch.stack([bias[:, ids][:, :, ids] for ids in subset.index])
    expected = subset.put(block(subset.take(x), bias=part), x)
    with attach([block], per_token={"bias": "h n n -> b h n n"}).using(drawn):
        torch.testing.assert_close(block(x, bias=bias), expected)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_table_for_each_head(batch: int) -> None:
    rope, x = randn(2, N, D), randn(batch, N, D, seed=1)
    ((_, subset),) = drawn = draw(1, 0, 1, batch=batch)
    block = Biased()
    part = torch.stack([rope[:, ids] for ids in subset.index])
    expected = subset.put(block(subset.take(x), rope=part), x)
    with attach([block], per_token={"rope": "h n d -> b h n d"}).using(drawn):
        torch.testing.assert_close(block(x, rope=rope), expected)


@pytest.mark.parametrize(
    ("declared", "shape", "message"),
    [
        ("n d", (2, N, D), r"PerToken\('n d'\), but has shape \(2, 12, 8\); name its 3 dim"),
        ("h n d", (2, N, D), r"one table for the whole batch, but each of the 2.*plan.draw\(1,"),
        ("b n d", (3, N, D), r"PerToken\('b n d'\), but has shape \(3, 12, 8\) for a batch of 2"),
        ("h n d", (2, N - 1, D), "for 12 image tokens"),
        (("n d", None), (2, N, D), "is declared as 2 tables, but is a tensor"),
    ],
)
def test_a_table_that_is_not_what_was_declared(
    declared: Any, shape: tuple[int, ...], message: str
) -> None:
    block = Biased()
    with (
        attach([block], per_token={"rope": declared}).using(draw(1, 0, 1, batch=2)),
        pytest.raises(ValueError, match=message),
    ):
        block(randn(2, N, D), rope=randn(*shape))


@pytest.mark.parametrize(
    "dims", ["d", "n n d d", "b n b", "n d -> n b", "b n -> b n", "n -> b -> c"]
)
def test_dimensions_that_mean_nothing(dims: str) -> None:
    with pytest.raises(ValueError, match="name the dimensions by words"):
        PerToken(dims)


def test_tables_of_all_forms_are_taken_along_the_tokens() -> None:
    from tread_ssm.routing.attach.per_token import take

    ((_, subset),) = draw(1, 0, 1)
    index = subset.index
    tables = {
        "n": randn(N),
        "b n": randn(BATCH, N),
        "n b d": randn(N, BATCH, D),
        "c b n": randn(3, BATCH, N),
        "b h n n": randn(BATCH, 2, N, N),
    }
    rows = range(BATCH)
    expected = {
        "b n": torch.stack([tables["b n"][b, index[b]] for b in rows]),
        "n b d": torch.stack([tables["n b d"][index[b], b] for b in rows], dim=1),
        "c b n": torch.stack([tables["c b n"][:, b, index[b]] for b in rows], dim=1),
        "b h n n": torch.stack([tables["b h n n"][b][:, index[b]][:, :, index[b]] for b in rows]),
    }
    for dims, part in expected.items():
        assert torch.equal(take(tables[dims], PerToken(dims), subset, BATCH, "last", ""), part)
    for dims, shape in {"n -> b n": (3, 6), "n -> b 1 n 1": (3, 1, 6, 1)}.items():
        part = take(tables["n"], PerToken(dims), subset, BATCH, "last", "")
        assert part.shape == shape and torch.equal(part.flatten(1), tables["n"][index])
    nested = {"a": (tables["b n"], None), "b": [tables["b n"]]}
    got = take(nested, PerToken("b n"), subset, BATCH, "last", "")
    assert torch.equal(got["a"][0], expected["b n"]) and got["a"][1] is None


# --- sizes alone never decide


class Text(nn.Module):
    """Cross-attention to a text and a shift by a condition."""

    def forward(self, x: Tensor, context: Tensor, temb: Tensor) -> Tensor:
        return x + attention(x, context, context, None) + temb[:, None]


@pytest.mark.parametrize(("batch", "n_text", "width"), [(3, 5, N), (N, 5, 8), (3, N, 8), (N, N, N)])
def test_text_may_have_any_size(batch: int, n_text: int, width: int) -> None:
    block, x = Text(), randn(batch, N, width)
    arguments = randn(batch, n_text, width, seed=1), randn(batch, width, seed=2)
    ((_, subset),) = drawn = draw(1, 0, 1, batch=batch)
    expected = subset.put(block(subset.take(x), *arguments), x)
    with attach([block]).using(drawn):
        torch.testing.assert_close(block(x, *arguments), expected)


def test_tuples_ranks_and_functions_are_declared_each() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor, ropes: Any, mask: Tensor, place: Tensor) -> Tensor:
            assert ropes[1].shape == (5, D)
            return x * ropes[0] + mask.reshape(*mask.shape[:1], -1)[:, :, None] + place[..., None]

    x, rope, text = randn(BATCH, N, D), randn(BATCH, N, D, seed=1), randn(5, D)
    place = torch.arange(N)
    per_token: dict[str, Any] = {
        "ropes": ("b n d", None),
        "mask": "b n | b 1 1 n",
        "place": lambda value, index: value[index],
    }
    block = Several()
    routing, ((_, subset),) = attach([block], per_token=per_token), draw(1, 0, 1)
    for mask in (randn(BATCH, N, seed=4), randn(BATCH, 1, 1, N, seed=4)):
        part = subset.take(mask.reshape(BATCH, N))
        inner = block(subset.take(x), (subset.take(rope), text), part, subset.index)
        with routing.using(draw(1, 0, 1)):
            found = block(x, (rope, text), mask, place)
        torch.testing.assert_close(found, subset.put(inner, x))


class Rotary(nn.Module):
    """Adds a table that it makes of the number of tokens, or what it is given."""

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        return x + (torch.arange(x.shape[1]).sin()[:, None] if table is None else table)


class TakesModule(nn.Module):
    """Gets its positions as a module."""

    def forward(self, x: Tensor, rope: Any) -> Tensor:
        return x + attention(rope(x), rope(x), x, None)


def test_a_rotary_module_as_an_argument_is_declared_by_a_function() -> None:
    block, rope, x = TakesModule(), Rotary(), randn(BATCH, N, D)
    ((_, subset),) = drawn = draw(1, 0, 1)
    routing = attach([block])
    message = r"`rope` is a module \(Rotary\).*per_token=\{'rope': lambda module, index"
    with routing.using(drawn), pytest.raises(ValueError, match=message):
        block(x, rope)
    routing.detach()
    routing = attach([block], whole=("rope",))
    with pytest.raises(ValueError, match=r"block 0 \(TakesModule\) gives something else"):
        routing.verify(lambda: block(x, rope))
    routing.detach()
    routing = attach(
        [block],
        per_token={"rope": lambda module, index: lambda x: module(x, index.sin()[..., None])},
    )
    table = subset.index.sin()[..., None]
    expected = subset.put(block(subset.take(x), lambda x: rope(x, table)), x)
    with routing.using(drawn):
        torch.testing.assert_close(block(x, rope), expected)
    assert "1 of 1 blocks agree" in routing.verify(lambda: block(x, rope))


# --- streams of other layouts


def test_tokens_before_the_batch() -> None:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(D, 2, 16, 0.0) for _ in range(3)]
    x = randn(N, N, D)  # tokens, batch
    drawn = RoutePlan((Route(1, 2),), 3).draw(N, GRID)
    ((_, subset),) = drawn
    routing = attach(layers)
    with routing.using(drawn), pytest.raises(ValueError, match=r"both 12.*sequence_first=True"):
        layers[1](layers[0](x))
    routing.detach()
    whole = layers[0](x).transpose(0, 1)
    inner = layers[1](subset.take(whole).transpose(0, 1)).transpose(0, 1)
    expected = layers[2](subset.put(inner, whole).transpose(0, 1))
    with attach(layers, sequence_first=True).using(drawn):
        torch.testing.assert_close(layers[2](layers[1](layers[0](x))), expected)


def test_packed_lengths_are_not_passed_on() -> None:
    class Packed(nn.Module):
        def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
            return x

    block = Packed()
    with attach([block]).using(draw(1, 0, 1)), pytest.raises(ValueError, match="`cu_seqlens` has"):
        block(randn(BATCH, N, D), torch.arange(0, 4 * N, N))


# --- bare errors, results and skips


class Sums(nn.Module):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x if context is None else x + context


def test_a_bare_error_inside_a_route_is_explained() -> None:
    blocks = [Sums(), Sums()]
    message = r"must match(.|\n)*attach: block 1 \(Sums\) failed inside "
    with attach(blocks).using(draw(2, 1, 2)), pytest.raises(RuntimeError, match=message) as error:
        blocks[1](blocks[0](randn(BATCH, N, D)), context=randn(BATCH, N, D))
    assert "Route(start=1, stop=2), where it got 6 of 12 image tokens" in str(error.value)
    assert "`context` (3, 12, 8)" in str(error.value)


def test_text_as_long_as_the_kept_tokens_is_not_taken_for_them() -> None:
    model, drawn = Model(False), draw(3, 1, 2)
    text = randn(BATCH, 6, D)
    assert drawn[0][1].n_kept == 6
    routing = attach(model.doubles, streams=("hidden",))
    with (
        routing.using(drawn),
        pytest.raises(ValueError, match=r"\(3, 6, 8\) at place 0; .*2 tensors could be it.*\(1,\)"),
    ):
        x, text = randn(BATCH, N, D), text
        for block in model.doubles:
            text, x = block(x, text)


class Skips(nn.Module):
    """Six blocks as in HunyuanDiT and U-ViT: the last three get what the first three gave."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Stack().blocks

    def forward(self, x: Tensor) -> Tensor:
        saved: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x) if i < 3 else block(x, skip=saved.pop())
            saved += [x] if i < 3 else []
        return x


@pytest.mark.parametrize("route", [(1, 5), (0, 6), (1, 3), (3, 5), (2, 6), (0, 4)], ids=str)
def test_long_skips_follow_the_rules_of_run_blocks(route: tuple[int, int]) -> None:
    from tread_ssm import Layout, run_blocks

    torch.manual_seed(0)
    model, x, drawn = Skips(), randn(BATCH, N, D), draw(6, *route)

    def called(block: nn.Module) -> Any:
        return lambda x, cond, layout, skip=None: block(x, skip=skip)

    blocks = [called(b) for b in model.blocks]
    pairs = ((2, 3), (1, 4), (0, 5))
    expected = run_blocks(blocks, x, None, Layout(GRID), drawn, skips=pairs)
    with attach(model.blocks, skips=("skip",)).using(drawn):
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_subset_around_an_offset_for_each_sample() -> None:
    from tread_ssm.routing.attach.per_token import around

    subset = TokenSubset(torch.tensor([[0, 2], [1, 2]]), 3)
    found = around(subset, 5, torch.tensor([1, 2]))
    assert found.index.tolist() == [[0, 1, 3, 4], [0, 1, 3, 4]] and found.length == 5
    assert around(subset, 5, 1).index.tolist() == [[0, 1, 3, 4], [0, 2, 3, 4]]
