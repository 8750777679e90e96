"""What the page shows is what sampling did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.app.runs import write_run
from tread_ssm import Route
from tread_ssm.app.play import (
    CLASS,
    MODEL,
    NONE,
    PATH,
    ROUTES,
    Choice,
    Player,
    images_of,
    told,
    weak_pass,
)
from tread_ssm.pretrained import export, load_export
from tread_ssm.tokens import TokenSubset

CHOICE = Choice(kind=ROUTES, scale=2.0, weak_drop=0.25, steps=5, name="dog", seed=3, n=2)


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    return Player.load(write_run(tmp_path_factory.mktemp("run")), torch.device("cpu"))


def test_the_overlay_shows_the_tokens_that_sampling_kept(player: Player) -> None:
    kept: list[TokenSubset] = []

    def note(model: torch.nn.Module, args: tuple[object, ...], options: dict[str, object]) -> None:
        kept.extend(subset for _, subset in options["routing"])  # type: ignore[attr-defined]

    hook = player.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        images_of(player, CHOICE)
    finally:
        hook.remove()
    passes = [s.index[0].tolist() for s in kept if s.index.shape[1] < s.length]
    shown = [s.index[0].tolist() for s in weak_pass(player, CHOICE).values()]
    # Heun looks twice at each step but the last, the second time where the next step begins.
    assert shown == [passes[0], passes[3], passes[-1]]
    assert all(len(index) == 48 for index in shown) and len({*map(tuple, shown)}) == 3


def test_choices_matter_and_repeat(player: Player) -> None:
    base = images_of(player, CHOICE)
    assert base.shape == (2, 16, 16, 3) and np.array_equal(base, images_of(player, CHOICE))
    for change in (
        {"kind": NONE},
        {"kind": CLASS},
        {"kind": PATH},
        {"scale": 4.0},
        {"weak_drop": 0.75},
        {"steps": 6},
        {"name": "cat"},
        {"seed": 4},
    ):
        assert not np.array_equal(base, images_of(player, replace(CHOICE, **change))), change


def test_a_run_is_offered_what_it_allows(player: Player, tmp_path: Path) -> None:
    assert player.kinds == [NONE, CLASS, ROUTES, PATH] and player.classes == ["cat", "dog", "bird"]
    plain = Player.load(write_run(tmp_path, (), routed=False), torch.device("cpu"))
    assert plain.kinds == [NONE] and plain.classes == []
    no_class = replace(CHOICE, kind=NONE, name=None)
    assert images_of(plain, no_class).shape == (2, 16, 16, 3)


def test_where_every_token_is_seen_there_is_no_overlay(player: Player) -> None:
    for change in ({"kind": NONE}, {"kind": CLASS}, {"scale": 1.0}):
        assert weak_pass(player, replace(CHOICE, **change)) == {}
    assert "not the class" in told(player, replace(CHOICE, kind=CLASS))
    path = told(player, replace(CHOICE, kind=PATH))
    assert "skips the blocks of the routes" in path and "never trained without" in path
    able = replace(player, run=replace(player.run, routes=(Route(1, 3, path_drop=0.1),)))
    assert "never" not in told(able, replace(CHOICE, kind=PATH))


def test_another_run_guides(player: Player, tmp_path: Path) -> None:
    weak = write_run(tmp_path / "weak")
    model, described = load_export(weak)
    export(weak, {n: 0.9 * w for n, w in model.state_dict().items()}, described)
    choice = replace(CHOICE, kind=MODEL, weak_run=str(weak))
    alone = images_of(player, replace(CHOICE, kind=NONE))
    assert not np.array_equal(images_of(player, choice), alone)
    assert np.array_equal(images_of(player, replace(choice, scale=1.0)), alone)
    assert weak_pass(player, choice) == {} and str(weak) in told(player, choice)
    with pytest.raises(ValueError, match="guidance by model needs weak_run"):
        images_of(player, replace(choice, weak_run=None))
    other = write_run(tmp_path / "other", ())
    with pytest.raises(ValueError, match="has n_classes 0, the guided network 3"):
        images_of(player, replace(choice, weak_run=str(other)))
