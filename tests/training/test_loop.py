"""The loop in this process: what it leaves, when it stops, what may change between sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from tread_ssm.config.check import check
from tread_ssm.config.run import (
    RoutingConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    load_config,
)
from tread_ssm.data import EmojiData, LatentData, LatentValues
from tread_ssm.data.importers import Imported
from tread_ssm.data.prepare import begin, finish, write_shard
from tread_ssm.diffusion import Flow, NoisePrediction, PerRoute
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiMConfig, DiTConfig
from tread_ssm.pretrained import load_export
from tread_ssm.routing import Route
from tread_ssm.training import loop
from tread_ssm.training.log import TrainingError
from tread_ssm.training.loop import is_finished, train
from tread_ssm.training.metrics import read_metrics
from tread_ssm.training.optimizer import AdamWConfig
from tread_ssm.training.resume import check_folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    # accelerate keeps one state per process; each run here is a process of its own.
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny(out: Path, **train_options: object) -> RunConfig:
    options: dict[str, object] = {"steps": 6, "batch_size": 4, "log_every": 1}
    options |= {"optimizer": AdamWConfig(lr=1e-3)}
    return RunConfig(
        name="tiny",
        out=str(out),
        data=EmojiData(size=8),
        model=DiMConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=3, pads=1),
        objective=Flow(),
        routing=RoutingConfig(routes=(Route(0, 2),)),
        train=TrainConfig(**(options | train_options)),  # type: ignore[arg-type]
        sample=SampleConfig(every=0),
    )


def run(config: RunConfig) -> list[dict[str, float]]:
    assert train(config, check(config)) is None
    AcceleratorState._reset_state(reset_partial_state=True)
    return read_metrics(config.folder.metrics)


def losses(rows: list[dict[str, float]]) -> Tensor:
    return torch.tensor([[r["loss"], r["grad_norm"]] for r in rows])


def test_kept_and_routed_losses_are_logged_apart_and_absent_where_nothing_is_routed(
    tmp_path: Path,
) -> None:
    config = tiny(tmp_path)
    schedule = replace(config.routing.schedule, dense_tail=0.5)
    rows = run(replace(config, routing=replace(config.routing, schedule=schedule)))
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert all(r["kept_loss"] != r["routed_loss"] for r in rows[:3])
    assert all(r["routed_loss"] is None for r in rows[3:])
    for r in rows[:3]:
        assert r["loss"] == pytest.approx((r["kept_loss"] + r["routed_loss"]) / 2, rel=1e-5)


def test_the_export_holds_the_average_of_the_trained_weights(tmp_path: Path) -> None:
    config = tiny(tmp_path, ema_decay=0.0)
    run(config)
    model, description = load_export(config.folder.path)
    assert description.step == 6
    assert description.model == config.model
    assert description.objective == config.objective
    assert description.routes == config.routing.routes
    assert description.class_names[2] == "Flags"
    assert not model.training
    # With decay 0 the average is the newest weights.
    final = [*config.folder.checkpoints().values()][-1]
    weights = load_file(final / "model.safetensors")
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    "change", [{"checkpoint_gradients": True}, {"micro_batch": 3}, {"micro_batch": 1}]
)
def test_how_memory_is_saved_changes_rounding_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    expected = losses(run(tiny(tmp_path / "a")))
    torch.testing.assert_close(
        losses(run(tiny(tmp_path / "b", **change))), expected, rtol=1e-4, atol=1e-6
    )


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    expected = losses(run(tiny(tmp_path / "a")))
    got = losses(run(tiny(tmp_path / "b", precision="bf16")))
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.0)


def test_clipping_limits_the_update_and_the_norm_is_logged_before_it(tmp_path: Path) -> None:
    free = losses(run(tiny(tmp_path / "a", clip=None)))
    clipped = losses(run(tiny(tmp_path / "b", clip=1e-3)))
    assert torch.equal(free[0], clipped[0])
    assert not torch.equal(free[1:], clipped[1:])


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    config = tiny(tmp_path, save_every=2, retain=1, log_every=100)
    run(replace(config, train=replace(config.train, steps=2)))
    weights = (config.folder.checkpoint(2) / "model.safetensors").read_bytes()
    wild = replace(
        config, train=replace(config.train, steps=8, optimizer=AdamWConfig(lr=1e30), clip=None)
    )
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step [3-5]\b"):
        train(wild, check(wild))
    ((step, folder),) = config.folder.checkpoints().items()
    assert step in (2, 4)  # step 3 may still be finite: its loss was computed before its update
    if step == 2:
        assert (folder / "model.safetensors").read_bytes() == weights


def test_a_run_that_was_lengthened_is_not_finished_before_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, steps=2)
    run(config)
    assert is_finished(config)
    longer = tiny(tmp_path, steps=4)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "export", killed)
        with pytest.raises(KeyboardInterrupt):
            run(longer)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert max(longer.folder.checkpoints()) == 4
    assert not is_finished(longer)
    run(longer)
    assert is_finished(longer)
    assert load_export(longer.folder.path)[1].step == 4


def test_a_learned_variance_is_refused_before_training(tmp_path: Path) -> None:
    dit = DiTConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=3, heads=2, out_channels=6)
    with pytest.raises(ConfigError, match=r"model\.out_channels is 6, model\.channels 3"):
        check(replace(tiny(tmp_path), model=dit))
    check(replace(tiny(tmp_path), model=replace(dit, out_channels=3)))


def test_old_checkpoints_go_and_more_steps_continue(tmp_path: Path) -> None:
    config = tiny(tmp_path, save_every=2, retain=2)
    run(config)
    assert list(config.folder.checkpoints()) == [4, 6]
    assert is_finished(config)
    longer = replace(config, train=replace(config.train, steps=9))
    assert not is_finished(longer)
    assert [r["step"] for r in run(longer)] == list(range(1, 10))
    assert load_export(config.folder.path)[1].step == 9


def test_other_settings_do_not_continue_a_run(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run(config)
    harmless = replace(config.train, steps=12, log_every=5, save_every=7, micro_batch=2)
    check_folder(replace(config, train=harmless, sample=SampleConfig(every=3)))
    changed = replace(
        config, seed=1, train=replace(config.train, optimizer=AdamWConfig(lr=0.5, weight_decay=0.1))
    )
    with pytest.raises(ConfigError) as caught:
        check_folder(changed)
    for key in ("seed", "train.optimizer.lr", "train.optimizer.weight_decay"):
        assert key in str(caught.value)
    assert load_config(config.folder.config) == config


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    config = tiny(tmp_path, save_every=3)
    run(config)
    half = config.folder.path / "checkpoints" / "tmp-step-0000099"
    half.mkdir()
    assert list(config.folder.checkpoints()) == [3, 6]
    run(replace(config, train=replace(config.train, steps=7)))
    assert not half.exists()


def test_latents_without_labels_train_and_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    moments = np.random.default_rng(0).normal(size=(10, 8, 8, 8)).astype(np.float32)
    source = Imported(10, None, moments.__getitem__, scale=0.5)
    begin(folder, {})
    write_shard(source, folder, range(10), 64, int)
    finish(source, folder, 64, None)
    config = replace(
        tiny(tmp_path),
        data=LatentData(path=str(folder)),
        model=DiTConfig(image_size=8, channels=4, n_classes=0, dim=16, depth=3, heads=2),
        objective=NoisePrediction(),
        routing=RoutingConfig(routes=(Route(0, 2),), loss=PerRoute()),
        sample=SampleConfig(every=4, per_class=2, steps=3),
    )
    assert len(run(config)) == 6
    assert [p.name for p in sorted(config.folder.samples.iterdir())] == [
        "step-0000004.png",
        "step-0000006.png",
    ]
    description = load_export(config.folder.path)[1]
    assert description.values == LatentValues(scale=0.5)


def test_grids_do_not_disturb_training(tmp_path: Path) -> None:
    quiet = run(tiny(tmp_path / "a"))
    config = replace(tiny(tmp_path / "b"), sample=SampleConfig(every=1, per_class=1, steps=2))
    assert torch.equal(losses(run(config)), losses(quiet))
