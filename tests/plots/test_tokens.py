"""Pictures of routes show what the draw says, and leave no global state behind."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from tread_ssm.plots import tokens as show
from tread_ssm.routing import Cells, Draw, RandomTokens, Route, RoutePlan, Rows
from tread_ssm.scan.order import ORDER_NAMES, rank_table
from tread_ssm.tokens import TokenSubset

GRID = (4, 6)
IMAGE = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)


def draw(*routes: Route, depth: int = 8, seed: int = 0) -> Draw:
    return RoutePlan(routes, depth).draw(2, GRID, torch.Generator().manual_seed(seed))


def subset(select: RandomTokens | Rows | Cells) -> TokenSubset:
    return draw(Route(2, 6, select=select))[0][1]


def test_kept_tokens_show_the_image_and_dropped_ones_do_not() -> None:
    kept = subset(RandomTokens())
    figure = show.plot_kept(IMAGE, {"random": kept}, GRID)
    whole, panel = (np.asarray(ax.images[0].get_array()) for ax in figure.axes[:2])
    assert np.array_equal(whole, IMAGE / 255)
    there = kept.mask()[0].reshape(GRID).numpy().repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(panel[there], IMAGE[there] / 255)
    assert (np.abs(panel[~there] - IMAGE[~there] / 255).max(axis=1) > 0.01).all()
    assert "12 of 24 tokens" in figure.axes[1].get_title()


@pytest.mark.parametrize("order", ORDER_NAMES)
def test_a_scan_path_visits_the_kept_tokens_in_the_scans_own_order(order: str) -> None:
    rank, kept = rank_table(order, GRID), subset(RandomTokens())  # type: ignore[arg-type]
    path = show.scan_path(rank, GRID, kept)
    assert sorted(path.tolist()) == kept.index[0].tolist()
    assert (rank[path].diff() > 0).all()
    assert torch.equal(rank[show.scan_path(rank, GRID)], torch.arange(24))


def test_neighbours_along_known_paths() -> None:
    assert show.neighbours(show.scan_path(rank_table("snake", GRID), GRID), GRID) == 1
    assert show.neighbours(show.scan_path(rank_table("raster", GRID), GRID), GRID) == 20 / 23
    assert show.neighbours(torch.tensor([0, 7, 14]), GRID) == 0  # along a diagonal


def test_paths_are_drawn_through_the_middles_of_their_tokens() -> None:
    figure = show.plot_paths({"one": torch.tensor([0, 1, 7])}, GRID)
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    segments = [np.asarray(s).tolist() for s in lines.get_segments()]
    assert segments == [[[0.5, 0.5], [1.5, 0.5]], [[1.5, 0.5], [1.5, 1.5]]]


def test_the_stream_shows_every_route_and_counts_what_blocks_see() -> None:
    drawn = draw(Route(1, 3), Route(5, 7, drop=0.75))
    figure = show.plot_stream(drawn, 8, GRID, n_prefix=2)
    top, main = figure.axes[:2]
    bars = [p for p in top.patches if isinstance(p, Rectangle)]
    assert [bar.get_height() for bar in bars] == [26, 14, 14, 26, 26, 8, 8, 26]
    seen = np.asarray(main.images[0].get_array())
    assert seen.shape == (26, 8) and (seen[:2] == 2).all()
    for route, kept in drawn:
        assert np.array_equal(seen[2:, route.start] == 1, ~kept.mask()[0].numpy())
    assert (seen[2:, [0, 3, 4, 7]] == 0).all()


def test_an_image_cut_into_tokens_and_joined_is_the_image() -> None:
    image = torch.rand(8, 12, 3)
    tokens = show.cut(image, 2)
    assert tokens.shape == (1, 24, 12)
    assert torch.equal(tokens[0, 7], image[2:4, 2:4].flatten())
    assert np.array_equal(show.joined(tokens, GRID, 2), image.numpy())


def test_changes_are_drawn_as_they_are() -> None:
    kept = subset(RandomTokens())
    change = kept.mask()[0].double() * torch.linspace(1, 2, 24)
    left, right = show.plot_changes(change, kept, GRID).axes[:2]
    assert np.allclose(np.asarray(left.images[0].get_array()).flatten(), change)
    assert len(left.patches) == 12  # orange where nothing changed
    assert [np.size(line.get_ydata()) for line in right.lines] == [12, 12]
    assert not np.any(right.lines[1].get_ydata())


def test_missing_tokens_of_a_stream_are_blank() -> None:
    image = IMAGE / 255.0
    there = subset(Rows()).mask()[0].numpy()
    figure = show.plot_streams({"a": (image, None), "b": (image, there)}, GRID)
    blank = np.asarray(figure.axes[1].images[0].get_array())
    missing = ~there.reshape(GRID).repeat(2, axis=0).repeat(2, axis=1)
    assert len(np.unique(blank[missing], axis=0)) == 1


def test_titles_lie_inside_the_picture_and_apart() -> None:
    image, grid = np.zeros((32, 32, 3), dtype=np.uint8), (8, 8)
    kept = RoutePlan((Route(2, 6),), 8).draw(1, grid, torch.Generator().manual_seed(0))[0][1]
    name = "step 16, blocks 2 to 5"
    path = show.scan_path(rank_table("hilbert", grid), grid)
    for figure in (
        *(show.plot_kept(image, {f"{name}{i}": kept for i in range(n)}, grid) for n in (1, 3, 5)),
        *(show.plot_paths({f"{name}{i}": path for i in range(n)}, grid) for n in (1, 4, 6)),
        *(show.plot_streams({f"{name}{i}": (image / 255, None) for i in range(n)}, grid)
          for n in (1, 3, 5)),
    ):  # fmt: skip
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [ax.title.get_window_extent(canvas.get_renderer()) for ax in figure.axes
                 if ax.get_title()]  # fmt: skip
        assert boxes and all(figure.bbox.y1 >= box.y1 for box in boxes)
        assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]


def test_pictures_touch_no_global_figures() -> None:
    code = "import tread_ssm.plots.tokens, benchmarks.study.plots, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.figure" in run.stdout and "pyplot" not in run.stdout
