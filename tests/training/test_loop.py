"""The loop in this process: what it leaves, when it stops, what may change between sessions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from tests.training.runs import losses, run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import (
    RoutingConfig,
    SampleConfig,
    load_config,
)
from tread_ssm.data import ArrayData, LatentData, LatentValues
from tread_ssm.data.importers import Imported
from tread_ssm.data.prepare import begin, finish, write_shard
from tread_ssm.diffusion import NoisePrediction, PerRoute
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiTConfig
from tread_ssm.pretrained import load_export
from tread_ssm.report.plan import plan_text
from tread_ssm.routing import Route
from tread_ssm.training import loop
from tread_ssm.training.batch import Batch
from tread_ssm.training.checkpoints.resume import check_folder
from tread_ssm.training.logs.log import TrainingError
from tread_ssm.training.loop import is_finished, train
from tread_ssm.training.monitoring.preview import Preview
from tread_ssm.training.optimizer import AdamWConfig, MuonConfig
from tread_ssm.training.step import Stepper


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
    # The export is of step 2 still.
    assert longer.folder.weights() == longer.folder.checkpoint(4)
    run(longer)
    assert is_finished(longer)
    assert load_export(longer.folder.path)[1].step == 4
    assert longer.folder.weights() == longer.folder.path


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


def test_muon_resumes_bit_for_bit(tmp_path: Path) -> None:
    options = {"optimizer": MuonConfig(lr=1e-2, weight_decay=0.1), "save_every": 3}
    whole = tiny(tmp_path / "a", **options)
    expected = losses(run(whole))
    half = tiny(tmp_path / "b", **options, steps=3)
    run(half)
    longer = tiny(tmp_path / "b", **options)
    assert torch.equal(losses(run(longer)), expected)
    weights = [load_file(c.folder.checkpoint(6) / "model.safetensors") for c in (whole, longer)]
    assert all(torch.equal(t, weights[1][n]) for n, t in weights[0].items())


def test_other_settings_do_not_continue_a_run(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run(config)
    harmless = replace(config.train, steps=12, log_every=5, save_every=7, micro_batch=2)
    check_folder(replace(config, train=harmless, sample=SampleConfig(every=3)), check(config))
    changed = replace(
        config, seed=1, train=replace(config.train, optimizer=AdamWConfig(lr=0.5, weight_decay=0.1))
    )
    with pytest.raises(ConfigError) as caught:
        check_folder(changed, check(changed))
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
    source = Imported(10, None, moments.__getitem__, LatentValues(scale=0.5))
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


def test_grids_are_guided_as_the_configuration_says(tmp_path: Path) -> None:
    """By path, by routes, and by the weights of another run's checkpoint."""
    grid = SampleConfig(every=6, per_class=1, steps=2, guidance=3.0)
    config = replace(tiny(tmp_path, save_every=3), sample=grid)
    run(config)
    weak = str(config.folder.checkpoint(3))
    kinds = {
        "path": replace(grid, guided_by="path"),
        "routes": replace(grid, weak_drop=0.75),
        "model": replace(grid, guided_by="model", weak_run=weak),
    }
    grids = {config.folder.sample_grid(6).read_bytes()}
    for kind, sample in kinds.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        guided = replace(config, name=kind, sample=sample)
        run(guided)
        assert load_export(guided.folder.path)[1].sample == sample
        assert plan_text(guided)  # which knows the cost of each kind
        grids.add(guided.folder.sample_grid(6).read_bytes())
    assert len(grids) == 4


def test_grids_do_not_disturb_training(tmp_path: Path) -> None:
    quiet = run(tiny(tmp_path / "a"))
    config = replace(tiny(tmp_path / "b"), sample=SampleConfig(every=1, per_class=1, steps=2))
    assert torch.equal(losses(run(config)), losses(quiet))


def test_the_checkpoint_of_a_step_is_written_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a font is missing")

    config = tiny(tmp_path, save_every=3)
    config = replace(config, sample=SampleConfig(every=3, per_class=1, steps=2))
    with monkeypatch.context() as patch:
        patch.setattr(Preview, "write", broken)
        for step in (3, 3):
            with pytest.raises(ValueError, match="a font is missing"):
                run(config)
            AcceleratorState._reset_state(reset_partial_state=True)
            assert list(config.folder.checkpoints()) == [step]
    # What was owed after step 3 is caught up.
    run(config)
    assert all(config.folder.sample_grid(step).is_file() for step in (3, 6))
    before = config.folder.sample_grid(6).read_bytes()
    config.folder.sample_grid(6).unlink()
    run(config)
    assert config.folder.sample_grid(6).read_bytes() == before


