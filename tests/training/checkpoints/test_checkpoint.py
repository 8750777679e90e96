"""Checkpoints: damage is found and survived exactly, a full disk loses nothing that was saved."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from tests.training.runs import run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import load_export
from tread_ssm.training.checkpoints import checkpoint
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig

saved = partial(tiny, save_every=2, retain=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = saved(tmp_path_factory.mktemp("whole"))
    run(config)
    return config


def as_it_stood(whole: RunConfig, out: Path, steps: tuple[int, ...] = (2, 4)) -> RunConfig:
    """The same run, with these checkpoints alone."""
    config = replace(whole, out=str(out))
    for step in steps:
        shutil.copytree(whole.folder.checkpoint(step), config.folder.checkpoint(step))
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(whole.folder.path / name, config.folder.path / name)
    return config


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def another_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 4', '"step": 7'))


def other_weights(path: Path) -> None:
    save_file({k: torch.zeros(2) for k in load_file(path)}, path)


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    *((name, flipped) for name in ("model.safetensors", "optimizer.pt", "ema.safetensors")),
    *((name, flipped) for name in ("config.json", "manifest.json")),
    ("state.json", another_step),
    ("ema.safetensors", other_weights),
    ("model.safetensors", Path.unlink),
    ("optimizer.pt", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    ("optimizer.pt", no_file),
    ("manifest.json", lambda path: path.write_bytes(b"")),
    ("manifest.json", lambda path: path.write_text("[1]")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_and_the_run_ends_bit_identically(
    whole: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], object],
) -> None:
    config = as_it_stood(whole, tmp_path)
    damage(config.folder.checkpoint(4) / name)
    assert train(config, check(config)) is None
    said = capsys.readouterr().err
    assert f"warning: {config.folder.checkpoint(4)}" in said
    assert "It is damaged-step-0000004 now." in said
    assert "Training resumes from step-0000002 instead." in said
    a, b = (load_file(c.folder.path / "ema.safetensors") for c in (whole, config))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert [r["step"] for r in read_metrics(config.folder.metrics)] == [1, 2, 3, 4, 5, 6]
    assert list(config.folder.checkpoints()) == [2, 4, 6]


def test_without_a_whole_checkpoint_nothing_starts_anew_by_itself(
    whole: RunConfig, tmp_path: Path
) -> None:
    config = as_it_stood(whole, tmp_path)
    for path in config.folder.checkpoints().values():
        flipped(path / "optimizer.pt")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"optimizer\.pt is damaged.*remove them to start an"):
            train(config, check(config))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert list(config.folder.checkpoints()) == [2, 4]


def test_another_models_checkpoint_is_named(whole: RunConfig, tmp_path: Path) -> None:
    config = as_it_stood(whole, tmp_path)
    wider = replace(config, model=replace(config.model, dim=32))
    with pytest.raises(ConfigError, match=r"step-0000004 cannot be read .* another model"):
        train(wider, check(wider))


def test_a_run_starts_from_a_checkpoint_of_another_with_its_own_settings(
    whole: RunConfig, tmp_path: Path
) -> None:
    start = str(whole.folder.checkpoint(4))
    same = saved(tmp_path / "same", start_from=start)
    assert train(same, check(same)) is None
    a, b = (load_file(c.folder.path / "ema.safetensors") for c in (whole, same))
    assert all(torch.equal(a[k], b[k]) for k in a)
    AcceleratorState._reset_state(reset_partial_state=True)

    slower = AdamWConfig(lr=1e-5, weight_decay=0.5, betas=(0.5, 0.9))
    other = saved(tmp_path / "other", start_from=start, optimizer=slower)
    assert train(other, check(other)) is None
    assert [r["lr"] for r in read_metrics(other.folder.metrics)] == [1e-5, 1e-5]
    stored = torch.load(other.folder.checkpoint(6) / "optimizer.pt", weights_only=True)
    kinds = {(g["weight_decay"], tuple(g["betas"])) for g in stored["optimizer"]["param_groups"]}
    assert kinds == {(0.5, (0.5, 0.9)), (0.0, (0.5, 0.9))}

    gone = saved(tmp_path / "gone", start_from=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"train\.start_from: .*nowhere.* is no checkpoint"):
        check(gone)


def test_a_full_disk_is_one_sentence_and_the_run_resumes(
    whole: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = as_it_stood(whole, tmp_path)
    plain = checkpoint.save_file

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"step 6 cannot be written .*No space left.* rerun the comm"):
        train(config, check(config))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert list(config.folder.checkpoints()) == [2, 4]
    assert not list(config.folder.checkpoint(0).parent.glob("tmp-*"))
    monkeypatch.setattr(checkpoint, "save_file", plain)
    assert train(config, check(config)) is None
    a, b = (load_file(c.folder.path / "ema.safetensors") for c in (whole, config))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    whole: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = as_it_stood(whole, tmp_path)
    config = replace(config, train=replace(config.train, retain=1))
    plain = os.replace

    def busy(source: Path, target: Path) -> None:
        if Path(source).name == "step-0000002":
            raise OSError(16, "Device or resource busy")
        plain(source, target)

    monkeypatch.setattr(os, "replace", busy)
    assert train(config, check(config)) is None
    assert list(config.folder.checkpoints()) == [2, 6]
    assert "step-0000002 cannot be removed (Device or resource busy)" in capsys.readouterr().err


def test_colleagues_can_read_a_run(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        config = saved(tmp_path, steps=1)
        assert train(config, check(config)) is None
    finally:
        os.umask(before)
    files = [p for p in config.folder.path.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o644}


def test_weights_that_are_not_finite_are_refused(whole: RunConfig, tmp_path: Path) -> None:
    from tread_ssm.pretrained import export

    model, run = load_export(whole.folder.path)
    weights = model.state_dict()
    weights[next(iter(weights))].view(-1)[0] = float("nan")
    export(tmp_path, weights, run)
    with pytest.raises(ConfigError, match="some weights are not finite"):
        load_export(tmp_path)
