"""The batch of a step: one global draw, cut into parts."""

from __future__ import annotations

import pytest
import torch

from tread_ssm.data import EmojiData
from tread_ssm.diffusion import EDM
from tread_ssm.routing import Route, RoutePlan, Rows
from tread_ssm.training.batch import Batch, BatchMaker, ahead

GRID = (4, 4)
PLAN = RoutePlan([Route(0, 2), Route(2, 4, drop=0.25, select=Rows())], depth=5)


def maker(**changes: object) -> BatchMaker:
    settings: dict[str, object] = {
        "data": EmojiData(size=8, flip=True).open(),
        "objective": EDM(),
        "grid": GRID,
        "seed": 3,
        "size": 12,
        "null_label": 9,
        "label_dropout": 0.3,
    }
    return BatchMaker(**(settings | changes))  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    tensors = [(getattr(a, n), getattr(b, n)) for n in ("x", "labels", "t", "noise")]
    for (route, kept), (other, kept_other) in zip(a.draw, b.draw, strict=True):
        assert route == other
        assert (kept.length, kept.grid) == (kept_other.length, kept_other.grid)
        tensors.append((kept.index, kept_other.index))
    return all(torch.equal(s, t) for s, t in tensors)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_process_gets_its_rows_of_one_global_batch(processes: int) -> None:
    whole = maker().make(17, PLAN, slice(0, 12))
    share = 12 // processes
    for rank in range(processes):
        rows = slice(rank * share, (rank + 1) * share)
        assert same(maker().make(17, PLAN, rows), whole.part(rows))


def test_micro_batches_are_the_batch_again() -> None:
    whole = maker().make(0, PLAN, slice(0, 12))
    parts = whole.split(5)
    assert [len(p) for p in parts] == [5, 5, 2]
    assert torch.equal(torch.cat([p.noise for p in parts]), whole.noise)
    assert torch.equal(torch.cat([p.draw[1][1].index for p in parts]), whole.draw[1][1].index)
    assert whole.split(None) == [whole]


def test_steps_and_seeds_differ_and_repeat() -> None:
    rows = slice(0, 12)
    first = maker().make(5, PLAN, rows)
    assert same(first, maker().make(5, PLAN, rows))
    for other in (maker().make(6, PLAN, rows), maker(seed=4).make(5, PLAN, rows)):
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)
        assert not torch.equal(first.draw[0][1].index, other.draw[0][1].index)


def test_a_dense_run_sees_the_same_samples_and_noise_as_a_routed_one() -> None:
    routed = maker().make(5, PLAN, slice(0, 12))
    dense = maker().make(5, RoutePlan((), depth=5), slice(0, 12))
    assert dense.draw == ()
    assert all(
        torch.equal(getattr(routed, n), getattr(dense, n)) for n in ("x", "labels", "t", "noise")
    )


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    rows = slice(0, 2000)
    labels = maker(size=2000).make(0, PLAN, rows).labels
    assert 500 < int((labels == 9).sum()) < 700
    assert int((maker(size=2000, label_dropout=0.0).make(0, PLAN, rows).labels == 9).sum()) == 0
    unconditional = maker(null_label=0).make(0, PLAN, slice(0, 12)).labels
    assert unconditional.eq(0).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("steps", [range(3, 9), range(3, 4), range(3, 3)])
def test_batches_made_ahead_come_in_order_and_not_far_ahead(device: str, steps: range) -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return maker().make(step, PLAN, slice(0, 2))

    for step, batch in ahead(make, steps, torch.device(device)):
        assert same(batch, maker().make(step, PLAN, slice(0, 2)))
        assert max(made) <= step + 1
    assert made == list(steps)


def test_all_of_a_batch_moves() -> None:
    moved = maker().make(0, PLAN, slice(0, 3)).to(torch.device("meta"))
    assert all(t.is_meta for t in (moved.x, moved.labels, moved.t, moved.noise))
    assert len(moved.draw) == 2
    assert all(subset.index.is_meta for _, subset in moved.draw)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_all_of_a_batch_is_pinned() -> None:
    batch = maker().make(0, PLAN, slice(0, 3)).pinned()
    tensors = (batch.x, batch.labels, batch.t, batch.noise, *(s.index for _, s in batch.draw))
    assert all(t.is_pinned() for t in tensors)
    assert same(batch, maker().make(0, PLAN, slice(0, 3)))
