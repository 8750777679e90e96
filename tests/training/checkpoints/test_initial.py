"""Runs that start from the weights of others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.training.runs import run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import RoutingConfig, RunConfig
from tread_ssm.diffusion import EDM
from tread_ssm.errors import ConfigError
from tread_ssm.routing import Route, RouteSchedule
from tread_ssm.training.checkpoints.initial import initial_weights, start_from_weights
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A short run with a fused route."""
    config = tiny(tmp_path_factory.mktemp("routed"), steps=2)
    routing = replace(config.routing, routes=(Route(0, 2, rejoin="fuse"),))
    config = replace(config, routing=routing)
    run(config)
    return config


def started(routed: RunConfig, out: Path, **options: object) -> RunConfig:
    config = tiny(out, **({"init_from": str(routed.folder.path)} | options))
    return replace(config, model=routed.model, routing=routed.routing)


def test_a_dense_tail_from_a_routed_run(routed: RunConfig, tmp_path: Path) -> None:
    """Another length, another learning rate, no routes; a source that is gone hinders no resume."""
    source = tmp_path / "source"
    shutil.copytree(routed.folder.path, source)
    config = started(
        routed, tmp_path, init_from=str(source), steps=3, optimizer=AdamWConfig(lr=1e-12)
    )
    schedule = RouteSchedule(off_after=0)
    config = replace(config, routing=replace(config.routing, schedule=schedule))
    rows = run(config)
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert all(r["routed_loss"] is None for r in rows) and rows[0]["lr"] == 1e-12
    before, after = (load_file(p / "ema.safetensors") for p in (source, config.folder.path))
    assert before.keys() == after.keys() and "fuse.0-2.mask_token" in after
    for name, tensor in before.items():  # so small a rate leaves the weights where they began
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)
    shutil.rmtree(source)
    assert run(replace(config, train=replace(config.train, steps=4)))[-1]["step"] == 4


def test_what_is_left_out_and_what_is_new_is_listed(routed: RunConfig, tmp_path: Path) -> None:
    config = started(routed, tmp_path)
    other = replace(config.model, n_classes=4, fuse=((1, 2),))
    config = replace(config, model=other, routing=RoutingConfig())
    found = initial_weights(config)
    assert found is not None
    text = str(found)
    assert "label_cond.weight (10 x 16 there, 5 x 16 here)" in text
    assert "fuse.0-2.mask_token" in text and "new: " in text and "fuse.1-2.of_end.weight" in text
    model = config.model.build()
    fresh = model.state_dict()["label_cond.weight"].clone()
    start_from_weights(model, config)
    held = load_file(routed.folder.path / "ema.safetensors")
    assert torch.equal(model.state_dict()["conv_in.weight"], held["conv_in.weight"])
    assert torch.equal(model.state_dict()["label_cond.weight"], fresh)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_starts_a_run_as_well(routed: RunConfig, tmp_path: Path, kind: str) -> None:
    held = load_file(routed.folder.path / "ema.safetensors")
    file = routed.folder.path / "ema.safetensors"
    if kind == "pt":
        file = tmp_path / "weights.pt"
        torch.save(held, file)
    found = initial_weights(started(routed, tmp_path, init_from=str(file)))
    assert found is not None and not found.left_out and not found.new
    assert all(torch.equal(found.taken[n], t) for n, t in held.items())


def test_another_objective_is_said(routed: RunConfig, tmp_path: Path) -> None:
    config = replace(started(routed, tmp_path), objective=EDM())
    assert "They were trained with Flow(" in str(initial_weights(config))
    assert str(initial_weights(started(routed, tmp_path))).endswith("start this run.")


def test_what_cannot_start_a_run_is_refused(routed: RunConfig, tmp_path: Path) -> None:
    def refused(text: str, source: Path, **changes: int) -> None:
        config = started(routed, tmp_path, init_from=str(source))
        config = replace(config, model=replace(config.model, **changes))
        with pytest.raises(ConfigError, match=text):
            train(config, check(config))
        AcceleratorState._reset_state(reset_partial_state=True)

    refused("nowhere is neither a folder nor a file", tmp_path / "nowhere")
    refused("holds no config.json", tmp_path)
    damaged, other = tmp_path / "a.safetensors", tmp_path / "b.pt"
    damaged.write_bytes(b"no tensors")
    refused(r"a\.safetensors cannot be read", damaged)
    torch.save([1, 2], other)
    refused("holds no tensors by their names", other)
    torch.save({"x": torch.zeros(2)}, other)
    refused("none of the 1 tensors in .* has the name", other)
    with pytest.raises(ValueError, match="init_from and start_from are both set"):
        tiny(tmp_path, init_from="a", start_from="b")
