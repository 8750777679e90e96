"""`tread-ssm plan` on every configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tread_ssm.commands.plan import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tread_ssm", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_table_ratio_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "plan.png"
    run = plan("--config", "configs/dim_l.yaml", "--out", str(out))
    assert run.returncode == 0, run.stderr
    assert "| 4 to 45 | 366 | 238 |" in run.stdout
    assert "0.70 times the dense one's time" in run.stdout
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_small_networks_have_small_units_and_no_cautions() -> None:
    run = plan("--config", "configs/quickstart.yaml", "--gpus", "8")
    assert run.returncode == 0, run.stderr
    assert "| 2 to 5 | 66 | 34 | 21.8 | 11.2 |" in run.stdout
    assert "MFLOPs, dense" in run.stdout
    assert "Nothing known speaks against these routes." in run.stdout
    costs, _, rest = run.stdout.partition("| parameter group |")
    assert not re.search(r"\| 0(\.0)? \|", costs + rest.partition("A100")[2])
    assert "an estimate" in run.stdout


def test_one_table_of_several_configurations() -> None:
    run = plan("--table", "configs/quickstart.yaml", "configs/dit_b.yaml")
    assert run.returncode == 0, run.stderr
    head, _, first, second = run.stdout.splitlines()
    assert head.startswith("|  | parameters | FLOPs of a step, dense | routed |")
    assert first.startswith("| `quickstart` | 304.0k | 120.8 MFLOPs | 87.2 MFLOPs |")
    assert second.startswith("| `dit_b` | 130.3M | 138.0 GFLOPs | 96.8 GFLOPs |")
    wrong = plan("--table", "configs/dit_b.yaml", "--out", "a.png")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --out and overrides belong to --config.\n"


def test_overrides_and_errors() -> None:
    run = plan("--config", "configs/dit_b.yaml", "routing.routes.0.drop=0.75")
    assert "| 64 |" in run.stdout
    assert "drops 75%" in run.stdout
    wrong = plan("--config", "configs/dit_b.yaml", "routing.routes.0.stop=99")
    assert wrong.returncode == 2
    assert "stop is exclusive and may be at most 12" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    wrong = plan("--config", "configs/dit_b.yaml", "--out", "plan.xyz")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --out: plan.xyz must end in .png or .svg.")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_has_a_plan(config: Path) -> None:
    assert main(["--config", str(config)]) == 0
