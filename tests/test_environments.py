"""Dockerfile and environment.yml, as far as they can be checked without Docker and conda."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of each instruction of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")
    ]


def extras(requirement: str) -> set[str]:
    return set(re.search(r"\[(.*)\]", requirement)[1].split(","))  # type: ignore[index]


def floor(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_the_image_installs_this_project_with_extras_that_exist() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert names == ["FROM", "RUN", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"]
    base = dict(found)["FROM"]
    assert floor(base)[:2] >= floor(PROJECT["requires-python"])
    (copied,) = [rest for name, rest in found if name == "COPY"]
    source, target = copied.split()
    (install,) = [rest for _, rest in found if rest.startswith("pip install")]
    assert source == "." and f'"{target}[' in install
    assert extras(install) <= PROJECT["optional-dependencies"].keys()


def test_the_image_starts_a_command_that_the_project_has() -> None:
    entry = json.loads(dict(instructions())["ENTRYPOINT"])
    assert entry[0] in PROJECT["scripts"]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    needed = (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "NOTICE",
        "tread_ssm",
        "configs",
    )
    assert all((ROOT / name).exists() for name in needed) and not set(needed) & set(ignored)


def test_the_conda_environment_installs_this_project() -> None:
    held = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert held["name"] == PROJECT["name"]
    packages = [d for d in held["dependencies"] if isinstance(d, str)]
    (python,) = [d for d in packages if d.startswith("python")]
    assert floor(python) == floor(PROJECT["requires-python"])
    assert "pip" in packages  # conda warns where pip: stands without it
    (pip,) = [d["pip"] for d in held["dependencies"] if isinstance(d, dict)]
    assert [line for line in pip if line.startswith("-e .")] == pip
    assert extras(pip[0]) <= PROJECT["optional-dependencies"].keys()
