"""What TensorBoard and wandb hold of a run is what the run has."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.training.runs import run, tiny
from tread_ssm.config.run import RunConfig, SampleConfig


def trained(out: Path, *trackers: str) -> RunConfig:
    sampled = SampleConfig(every=2, classes=2, per_class=3, steps=1)
    config = replace(tiny(out, steps=4, batch_size=2, trackers=trackers), sample=sampled)
    run(config)
    return config


def test_tensorboard_gets_grids_and_histograms(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = trained(tmp_path, "tensorboard")
    events = EventAccumulator(
        str(config.folder.trackers / "tread_ssm"), {"images": 0, "histograms": 0}
    )
    events.Reload()
    grids = events.Images("samples")
    assert [grid.step for grid in grids] == [2, 4]
    for grid in grids:
        shown = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
        assert np.array_equal(shown, np.asarray(Image.open(config.folder.sample_grid(grid.step))))
    weights = load_file(config.folder.path / "ema.safetensors")
    tags = events.Tags()["histograms"]
    assert tags and {tag.removeprefix("weights/") for tag in tags} <= weights.keys()
    for tag in tags:
        first, last = events.Histograms(tag)
        values = weights[tag.removeprefix("weights/")]
        assert (first.step, last.step) == (2, 4)
        assert last.histogram_value.num == values.size
        assert last.histogram_value.sum == pytest.approx(values.sum(dtype=np.float64), abs=1e-3)


def test_wandb_gets_grids_and_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = trained(tmp_path, "wandb")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    grids = sorted((run / "files" / "media" / "images").glob("samples_*.png"))
    assert len(grids) == 2
    stored = {np.asarray(Image.open(grid)).tobytes() for grid in grids}
    for step in (2, 4):
        assert np.asarray(Image.open(config.folder.sample_grid(step))).tobytes() in stored
    weights = config.folder.path / "ema.safetensors"
    (log,) = run.glob("*.wandb")
    assert log.read_bytes().count(b'"histogram"') >= 2 * len(load_file(weights)) - 2
