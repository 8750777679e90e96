"""Neighbours and stages."""

from pathlib import Path

import numpy as np
from PIL import Image

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data.emoji import EmojiData
from tread_ssm.report.grids import line_of, nearest_images, timeline
from tread_ssm.report.page import TIMELINE, Stage, Timeline, write_page


def test_an_image_is_its_own_nearest_neighbour() -> None:
    data = EmojiData(size=8).open()
    wanted = data.images[[3, 700, 1905]]
    noisy = np.clip(wanted.astype(int) + 3, 0, 255).astype(np.uint8)
    found = nearest_images(data, noisy, 4)
    assert found.shape == (3, 4, 8, 8, 3)
    assert np.array_equal(found[:, 0], wanted)
    distances = ((found.astype(int) - noisy[:, None].astype(int)) ** 2).sum(axis=(2, 3, 4))
    assert (np.diff(distances, axis=1) >= 0).all()


def test_a_class_with_few_images_has_white_places() -> None:
    data = EmojiData(size=8).open()
    line = line_of(data, np.array([3, 700]), 4)
    assert np.array_equal(line[:2], data.images[[3, 700]])
    assert (line[2:] == 255).all() and len(line) == 4
    many = line_of(data, np.arange(100), 3)
    assert len(many) == 3 and np.array_equal(many[0], data.images[0])


def test_runs_with_other_steps_show_the_grid_before(tmp_path: Path) -> None:
    names = {"a": (10, 20, 30), "b": (15, 30)}
    for run, steps in names.items():
        (tmp_path / run / "samples").mkdir(parents=True)
        for step in steps:
            Image.new("RGB", (2, 2)).save(RunFolder(tmp_path / run).sample_grid(step))
    stages = timeline(list(names), [RunFolder(tmp_path / run) for run in names])
    assert stages is not None
    shown = [tuple(int(p.stem[-7:]) for p in stage.pictures) for stage in stages.stages]
    assert shown == [(10, 15), (20, 15), (30, 30)]
    (tmp_path / "c").mkdir()
    assert timeline(["c"], [RunFolder(tmp_path / "c")]) is None


def test_html_in_names_shows_as_text(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "x.png")
    evil = "</script><script>alert(1)</script>"
    stage = Stage(evil, (tmp_path / "x.png",))
    write_page(
        tmp_path / "p.html", f"# {evil}\n\n{TIMELINE}\n\n{evil}", Timeline((evil,), (stage,))
    )
    text = (tmp_path / "p.html").read_text()
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 2
