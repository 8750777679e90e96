"""Comparisons of real (tiny) runs: arms, curves, paired samples and the page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.test_report import run
from tread_ssm.commands.compare import main
from tread_ssm.config.run import RunConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.report.arms import arms_of, measures_of
from tread_ssm.report.compare import write_comparison
from tread_ssm.report.history import History, training_flops

EVAL = ("eval.every=3", "eval.num=80", "eval.extractor=emoji", "eval.steps=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunConfig]:
    """Two seeds with a route and one without."""
    folder = tmp_path_factory.mktemp("compared")
    return [
        run(folder, "name=routed-0", *EVAL),
        run(folder, "name=routed-1", "seed=1", *EVAL),
        run(folder, "name=dense", "routing.routes=[]", *EVAL),
    ]


@pytest.fixture(scope="module")
def page(runs: list[RunConfig]) -> Path:
    out = runs[0].folder.path.parent / "out"
    assert main([*(str(config.folder.path) for config in runs), "--out", str(out)]) == 0
    return out / "comparison.html"


def test_seeds_are_one_arm(runs: list[RunConfig], page: Path) -> None:
    arms = arms_of([History.read(config.folder.path) for config in runs])
    assert [(arm.name, len(arm.runs)) for arm in arms] == [("routed", 2), ("dense", 1)]
    first, second = [line for line in (page.parent / "comparison.md").read_text().splitlines()
                     if line.startswith(("| routed", "| dense"))]  # fmt: skip
    assert "±" in first and "| 2 |" in first and "50% past blocks 1 to 2" in first
    assert "±" not in second and "| none |" in second


def test_flops_follow_the_schedule(runs: list[RunConfig]) -> None:
    config = runs[0]
    cost = backbone_cost(config.model, config.plan)
    # 6 steps of 16 images, the last quarter (one whole step) without routes
    routed, dense = cost.routed.training * 16, cost.dense.training * 16
    assert training_flops(config, [0, 2, 5, 6]) == [0, 2 * routed, 5 * routed, 5 * routed + dense]
    assert training_flops(runs[2], [6]) == [6 * dense]


def test_path_drop_counts_as_expected(runs: list[RunConfig]) -> None:
    """Blocks that a step skips cost nothing: with probability 1 only the outer ones would count."""
    config = runs[0]
    (route,) = config.routing.routes
    dropping = replace(route, path_drop=0.25)
    changed = replace(config, routing=replace(config.routing, routes=(dropping,)))
    cost = backbone_cost(config.model, config.plan).routed
    inside = sum(cost.block_flops[1:3]) / cost.forward
    assert 0.2 < inside < 0.9
    expected = 16 * cost.training * (1 - 0.25 * inside)
    assert training_flops(changed, [1]) == pytest.approx([expected])


def test_curves_have_every_evaluation_at_its_cost(runs: list[RunConfig]) -> None:
    measures = measures_of(arms_of([History.read(config.folder.path) for config in runs]))
    assert list(measures) == ["training loss", "FD (emoji)"]
    assert [len(curves) for curves in measures.values()] == [3, 3]
    for curve, config in zip(measures["FD (emoji)"], runs, strict=True):
        assert curve.at["steps"] == [3, 6]
        assert curve.at["FLOPs"] == training_flops(config, [3, 6])
        rows = History.read(config.folder.path).evals
        assert curve.values == [row["fid"] for row in rows]


def test_equal_weights_give_equal_rows(runs: list[RunConfig], tmp_path: Path) -> None:
    """The same noise and classes: a run beside a copy of itself under another name."""
    copy = tmp_path / "copy"
    shutil.copytree(runs[2].folder.path, copy)
    text = (copy / "config.yaml").read_text().replace("clip: 1.0", "clip: 0.5")
    (copy / "config.yaml").write_text(text)
    out = write_comparison([runs[2].folder.path, copy], tmp_path / "out").parent
    picture = np.asarray(Image.open(out / "samples.png").convert("L"), dtype=int)
    rows, cell = picture.shape[0] // 68, 68
    assert rows == 12  # six classes, two runs
    images = picture[:, -8 * cell :]
    for row in range(0, rows, 2):
        above = images[4 + row * cell : 4 + row * cell + 64]
        below = images[4 + (row + 1) * cell : 4 + (row + 1) * cell + 64]
        assert np.array_equal(above, below)
        assert above.std() > 1


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text()
    assert "http" not in text and text.count("<figure>") == 2
    held = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    assert [stage["label"] for stage in held["stages"]] == ["after 4 steps", "after 6 steps"]
    assert [stage["pictures"] for stage in held["stages"]] == [[0, 1], [2, 3]]
    assert len(held["files"]) == 4
    assert all(url.startswith("data:image/webp;base64,") for url in held["files"])
    assert 'src="curves.png"' not in text and 'src="samples.png"' not in text


def test_runs_without_grids_say_so(runs: list[RunConfig], tmp_path: Path) -> None:
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy, config in zip(copies, runs[::2], strict=True):
        shutil.copytree(config.folder.path, copy)
        shutil.rmtree(copy / "samples")
    text = write_comparison(copies, tmp_path / "out").with_suffix(".md").read_text()
    assert "a run sampled no image grids" in text and "slider" not in text


def test_one_run_is_no_comparison(
    runs: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(runs[0].folder.path)
    assert main([one, one, "--out", str(tmp_path)]) == 2
    assert "name two or more" in capsys.readouterr().err
    assert main([one, str(tmp_path)]) == 2
    assert "it is no run folder" in capsys.readouterr().err
