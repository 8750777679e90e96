import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tread_ssm import Layout, TokenSubset
from tread_ssm.scan.order import ORDER_NAMES, rank_table

GRID = (3, 5)
N = 15


def some_subset(batch: int = 4, kept: int = 7, seed: int = 0) -> TokenSubset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(batch, N, generator=generator).topk(kept).indices
    return TokenSubset.of(ids, N)


def test_take_then_put_restores_and_leaves_the_input_alone() -> None:
    subset = some_subset()
    x = torch.randn(4, N, 2, 3)
    before = x.clone()
    assert torch.equal(subset.put(subset.take(x), x), x)
    assert torch.equal(subset.put(torch.zeros(4, 7, 2, 3), x) == 0, ~_spread(~subset.mask(), x))
    assert torch.equal(x, before)


def _spread(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return mask.reshape(*mask.shape, *[1] * (x.dim() - 2)).expand_as(x)


def test_take_equals_a_loop() -> None:
    subset = some_subset()
    x = torch.randn(4, N, 3)
    taken = subset.take(x)
    for b in range(4):
        for k in range(7):
            assert torch.equal(taken[b, k], x[b, subset.index[b, k]])


def test_gradients_of_put_reach_kept_and_dropped_tokens_once() -> None:
    subset = some_subset()
    x, into = torch.randn(4, 7, 2, requires_grad=True), torch.randn(4, N, 2, requires_grad=True)
    subset.put(x, into).sum().backward()
    assert x.grad is not None and into.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(into.grad[..., 0] == 0, subset.mask())


def test_put_keeps_the_dtype_of_the_stream() -> None:
    subset = some_subset()
    assert subset.put(torch.ones(4, 7, 2, dtype=torch.bfloat16), torch.zeros(4, N, 2)).dtype == (
        torch.float32
    )


def test_ids_in_any_order_give_the_same_subset() -> None:
    subset = some_subset()
    shuffled = subset.index[:, torch.randperm(7)]
    assert torch.equal(TokenSubset.of(shuffled, N).index, subset.index)


def test_prefix_is_kept_and_shifts_the_rest() -> None:
    subset = some_subset().with_prefix(2)
    assert subset.length == N + 2 and subset.n_kept == 9
    assert torch.equal(subset.mask()[:, :2], torch.ones(4, 2, dtype=torch.bool))
    assert torch.equal(subset.mask()[:, 2:], some_subset().mask())


def test_embed_into_a_padded_grid() -> None:
    # 3 x 5 tokens with one padding token behind each row and a padding row below: 4 x 6.
    position = torch.arange(24).reshape(4, 6)
    inner, pads = position[:3, :5].flatten(), torch.cat([position[:3, 5], position[3]])
    subset = some_subset().embed(inner, 24, pads)
    mask = subset.mask().reshape(4, 4, 6)
    assert torch.equal(mask[:, :3, :5].flatten(1), some_subset().mask())
    assert bool(mask[:, 3].all()) and bool(mask[:, :, 5].all())
    assert torch.equal(subset.index, subset.index.sort(dim=1).values)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, 15]]), "ids run from 0 to 15, but there are 15 tokens"),
        (torch.tensor([[-1, 3]]), "ids must lie in 0..14"),
        (torch.tensor([[3, 3]]), "stands twice"),
        (torch.tensor([[0.0, 1.0]]), "integer tensor"),
        (torch.empty(2, 0, dtype=torch.int64), "kept >= 1"),
    ],
)
def test_wrong_ids_are_named(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSubset.of(ids, N)


def test_wrong_stream_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a tensor \(4, 15, ...\), got \(4, 14, 2\)"):
        some_subset().take(torch.zeros(4, 14, 2))


def ranks(name: str) -> dict[str, torch.Tensor]:
    """The tables that a layout needs for an order."""
    return {} if name == "raster" else {name: rank_table(name, GRID)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ORDER_NAMES)
@pytest.mark.parametrize("n_prefix", [0, 2])
def test_visits_are_the_order_restricted_to_the_kept_tokens(name: str, n_prefix: int) -> None:
    subset = some_subset()
    layout = Layout(GRID, n_prefix=n_prefix, orders=ranks(name)).take(subset)
    visits = layout.visits(name)
    index = torch.arange(n_prefix + 7).expand(4, -1) if visits.index is None else visits.index
    assert (visits.index is None) == (name == "raster")
    path = rank_table(name, GRID).argsort().tolist()  # type: ignore[arg-type]
    for b in range(4):
        kept = subset.index[b].tolist()
        expected = [kept.index(p) + n_prefix for p in path if p in kept]
        assert index[b].tolist() == [*range(n_prefix), *expected]


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_gap_counts_the_missing_tokens(name: str) -> None:
    subset = some_subset()
    gap = Layout(GRID, n_prefix=2, orders=ranks(name)).take(subset).visits(name).gap
    assert gap is not None
    path = rank_table(name, GRID).argsort().tolist()  # type: ignore[arg-type]
    for b in range(4):
        kept = set(subset.index[b].tolist())
        expected, missing = [], 0
        for p in path:
            if p in kept:
                expected.append(missing)
                missing = 0
            else:
                missing += 1
        assert gap[b].tolist() == [0, 0, *expected]


@pytest.mark.parametrize("name", ORDER_NAMES)
@pytest.mark.parametrize("kept", [1, 7, N])
def test_backward_visits_are_those_of_the_reversed_order(name: str, kept: int) -> None:
    rank = rank_table(name, GRID)  # type: ignore[arg-type]  # parametrised over the literals
    orders = {**ranks(name), "reversed": N - 1 - rank}
    for layout in (
        Layout(GRID, n_prefix=2, orders=orders),
        Layout(GRID, some_subset(kept=kept).index, 2, orders),
    ):
        back, expected = layout.backward(name, rank.device), layout.visits("reversed")
        assert back.index is not None and expected.index is not None
        assert torch.equal(back.index.expand_as(expected.index), expected.index)
        assert (back.gap is None) == (expected.gap is None)
        assert back.gap is None or torch.equal(back.gap, expected.gap)


def test_dense_layout_visits_everything_without_gaps() -> None:
    rank = rank_table("column", GRID)
    layout = Layout(GRID, n_prefix=1, orders={"column": rank})
    assert layout.n_tokens == 16
    index, gap = layout.visits("column").index, layout.visits("column").gap
    assert index is not None and gap is None
    assert index.tolist() == [0, *(1 + p for p in rank.argsort().tolist())]


def test_every_order_is_sorted_once_for_a_layout() -> None:
    orders = {**ranks("column"), **ranks("hilbert")}
    dense, subset = Layout(GRID, orders=orders), some_subset()
    with Sorts() as sorts:
        layout = dense.take(subset)
        for name in ("column", "hilbert", "raster", "column"):
            layout.visits(name)
    assert sorts.n == 2


class Sorts(TorchDispatchMode):
    """Counts the sorts that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n += "sort" in func.__name__
        return func(*args, **(kwargs or {}))


COLUMN = rank_table("column", GRID)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (COLUMN[:-1], r"order 'column' is torch.int64 of shape \(14,\); expected int64"),
        (COLUMN.double(), "order 'column' is torch.float64"),
        (COLUMN.clamp(max=13), r"each of 0\.\.14 once, for a grid of 3 x 5"),
    ],
    ids=["short", "floats", "doubled"],
)
def test_a_layout_refuses_a_rank_table_that_is_no_order(rank: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(GRID, orders={"column": rank})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([[3, 1]]), "ascending"),
        (torch.tensor([[1, 1]]), "distinct"),
        (torch.tensor([[1, 15]]), r"positions in 0\.\.14"),
        (torch.tensor([[-1, 2]]), r"positions in 0\.\.14"),
        (torch.tensor([[1.0, 2.0]]), "index is torch.float32"),
        (torch.tensor([1, 2]), r"shape \(2,\)"),
    ],
    ids=["unsorted", "doubled", "large", "negative", "floats", "flat"],
)
def test_a_layout_refuses_ids_that_do_not_fit(index: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(GRID, index)


def test_an_order_that_the_layout_was_not_made_for_is_named() -> None:
    with pytest.raises(ValueError, match="order 'snake' is not among raster, column; make"):
        Layout(GRID, orders={"column": COLUMN}).visits("snake")


def test_take_twice_equals_taking_the_intersection() -> None:
    outer = some_subset(kept=9, seed=1)
    inner = TokenSubset.of(torch.rand(4, 9).topk(4).indices, 9)
    x = torch.randn(4, N, 2)
    layout = Layout(GRID).take(outer).take(inner)
    assert layout.index is not None
    assert torch.equal(TokenSubset(layout.index, N).take(x), inner.take(outer.take(x)))
