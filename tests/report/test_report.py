"""Reports of real (tiny) runs: what they say agrees with the run folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.commands import report as command
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.errors import ConfigError
from tread_ssm.models.cost import backbone_cost
from tread_ssm.plots.runs import smooth
from tread_ssm.pretrained import load_export
from tread_ssm.report.grids import real_grid
from tread_ssm.report.markdown import code, literal
from tread_ssm.report.measure import emoji_distances, step_times
from tread_ssm.report.page import TIMELINE
from tread_ssm.report.report import write_report
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import train

CONFIG = """
name: tiny
data: {kind: emoji, size: 8}
model: {kind: dit, image_size: 8, channels: 3, n_classes: 9, patch: 2, dim: 32, depth: 4, heads: 2}
objective: {kind: flow, predict: data}
routing:
  routes: [{start: 1, stop: 3}]
  schedule: {dense_tail: 0.25}
train:
  {steps: 6, batch_size: 16, optimizer: {kind: adamw, lr: 1e-3}, log_every: 2, save_every: 4,
   retain: 9, threads: 1}
sample: {every: 4, per_class: 2, steps: 2}
"""


def run(folder: Path, *overrides: str) -> RunConfig:
    """Train as `tread-ssm train` does."""
    file = folder / "tiny.yaml"
    file.write_text(CONFIG)
    config = load_config(file, [f"out={folder}", *overrides])
    data = check(config)
    train(config, data)
    return config


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A routed run that was resumed half way, with its report."""
    folder = tmp_path_factory.mktemp("routed")
    run(folder)
    config = run(folder, "train.steps=12")
    write_report(config.folder.path, images=80)
    return config


def text_of(config: RunConfig) -> str:
    return config.folder.report.read_text()


def test_a_resumed_run_is_reported_as_one(routed: RunConfig) -> None:
    text = text_of(routed)
    assert "12 of 12 steps, 192 images seen" in text
    assert list(routed.folder.checkpoints()) == [4, 6, 8, 12]
    assert "step 4 " in text and "step 12 " in text
    assert "after 4 steps" in text and "after 12 steps" in text
    rows = read_metrics(routed.folder.metrics)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]


def test_every_picture_that_is_named_exists(routed: RunConfig) -> None:
    names = [part.split(")")[0] for part in text_of(routed).split("](")[1:]]
    assert len(names) == 6
    for name in names:
        with Image.open(routed.folder.path / name) as picture:
            picture.load()
            assert min(picture.size) > 50
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 4, "blank"


def test_costs_are_those_of_the_plan(routed: RunConfig) -> None:
    cost = backbone_cost(routed.model, routed.plan)
    text = text_of(routed)
    assert (
        f"| {sum(cost.dense.tokens)} | {sum(cost.routed.tokens)} | {cost.token_share:.1%} |" in text
    )
    assert f"{cost.step_share:.2f} in FLOPs" in text
    assert cost.token_share < 1


def test_distances_name_their_sample_counts_and_never_fid(routed: RunConfig) -> None:
    text = text_of(routed)
    assert "80 images each" in text and f"{1906 - 80:,} real emoji of 8 x 8" in text
    assert "no FID" in text and text.replace("no FID", "").count("FID") == 0
    # Noise is far from emoji, other emoji are near.
    values = dict(
        line.strip("| ").split(" | ") for line in text.split("80 images each")[1].splitlines()[2:6]
    )
    assert float(values["noise"]) > 5 * float(values["other real images"])


def test_a_run_without_routes(tmp_path: Path) -> None:
    config = run(tmp_path, "name=dense", "routing.routes=[]", "sample.every=0")
    text = write_report(config.folder.path, images=80).read_text()
    assert "This run has no routes" in text and "sampled no image grids" in text
    assert "routed" not in text.lower()
    assert not (config.folder.pictures / "routing.png").exists()


def test_the_command_rewrites_a_report(
    routed: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    report = routed.folder.report
    report.unlink()
    assert command.main(["--run", str(routed.folder.path), "--images", "70"]) == 0
    assert "70 images each" in report.read_text()
    assert command.main(["--run", str(routed.folder.path), "--images", "20"]) == 2
    assert "images is 20" in capsys.readouterr().err
    assert command.main(["--run", "nowhere"]) == 2
    assert "nowhere holds no config.yaml" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path, routed: RunConfig) -> None:
    (tmp_path / "config.yaml").write_text(routed.folder.config.read_text())
    with pytest.raises(ConfigError, match="no metrics yet"):
        write_report(tmp_path)


DAMAGED_ROWS = {
    '{"step": 3}': "is damaged",
    "NaN loss": "is damaged",
    "1e400 step": "is damaged",
    "same step": "steps must rise",
}


