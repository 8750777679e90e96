from pathlib import Path

from matplotlib.patches import Rectangle

from tread_ssm.plots.turns import plot_turns


def test_turns_are_shown_with_their_medians(tmp_path: Path) -> None:
    figure = plot_turns({"dense": [0.01, 0.02, 0.03], "routed": [0.01, 0.01, 0.4]})
    figure.savefig(tmp_path / "turns.png")
    bars = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert [bar.get_width() for bar in bars] == [20, 10]
    assert "10 ms = 0.50 of it" in [t.get_text() for t in figure.axes[0].texts]
