import itertools

import pytest
import torch

from tread_ssm.scan.order import ORDER_NAMES, ZIGZAGS, rank_table

GRIDS = [(1, 1), (1, 6), (5, 1), (4, 4), (3, 5), (19, 19), (8, 2)]


def path(name: str, grid: tuple[int, int]) -> list[tuple[int, int]]:
    order = rank_table(name, grid).argsort().tolist()  # type: ignore[arg-type]
    return [divmod(p, grid[1]) for p in order]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ORDER_NAMES)
def test_every_order_visits_every_token_once(name: str, grid: tuple[int, int]) -> None:
    assert sorted(path(name, grid)) == [(r, c) for r in range(grid[0]) for c in range(grid[1])]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["snake", *ZIGZAGS])
def test_serpentines_never_jump(name: str, grid: tuple[int, int]) -> None:
    steps = path(name, grid)
    for (r0, c0), (r1, c1) in itertools.pairwise(steps):
        assert abs(r0 - r1) + abs(c0 - c1) == 1


@pytest.mark.parametrize("side", [1, 2, 4, 16])
def test_hilbert_never_jumps_on_its_own_squares(side: int) -> None:
    steps = path("hilbert", (side, side))
    for (r0, c0), (r1, c1) in itertools.pairwise(steps):
        assert abs(r0 - r1) + abs(c0 - c1) == 1


def test_zigzags_are_eight_paths_from_four_corners() -> None:
    grid = (4, 6)
    paths = [path(name, grid) for name in ZIGZAGS]
    assert len({tuple(p) for p in paths}) == 8
    starts = sorted(p[0] for p in paths)
    assert starts == sorted([(0, 0), (0, 5), (3, 0), (3, 5)] * 2)


@pytest.mark.parametrize("name", ["raster", "column"])
def test_reversals_run_backwards(name: str) -> None:
    assert path(f"{name}_reversed", (3, 5)) == path(name, (3, 5))[::-1]


def test_known_orders_on_two_by_three() -> None:
    assert rank_table("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert rank_table("column", (2, 3)).tolist() == [0, 2, 4, 1, 3, 5]
    assert rank_table("snake", (2, 3)).tolist() == [0, 1, 2, 5, 4, 3]
    assert torch.equal(rank_table("zigzag_0", (2, 3)), rank_table("snake", (2, 3)))


def test_unknown_order_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown order 'zigzag'; there are raster, "):
        rank_table("zigzag", (2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no tokens"):
        rank_table("raster", (0, 4))
