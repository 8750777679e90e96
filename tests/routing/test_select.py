import pytest
import torch

from tread_ssm import Cells, Frames, RandomTokens, Route, RoutePlan, Rows, Segments, Tubes
from tread_ssm.routing import Select

SELECTIONS: list[Select] = [
    RandomTokens(),
    Rows(),
    Cells(2),
    Cells(2, choose="whole"),
    Cells(1, choose="whole"),
    Segments(5),
    Segments(7, along="columns"),
]
GRIDS = [(4, 6), (6, 4), (2, 2), (8, 8)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 0.62])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_keeps_the_promised_number_in_ascending_order(
    select: Select, grid: tuple[int, int], drop: float
) -> None:
    subset = select.draw(3, grid, drop, None, generator())
    assert subset.length == grid[0] * grid[1]
    assert subset.index.shape == (3, select.n_kept(grid, drop))
    assert subset.n_kept >= subset.length * (1 - drop) - 1e-6
    assert bool((subset.index[:, 1:] > subset.index[:, :-1]).all())
    assert int(subset.index.min()) >= 0 and int(subset.index.max()) < subset.length


@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_the_generator_decides(select: Select) -> None:
    draws = [select.draw(4, (8, 8), 0.5, None, generator(s)).index for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_every_token_is_kept_as_often_as_any_other(select: Select) -> None:
    draws = 4000
    share = select.draw(draws, (4, 6), 0.5, None, generator()).mask().float().mean(dim=0)
    expected = select.n_kept((4, 6), 0.5) / 24
    assert float((share - expected).abs().max()) < 5 * (0.25 / draws) ** 0.5


@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_forced_tokens_stay_in_every_sample(select: Select) -> None:
    keep = torch.zeros(50, 64, dtype=torch.bool)
    keep[torch.arange(50), torch.arange(50)] = True
    subset = select.draw(50, (8, 8), 0.5, keep, generator())
    assert subset.n_kept == select.n_kept((8, 8), 0.5)
    assert bool(subset.mask()[keep].all())


def test_too_many_forced_tokens_are_refused() -> None:
    keep = torch.ones(1, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="16 tokens must stay, but only 8 of 16 are kept"):
        RandomTokens().draw(1, (4, 4), 0.5, keep, None)


def test_rows_are_whole_and_form_a_rectangle() -> None:
    subset = Rows().draw(6, (5, 3), 0.5, None, generator())
    rows = subset.mask().reshape(6, 5, 3)
    assert bool((rows.all(dim=2) == rows.any(dim=2)).all())
    assert subset.grid == (3, 3)


def test_cells_within_keep_the_same_number_everywhere() -> None:
    mask = Cells(2).draw(6, (4, 6), 0.75, None, generator()).mask().reshape(6, 2, 2, 3, 2)
    assert bool((mask.sum(dim=(2, 4)) == 1).all())


def test_whole_cells_are_whole() -> None:
    mask = Cells(2, choose="whole").draw(6, (4, 6), 0.5, None, generator()).mask()
    counts = mask.reshape(6, 2, 2, 3, 2).sum(dim=(2, 4))
    assert set(counts.unique().tolist()) == {0, 4}


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_segments_are_runs_along_the_scan(along: str) -> None:
    subset = Segments(6, along=along).draw(20, (6, 6), 0.5, None, generator())  # type: ignore[arg-type]
    mask = subset.mask().reshape(20, 6, 6)
    line = (mask if along == "rows" else mask.mT).flatten(1)
    for sample in line:
        borders = int((sample != sample.roll(1)).sum())
        assert borders <= 2 * 3  # at most three dropped runs on the circle


def test_cells_that_do_not_fit_name_the_sizes() -> None:
    with pytest.raises(ValueError, match="5 x 6 tokens cannot be cut into cells of 2 x 2"):
        Cells(2).n_kept((5, 6), 0.5)


def test_shares_that_are_no_binary_fractions_do_not_lose_a_token() -> None:
    assert RandomTokens().n_kept((10, 10), 0.29) == 71
    assert RandomTokens().n_kept((10, 10), 0.7) == 30


def test_the_first_argument_is_the_size() -> None:
    assert Cells(4).size == 4 and Segments(6).length == 6
    assert (Cells(4).kind, Segments(6).kind) == ("cells", "segments")


# --- video: (frames, rows, columns)

VIDEO = (3, 4, 6)
OF_VIDEO: list[Select] = [*SELECTIONS, Frames(), Tubes()]


@pytest.mark.parametrize("select", OF_VIDEO, ids=str)
def test_a_video_keeps_the_promised_number_and_what_must_stay(select: Select) -> None:
    keep = torch.zeros(5, 72, dtype=torch.bool)
    keep[torch.arange(5), torch.arange(5) * 17] = True
    ((_, subset),) = RoutePlan((Route(1, 3, select=select),), 4).draw(
        5, VIDEO, generator(), keep=keep
    )
    assert subset.length == 72 and subset.full_grid == VIDEO
    assert subset.index.shape == (5, select.n_kept(VIDEO, 0.5))
    assert bool((subset.index[:, 1:] > subset.index[:, :-1]).all())
    assert bool(subset.mask()[keep].all())


def test_frames_rows_and_tubes_of_a_video_are_whole() -> None:
    frames = Frames().draw(40, VIDEO, 0.5, None, generator())
    mask = frames.mask().unflatten(1, VIDEO)
    assert torch.equal(mask.all(3).all(2), mask.any(3).any(2))
    assert frames.grid == (2, 4, 6) and int(mask[0, :, 0, 0].sum()) == 2
    rows = Rows().draw(40, VIDEO, 0.5, None, generator())
    mask = rows.mask().unflatten(1, VIDEO)
    assert torch.equal(mask.all(3).all(1), mask.any(3).any(1))
    assert rows.grid == (3, 2, 6)
    tubes = Tubes().draw(40, VIDEO, 0.5, None, generator())
    mask = tubes.mask().unflatten(1, VIDEO)
    assert torch.equal(mask.all(dim=1), mask.any(dim=1))
    assert tubes.grid is None and int(mask[0, 0].sum()) == 12
    assert not torch.equal(mask[0], mask[1])


def test_cells_and_segments_of_a_video_stay_inside_its_frames() -> None:
    cells = Cells(size=2, choose="whole").draw(9, VIDEO, 0.5, None, generator()).mask()
    cells = cells.unflatten(1, (3, 2, 2, 3, 2)).movedim(3, 4).flatten(4)  # last: a cell's tokens
    assert torch.equal(cells.all(dim=4), cells.any(dim=4))
    path = torch.arange(72).reshape(VIDEO).transpose(1, 2).flatten()
    kept = Segments(length=4, along="columns").draw(9, VIDEO, 0.5, None, generator()).mask()
    for sample in kept[:, path]:
        ends = (sample != sample.roll(1)).nonzero().flatten()
        assert len(ends) > 2 and len(set((ends % 4).tolist())) == 1
