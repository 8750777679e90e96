"""Twenty training steps of each backbone against stored loss curves (tests/golden/make.py)."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
MAKE = runpy.run_path(str(GOLDEN / "make.py"))


@pytest.mark.parametrize("name", MAKE["CONFIGS"])
def test_twenty_steps_follow_the_golden_curve(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())["losses"]
    assert len(golden) == MAKE["STEPS"] == 20
    assert golden[-1] < 0.9 * golden[0]
    assert MAKE["loss_curve"](name) == pytest.approx(golden, rel=1e-4)
