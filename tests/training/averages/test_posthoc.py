"""Snapshots of a real run: kept, whole, exact over a resume, and averaged with any width."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import run, tiny
from tread_ssm.commands import average, sample
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import load_export
from tread_ssm.training.averages.posthoc import load_average, reconstruct
from tread_ssm.training.averages.power_ema import PosthocEma, file_of
from tread_ssm.training.loop import train

WIDTHS = (0.05, 0.1)


def averaged(out: Path, **options: object) -> RunConfig:
    settings: dict[str, object] = {"steps": 9, "save_every": 3, "retain": 1}
    settings |= {"posthoc_ema": PosthocEma(every=2, widths=WIDTHS)}
    return tiny(out, **(settings | options))


def test_snapshots_stay_and_give_the_averages_that_were_kept(tmp_path: Path) -> None:
    config = averaged(tmp_path)
    run(config)
    folder = config.folder
    assert list(folder.checkpoints()) == [9]
    assert list(folder.snapshots()) == [2, 4, 6, 8, 9]
    for width in WIDTHS:
        weights, described = reconstruct(folder, width)
        assert described.step == 9
        held = load_file(folder.snapshot(9) / file_of(width))
        assert held.keys() == weights.keys()
        for name, tensor in held.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    model, described = load_average(folder, 0.07, 6, "cpu")
    assert described.step == 6 and not model.training
    narrow, wide = (reconstruct(folder, width)[0] for width in (0.03, 0.2))
    assert any(not torch.allclose(narrow[n], wide[n], atol=1e-4) for n in narrow)


def test_a_resumed_run_writes_the_same_snapshots(tmp_path: Path) -> None:
    whole = averaged(tmp_path / "a")
    run(whole)
    half = averaged(tmp_path / "b")
    first = replace(half, train=replace(half.train, steps=5))
    run(first)
    run(half)
    assert list(half.folder.snapshots()) == [2, 4, 5, 6, 8, 9]  # the shorter run ended at 5
    for step in whole.folder.snapshots():
        for width in WIDTHS:
            a, b = (load_file(c.folder.snapshot(step) / file_of(width)) for c in (whole, half))
            assert all(torch.equal(t, b[n]) for n, t in a.items())


def test_the_command_writes_what_sampling_takes_as_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = averaged(tmp_path)
    run(config)
    folder = str(config.folder.path)
    assert average.main(["--run", folder, "--width", "0.07"]) == 0
    out = config.folder.path / "averages" / "width-0.07"
    model, _ = load_export(out)
    expected, _ = reconstruct(config.folder, 0.07)
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    arguments = ["--run", str(out), "--steps", "1", "--out", str(tmp_path / "grid.png")]
    assert sample.main([*arguments, "--device", "cpu", "--class", "Flags"]) == 0
    capsys.readouterr()
    for wrong, text in (
        (["--width", "0.3"], "it must satisfy 0 < width <= 0.28"),
        (["--width", "0.05", "--step", "3"], "no snapshot of step 3; there are 2, 4, 6, 8, 9"),
    ):
        assert average.main(["--run", folder, *wrong]) == 2
        assert text in capsys.readouterr().err


def test_damaged_and_missing_snapshots_are_named(tmp_path: Path) -> None:
    config = averaged(tmp_path, steps=4)
    run(config)
    file = config.folder.snapshot(2) / file_of(0.1)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(ConfigError, match=r"step-0000002/width-0\.1\.safetensors is damaged"):
        reconstruct(config.folder, 0.07)
    plain = tiny(tmp_path / "plain", steps=1)
    run(plain)
    with pytest.raises(ConfigError, match="holds no snapshots to average"):
        reconstruct(plain.folder, 0.07)


def test_a_run_that_starts_anew_drops_the_snapshots_of_the_one_before(tmp_path: Path) -> None:
    config = averaged(tmp_path)
    run(config)
    shutil.rmtree(config.folder.checkpoint(9).parent)
    again = replace(config, seed=config.seed + 1, train=replace(config.train, steps=5))
    run(again)
    assert list(again.folder.snapshots()) == [2, 4, 5]
    weights, described = reconstruct(again.folder, WIDTHS[0])
    held = load_file(again.folder.snapshot(5) / file_of(WIDTHS[0]))
    assert described.step == 5
    for name, tensor in held.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_cannot_start_from_one_that_kept_no_such_averages(tmp_path: Path) -> None:
    plain = tiny(tmp_path / "plain", steps=2)
    run(plain)
    config = averaged(tmp_path, start_from=str(plain.folder.checkpoint(2)))
    with pytest.raises(ConfigError, match=r"holds no average of width 0\.05"):
        train(config, check(config))
