"""What the README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_dry_runs_print_size_and_plan() -> None:
    (line,) = [s for s in SHELL if s.endswith("--dry-run")]
    command = line.replace("accelerate launch", sys.executable).split()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "386.1M parameters" in run.stdout
    assert "blocks      4..45 see 238 tokens" in run.stdout


def test_named_files_exist() -> None:
    named = re.findall(r"(?:scripts|configs|docs)/\w+\.\w+", README)
    assert named and all((ROOT / name).is_file() for name in named)
    for name in re.findall(r"^\| ((?:`\w+`, )*`\w+`) \|", README, re.MULTILINE):
        for stem in re.findall(r"`((?:dim|dit)_\w+)`", name):
            assert (ROOT / "configs" / f"{stem}.yaml").is_file()


def test_continuous_integration_runs_the_two_commands() -> None:
    marked = README.split("<!-- ci:begin -->")[1].split("<!-- ci:end -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith("pip install")]
    assert commands == [
        "pip install -e . && accelerate launch scripts/train.py --config configs/quickstart.yaml",
        'pip install -e ".[dev]" && pytest',
    ]
