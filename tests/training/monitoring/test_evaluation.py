"""Evaluations while training goes on: they measure the average, and disturb nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tests.data.test_latents import write_latents
from tests.training.runs import run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import (
    EvalConfig,
    RunConfig,
    SampleConfig,
)
from tread_ssm.data import LatentData, Pixels
from tread_ssm.diffusion import NoisePrediction
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import load_extractor, score, statistics
from tread_ssm.pretrained import load_export
from tread_ssm.report.plan import plan_text
from tread_ssm.sampling.generate import generate, sample_labels, shares
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig

EVAL = EvalConfig(
    every=2, num=20, batch=8, metrics=("kid", "precision", "recall"), extractor="emoji", steps=2
)


def evaluated(out: Path, evaluation: EvalConfig = EVAL, steps: int = 5) -> RunConfig:
    adamw = AdamWConfig(lr=3e-3)
    config = tiny(out, steps=steps, optimizer=adamw, ema_decay=0.5, save_every=3, log_every=50)
    return replace(config, sample=SampleConfig(every=0, guidance=1.5), eval=evaluation)


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    run(config)
    return load_file(config.folder.path / "ema.safetensors")


def test_the_metrics_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    config = evaluated(tmp_path)
    run(config)
    rows = read_metrics(config.folder.evals)
    assert [r["step"] for r in rows] == [2, 4, 5]
    assert {r["count"] for r in rows} == {20}
    model, description = load_export(config.folder.path)
    drawn = generate(
        model,
        description,
        Recipe(steps=2, guidance=1.5),
        shares(20, 8),
        sample_labels(20, range(9), config.seed),
        seed=config.seed,
        decode=decoder(description.values, None, "cpu"),
    )
    images = np.concatenate([part.images for part in drawn])
    data, extractor = config.data.open(), load_extractor("emoji")
    assert isinstance(data, Pixels)

    def seen(array: np.ndarray) -> list[torch.Tensor]:
        return list(torch.tensor(array).permute(0, 3, 1, 2).split(8))

    expected = score(
        statistics(extractor, seen(images), EVAL.metrics),
        statistics(extractor, seen(data.images), EVAL.metrics),
        EVAL.metrics,
    )
    for name, value in expected.items():
        assert rows[-1][name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    grid = np.asarray(Image.open(config.folder.path / "evals" / "step-0000005.png"))
    assert np.array_equal(grid[-68 * 2 + 4 : -4 : 8, -68 * 8 :: 8][:8, :8], images[0])


def test_training_is_the_same_bit_for_bit_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    quiet = weights(evaluated(tmp_path / "a", EvalConfig()))
    config = evaluated(tmp_path / "b")
    with_evaluations = weights(config)
    assert all(torch.equal(quiet[n], with_evaluations[n]) for n in quiet)
    whole = read_metrics(config.folder.evals)
    # Stopped behind step 4's evaluation, before its checkpoint: step 3's is the newest.
    cut = evaluated(tmp_path / "c", steps=4)
    run(cut)
    cut.folder.checkpoint(4).rename(tmp_path / "gone")
    again = weights(evaluated(tmp_path / "c"))
    assert all(torch.equal(quiet[n], again[n]) for n in quiet)
    assert read_metrics(cut.folder.evals) == whole


def test_what_cannot_be_evaluated_is_refused_before_training(tmp_path: Path) -> None:
    def refuse(match: str, config: RunConfig) -> None:
        with pytest.raises(ConfigError, match=match):
            train(config, check(config))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert not (config.folder.path / "checkpoints").exists()

    with pytest.raises(ValueError, match="No metric is called 'fd'"):
        EvalConfig(metrics=("fd",))
    with pytest.raises(ValueError, match="num is 0"):
        EvalConfig(num=0)
    gone = str(tmp_path / "gone.npz")
    refuse(
        r"eval\.reference: .*gone\.npz does not exist",
        evaluated(tmp_path, replace(EVAL, reference=gone)),
    )
    refuse(r"eval\.weights: .*does not exist", evaluated(tmp_path, replace(EVAL, weights=gone)))
    refuse("fid needs at least 65 images", evaluated(tmp_path, replace(EVAL, metrics=("fid",))))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((9, 16, 16, 3), dtype=np.uint8))
    large = replace(EVAL, reference=str(tmp_path / "large.npz"))
    refuse(
        r"images of .*large\.npz are 16 x 16 pixels, those sampled 8 x 8",
        evaluated(tmp_path, large),
    )
    write_latents(tmp_path / "latents")
    latents = LatentData(path=str(tmp_path / "latents"))
    model = replace(evaluated(tmp_path).model, image_size=4, channels=4, n_classes=5)
    refuse(r"eval\.reference is missing", replace(evaluated(tmp_path), data=latents, model=model))


def test_a_dry_run_says_what_will_be_evaluated(tmp_path: Path) -> None:
    expected = "Evaluated every 2 steps: kid, precision, recall of 20 images, emoji features."
    assert expected in plan_text(evaluated(tmp_path)).splitlines()
    assert "every 0 steps" not in plan_text(evaluated(tmp_path, EvalConfig()))


def test_a_sampler_that_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sampler is 'huen'; use one of euler, heun"):
        SampleConfig(sampler="huen")
    for section in (SampleConfig, EvalConfig):
        with pytest.raises(ValueError, match="guidance is nan; it must be finite"):
            section(guidance=float("nan"))
    config = replace(
        evaluated(tmp_path), objective=NoisePrediction(), sample=SampleConfig(sampler="heun")
    )
    with pytest.raises(ConfigError, match=r"sample\.sampler: heun: the path of NoisePrediction"):
        check(config)
