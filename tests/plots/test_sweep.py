"""The plot of a sweep: as many panels as metrics, and a curve in each."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tread_ssm.plots.colours import KEPT, save
from tread_ssm.plots.sweep import plot_heat_maps, plot_sweep


@pytest.mark.parametrize(("panels", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 3, 2)])
def test_each_metric_has_its_panel(tmp_path: Path, panels: int, columns: int, rows: int) -> None:
    metrics = {f"m{i}": [3.0, 1.0 + i, 2.0] for i in range(panels)}
    figure = plot_sweep("guidance", [1.0, 1.5, 4.0], metrics)
    save(figure, tmp_path / "new" / "sweep.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sweep.png"]
    picture = np.asarray(Image.open(tmp_path / "new" / "sweep.png").convert("RGB"))
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    blue = np.abs(picture / 255 - to_rgb(KEPT)).max(axis=2) < 0.02
    found = [
        int(blue[r * height : (r + 1) * height, c * width : (c + 1) * width].sum()) > 100
        for r in range(rows)
        for c in range(columns)
    ]
    assert found == [i < panels for i in range(rows * columns)]


def test_a_heat_map_has_a_number_in_every_cell_and_the_first_option_upwards() -> None:
    table = [[1.0, 2.0, 3.0], [4.0, 5.0, 66.5]]
    values = [0.05, 0.1], [1.0, 1.5, 2.0]
    figure = plot_heat_maps(("width", "guidance"), values, {"FID": table})
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == ["1", "2", "3", "4", "5", "66.5"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0.05", "0.1"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "1.5", "2"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("width", "guidance")
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert np.array_equal(axes.images[0].get_array(), table)
