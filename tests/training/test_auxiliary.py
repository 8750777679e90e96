"""Auxiliary losses in a run: logged apart, learned heads that are saved and not exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import losses, run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.diffusion import EDM, SRA2, Auxiliary, Contrastive, Dispersive
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import load_export
from tread_ssm.report.measure import step_times
from tread_ssm.routing import Route

INSIDE = SRA2(block=1, layers=2)
ALL = (INSIDE, Dispersive(block=-1, group=2), Contrastive())


def with_losses(config: RunConfig, *auxiliary: Auxiliary) -> RunConfig:
    return replace(config, auxiliary=auxiliary)


def test_terms_are_logged_apart_and_a_run_resumes_with_them(tmp_path: Path) -> None:
    config = with_losses(tiny(tmp_path / "a", save_every=3), *ALL)
    rows = run(config)
    names = ("sra2_loss", "dispersive_loss", "contrastive_loss")
    assert all(r[n] != 0 for r in rows for n in names)
    # The objective's own loss is what it is without them, before the first update.
    assert rows[0]["loss"] == run(tiny(tmp_path / "b"))[0]["loss"]

    half = with_losses(tiny(tmp_path / "c", save_every=3, steps=3), *ALL)
    run(half)
    again = run(replace(half, train=replace(half.train, steps=6)))
    assert [[r[n] for n in names] for r in again] == [[r[n] for n in names] for r in rows]
    weights = [load_file(c.folder.path / "ema.safetensors") for c in (config, half)]
    assert all(torch.equal(t, weights[1][n]) for n, t in weights[0].items())


def test_heads_are_in_the_checkpoint_and_not_in_the_export(tmp_path: Path) -> None:
    config = with_losses(tiny(tmp_path, ema_decay=0.0), *ALL)
    run(config)
    saved = load_file(config.folder.checkpoint(6) / "model.safetensors")
    model, _ = load_export(config.folder.path)
    names = {n for n, _ in model.named_parameters()}
    assert {n for n in saved if n.startswith("heads.")} == {
        f"heads.0.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    assert all(torch.equal(p, saved[f"backbone.{n}"]) for n, p in model.named_parameters())
    assert {n.removeprefix("backbone.") for n in saved if n.startswith("backbone.")} == names
    assert step_times(config, check(config), model, seconds=0, most=3).share is not None


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 2},
        {"checkpoint_gradients": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_how_memory_and_time_are_saved_changes_rounding_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    expected = run(with_losses(tiny(tmp_path / "a", steps=3), *ALL))
    got = run(with_losses(tiny(tmp_path / "b", steps=3, **change), *ALL))
    torch.testing.assert_close(losses(got), losses(expected), rtol=1e-4, atol=1e-6)
    for name in ("sra2_loss", "dispersive_loss", "contrastive_loss"):
        a, b = ([r[name] for r in rows] for rows in (got, expected))
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("auxiliary", "text"),
    [
        ((SRA2(block=3),), r"auxiliary\.0: block is 3; the model has the blocks 0 to 2"),
        ((SRA2(block=-4),), "block is -4"),
        ((INSIDE, INSIDE), "sra2 stands there twice"),
        ((SRA2(block=1, projector="conv"),), "block 1 lies in the route over blocks 0 to 1"),
        ((Dispersive(block=0, group=3),), "train.batch_size gives each process 4 at once"),
        ((Dispersive(block=0, group=4),), "train.micro_batch gives each process 2 at once"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, auxiliary: tuple[Auxiliary, ...], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        check(with_losses(tiny(tmp_path, micro_batch=2), *auxiliary))


def test_steps_that_skip_the_block_have_no_such_loss(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    routing = replace(config.routing, routes=(Route(0, 2, path_drop=0.5),))
    losses = (INSIDE, Dispersive(block=0, group=2))
    rows = run(replace(with_losses(config, *losses), routing=routing))
    skipped = [r["sra2_loss"] is None for r in rows]
    assert 0 < sum(skipped) < 6
    assert [r["dispersive_loss"] is None for r in rows] == skipped


def test_a_convolution_outside_all_routes_is_allowed(tmp_path: Path) -> None:
    config = with_losses(tiny(tmp_path, steps=1), SRA2(block=2, projector="conv"))
    assert run(config)[0]["sra2_loss"] > 0


def test_contrastive_flow_matching_needs_a_flow(tmp_path: Path) -> None:
    config = with_losses(replace(tiny(tmp_path), objective=EDM()), Contrastive())
    with pytest.raises(ConfigError, match="objective edm does not predict"):
        check(config)