@pytest.mark.parametrize("damage", DAMAGED_ROWS)
def test_damaged_metrics_are_one_sentence(routed: RunConfig, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(routed.folder.path, folder)
    first, *rest = (folder / "metrics.jsonl").read_text().splitlines()
    row = {
        "NaN loss": json.dumps(json.loads(rest[0]) | {"loss": float("nan")}),
        "1e400 step": json.dumps(json.loads(rest[0])).replace('"step": 4', f'"step": {10**400}'),
        "same step": first,
    }.get(damage, damage)
    (folder / "metrics.jsonl").write_text("\n".join([first, row, *rest]) + "\n")
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl: row 2 .*{DAMAGED_ROWS[damage]}"):
        write_report(folder, images=80)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 5000, '{"model": {"depth": 1000000000}}'])
def test_a_damaged_description_is_one_sentence(
    routed: RunConfig, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(routed.folder.path, folder)
    (folder / "checkpoints" / "step-0000008" / "config.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"step-0000008/config\.json (is damaged|describes another)"
    ):
        write_report(folder, images=80)


def test_names_show_as_they_are() -> None:
    assert literal("<b>x</b> `a`|_c_\n# d") == "&lt;b&gt;x&lt;/b&gt; \\`a\\`\\|\\_c\\_ \\# d"
    assert code("a ``b`` | c") == "```a ``b`` \\| c```"


def test_timing_leaves_the_weights_alone_and_times_both_sides(routed: RunConfig) -> None:
    model, _ = load_export(routed.folder.path)
    before = {n: p.clone() for n, p in model.named_parameters()}
    times = step_times(routed, check(routed), model, seconds=0.3)
    assert times.routed is not None and times.share is not None
    assert 0 < times.routed < 10 and times.repeats >= 3 and times.batch == 16
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_perfect_sampler_scores_as_real_images_do(routed: RunConfig) -> None:
    data = check(routed)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)

    def perfect(labels: torch.Tensor) -> torch.Tensor:
        own = torch.from_numpy(data.labels)
        return torch.stack([images[own == y][i % 5] for i, y in enumerate(labels)])

    values = emoji_distances(data, {"perfect": perfect}, 300, seed=1).values
    assert list(values) == ["noise", "perfect", "other real images"]
    assert values["other real images"] < values["perfect"] < values["noise"] / 3


def test_smoothing_is_of_logarithms_and_cuts_no_end_short() -> None:
    assert smooth([2.0] * 9, 2.0) == pytest.approx([2.0] * 9)
    falling = [1.3 * 0.95**i for i in range(60)]
    assert smooth(falling, 3.0) == pytest.approx(falling)
    line = [0.1 * i - 2 for i in range(60)]  # not all positive: plain means
    assert smooth(line, 3.0) == pytest.approx(line)
    bumpy = [(-1) ** i for i in range(60)]
    assert max(map(abs, smooth(bumpy, 3.0)[10:50])) < 0.01


def test_the_page_holds_its_pictures_and_every_stage(routed: RunConfig) -> None:
    text = routed.folder.page.read_text()
    assert "http" not in text and TIMELINE not in text
    assert text.count('src="data:image/webp;base64,') == 6
    held = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    stages = held["stages"]
    assert [stage["label"] for stage in stages] == [f"after {n} steps" for n in (4, 6, 8, 12)]
    own, real = zip(*(stage["pictures"] for stage in stages), strict=True)
    assert len({held["files"][i] for i in own}) == 4 and len({*real}) == 1
    assert "<figcaption>real images</figcaption>" in text

    # One of the real images: in the row of its class, eight times as large.
    with Image.open(routed.folder.pictures / "real.png") as picture:
        grid = np.asarray(picture)
    with Image.open(routed.folder.sample_grid(12)) as picture:
        assert grid.shape[:2] == picture.size[::-1]
    data = check(routed)
    first = grid[4 + 2 * 68 :: 8, -2 * 68 :: 8][:8, :8]
    assert any(np.array_equal(first, image) for image in data.images[data.labels == 2])


def test_classes_without_images_have_no_row(routed: RunConfig, tmp_path: Path) -> None:
    data, (_, run) = check(routed), load_export(routed.folder.path)
    alone = replace(data, labels=np.full_like(data.labels, 2))
    assert real_grid(run, alone, tmp_path) == tmp_path / "real.png"
    with Image.open(tmp_path / "real.png") as picture, \
         Image.open(routed.folder.pictures / "real.png") as whole:  # fmt: skip
        assert picture.height < whole.height and picture.width <= whole.width
    assert real_grid(run, replace(data, labels=np.full_like(data.labels, 99)), tmp_path) is None