def test_a_spike_of_the_loss_is_said_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Stepper.step
    steps = iter(range(1, 7))

    def spiked(self: Stepper, batch: Batch, lr: float) -> Tensor:
        factor = torch.tensor([1e6 if next(steps) == 4 else 1.0, 1.0, 1.0, 1.0])
        return plain(self, batch, lr) * factor

    monkeypatch.setattr(Stepper, "step", spiked)
    run(tiny(tmp_path))
    warnings = [s for s in capsys.readouterr().err.splitlines() if "warning: the loss" in s]
    assert len(warnings) == 1
    assert "at step 4; it was " in warnings[0] and "train.optimizer.lr" in warnings[0]


def test_the_remedy_after_a_broken_loss_works(tmp_path: Path) -> None:
    config = tiny(tmp_path, save_every=2, optimizer=AdamWConfig(lr=1e30), clip=None)
    start = tiny(tmp_path, steps=2)
    run(start)
    wild = replace(config, name="wild")
    wild = replace(wild, train=replace(wild.train, start_from=str(start.folder.checkpoint(2))))
    with pytest.raises(
        TrainingError, match=r"Nothing was saved before|train\.start_from="
    ) as caught:
        run(wild)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "train.optimizer.lr" in str(caught.value)
    saved = max(wild.folder.checkpoints(), default=None)
    source = start.folder.checkpoint(2) if saved is None else wild.folder.checkpoint(saved)
    calm = replace(config, name="calm")
    train = replace(calm.train, optimizer=AdamWConfig(lr=1e-4), start_from=str(source))
    assert run(replace(calm, train=train))[-1]["step"] == 6


def test_other_data_does_not_continue_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(12) % 9
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=labels)
    config = replace(tiny(tmp_path), data=ArrayData(path=str(path)))
    run(config)
    assert check_folder(config, check(config)) == []
    np.savez(path, images=images[::-1].copy(), labels=labels)
    with pytest.raises(ConfigError, match=r"holds a run on other data: digest was \w+ and is \w+"):
        check_folder(config, check(config))
    np.savez(path, images=images[:11], labels=labels[:11])
    with pytest.raises(ConfigError, match="samples was 12 and is 11"):
        check_folder(config, check(config))
    for damaged in (b"", b'{"samples": 1', b"[]", b"\xff"):
        config.folder.data.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"data\.json is damaged"):
            check_folder(config, check(config))


def test_another_length_is_allowed_and_its_effect_is_said(tmp_path: Path) -> None:
    config = tiny(tmp_path, schedule="cosine")
    run(config)
    data = check(config)

    def notes(**changes: object) -> list[str]:
        return check_folder(replace(config, train=replace(config.train, **changes)), data)  # type: ignore[arg-type]

    assert notes() == []
    (longer,) = notes(steps=9)
    assert "was 6 and is 9" in longer and "differs" in longer
    (shorter,) = notes(steps=4)
    assert "train.steps is 4, but 6 steps are done" in shorter


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "a\\b", "a\nb", "<b>", "x" * 101, "-a", "é\0"]
)
def test_names_are_checked_as_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="it becomes the name of a folder"):
        replace(tiny(tmp_path), name=name)
    replace(tiny(tmp_path), name="dim_l-2 (é)".replace("(", "+").replace(")", ""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10**9}, r"train\.batch_size is 1,000,000,000; its noise alone .* 768 GB"),
        ({"depth": 10**9 + 1}, r"model\.depth is 1,000,000,001; use at most 1,000"),
    ],
)
def test_what_no_machine_can_hold_is_refused_at_once(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    config = tiny(tmp_path)
    if "depth" in change:
        config = replace(config, model=replace(config.model, **change))
    else:
        config = replace(config, train=replace(config.train, **change))
    with pytest.raises(ConfigError, match=message):
        check(config)
    with pytest.raises(ValueError, match="threads is 1000000"):
        tiny(tmp_path, threads=10**6)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="runs is a file; runs need a folder"):
        check(tiny(tmp_path / "runs"))
