"""The speed run trains a record and its predecessor, and says whether they arrived."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import speedrun


def test_every_recipe_can_be_configured(tmp_path: Path) -> None:
    for size, race in speedrun.RACES.items():
        assert race.size == size and len(race.recipes) >= 2
        assert len({recipe.name for recipe in race.recipes}) == len(race.recipes)
        for recipe in race.recipes:
            config, _ = speedrun.configure(race, recipe, 3, tmp_path)
            assert config.model.image_size == size and config.train.threads == 2


def test_a_record_and_its_predecessor(tmp_path: Path) -> None:
    recipes = tuple(
        speedrun.Recipe(name, "", (*speedrun.TOY, f"train.steps={steps}"))
        for name, steps in (("oldest", 1), ("before", 2), ("now", 4))
    )
    race = speedrun.Race(16, 500.0, recipes)
    before, now = speedrun.run(race, [5], tmp_path)
    assert (before["recipe"], now["recipe"]) == ("before", "now")
    assert before["session"] == now["session"] and now["machine"]
    assert now["seconds"][0] > 0 and 0 < now["distance"][0] != before["distance"][0]
    lines = speedrun.table([before, now | {"goal": 0.1}]).splitlines()[2:]
    assert "| yes | 1 |" in lines[0] and "| no | 1 |" in lines[1]
    ratio = now["seconds"][0] / before["seconds"][0]
    assert f"| {ratio:.2f} |" in lines[1]
    with pytest.raises(ValueError, match="exists; choose another work folder"):
        speedrun.train(race, recipes[-1], 5, tmp_path)
