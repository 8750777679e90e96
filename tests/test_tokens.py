import pytest
import torch

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


@pytest.mark.parametrize("name", ORDER_NAMES)
@pytest.mark.parametrize("n_prefix", [0, 2])
def test_visit_is_the_order_restricted_to_the_kept_tokens(name: str, n_prefix: int) -> None:
    rank = rank_table(name, GRID)  # type: ignore[arg-type]  # parametrised over the literals
    subset = some_subset()
    visit = Layout(GRID, n_prefix=n_prefix).take(subset).visit(rank)
    path = rank.argsort().tolist()
    for b in range(4):
        kept = subset.index[b].tolist()
        expected = [kept.index(p) + n_prefix for p in path if p in kept]
        assert visit[b].tolist() == [*range(n_prefix), *expected]


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_gap_counts_the_missing_tokens(name: str) -> None:
    rank = rank_table(name, GRID)  # type: ignore[arg-type]  # parametrised over the literals
    subset = some_subset()
    gap = Layout(GRID, n_prefix=2).take(subset).gap(rank)
    path = rank.argsort().tolist()
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


def test_dense_layout_visits_everything_without_gaps() -> None:
    rank = rank_table("column", GRID)
    layout = Layout(GRID, n_prefix=1)
    assert layout.n_tokens == 16
    assert layout.visit(rank).tolist() == [0, *(1 + p for p in rank.argsort().tolist())]
    assert layout.gap(rank).tolist() == [0] * 16


def test_take_twice_equals_taking_the_intersection() -> None:
    outer = some_subset(kept=9, seed=1)
    inner = TokenSubset.of(torch.rand(4, 9).topk(4).indices, 9)
    x = torch.randn(4, N, 2)
    layout = Layout(GRID).take(outer).take(inner)
    assert layout.index is not None
    assert torch.equal(TokenSubset(layout.index, N).take(x), inner.take(outer.take(x)))
