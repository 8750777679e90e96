"""The console command: its subcommands, configurations by name, and the scripts of old."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tread_ssm.__main__ import main
from tread_ssm.commands import names, summary
from tread_ssm.config.run import load_config
from tread_ssm.config.shipped import find, shipped
from tread_ssm.errors import ConfigError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def test_every_subcommand_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    needed = "train sample evaluate prepare plan report compare convert env"
    assert {*needed.split()} <= {*names()}
    for name in names():
        assert summary(name).endswith(".") and summary(name) in text


@pytest.mark.parametrize("name", names())
def test_every_subcommand_has_a_help_page_under_its_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tread-ssm {name} ")


def test_what_is_no_subcommand_is_refused_with_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tran"]) == 2
    assert "'tran' is no command" in (err := capsys.readouterr().err) and "  train " in err
    assert main([]) == 2


def test_a_subcommand_keeps_its_exit_code_and_prints_where_it_is_told(tmp_path: Path) -> None:
    def run(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tread_ssm", *line],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    done = run("plan", "--config", "dit_b")
    assert done.returncode == 0, done.stderr
    assert "50% dropped" in done.stdout
    done = run("train", "--config", "dit_c")
    assert done.returncode == 2
    assert done.stderr.startswith("error: dit_c: there is no such file; the configurations")
    assert all(name in done.stderr for name in shipped())


def test_configurations_are_found_by_name_and_files_first(tmp_path: Path) -> None:
    assert {f.stem for f in (ROOT / "configs").glob("*.yaml")} == shipped().keys()
    assert load_config("dim_s") == load_config(ROOT / "configs" / "dim_s.yaml")
    (tmp_path / "dim_s").write_text("")
    assert find(tmp_path / "dim_s") == tmp_path / "dim_s"
    with pytest.raises(ConfigError, match=r"gone/dim_s: there is no such file; .*dim_s"):
        find(tmp_path / "gone" / "dim_s")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_is_the_subcommand_and_nothing_else(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    sources = [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert [n for n in sources if n.removeprefix("tread_ssm.commands.") in names()]
    assert not [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_the_command(tmp_path: Path) -> None:
    line = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    source = tmp_path / "source"
    left = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "build", "runs", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=left)  # no build folder: pip would build in the checkout
    environment = os.environ | {"CXX": "false", "CC": "false"}  # kernels are optional, and slow
    done = subprocess.run(
        [sys.executable, *line, str(tmp_path), str(source)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
        entry = next(n for n in held if n.endswith("entry_points.txt"))
        assert "tread-ssm = tread_ssm.__main__:main" in wheel.read(entry).decode()
        wheel.extractall(tmp_path / "installed")
    configs = {f"tread_ssm/configs/{f.name}" for f in (ROOT / "configs").glob("*.yaml")}
    assert configs <= held
    done = subprocess.run(
        [sys.executable, "-m", "tread_ssm", "plan", "--config", "dim_s"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
