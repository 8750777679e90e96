"""The pages of docs/ are true: their code runs, what they name exists, and the site builds."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import pytest
import yaml
from PIL import Image

import tread_ssm
from tread_ssm import DiMConfig, Route
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.strict import Document, build
from tread_ssm.scan.ops import SELECTIVE_BACKENDS, SSD_BACKENDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = sorted(DOCS.rglob("*.md")) + [ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING")]
NAMES = [str(p.relative_to(ROOT)) for p in TEXTS]

# The quickstart's run in small, for the pages that draw from it.
SMALL = "train.steps=4 train.save_every=2 train.threads=1 train.report=false sample.steps=2"


def blocks(path: Path, language: str) -> list[str]:
    """The page's blocks of code in a language, in their order."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(path: Path) -> list[str]:
    """The page's commands that are ours, as arguments of Python."""
    lines = "\n".join(blocks(path, "sh")).splitlines()
    ours = re.compile(r"(?:(?:scripts|benchmarks|tests)/\S+\.py|tread-ssm ).*")
    found = [ours.search(line) for line in lines]
    return [re.sub("^tread-ssm", "-m tread_ssm", m[0]) for m in found if m is not None]


def program(command: str) -> tuple[list[str], list[str]]:
    """What Python runs, a file or a subcommand, and the arguments."""
    words = shlex.split(command)
    n = 3 if words[0] == "-m" else 1
    return words[:n], words[n:]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts, the configurations and the quickstart, routed and dense."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    train = ("-m", "tread_ssm", "train", "--config", "quickstart", *SMALL.split())
    for more in ((), ("routing.routes=[]", "name=quickstart_dense")):
        run = python(*train, *more, cwd=folder)
        assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", [n for n in NAMES if blocks(ROOT / n, "python")])
def test_the_examples_of_a_page_run_one_after_the_other(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    names: dict[str, Any] = {"__name__": "docs"}
    for i, code in enumerate(blocks(ROOT / name, "python")):
        exec(compile(code, f"{name}, example {i}", "exec", dont_inherit=True), names)


# `tread-ssm app` serves until somebody ends it: tests/app uses it in a browser.
DRAWN = sorted(
    {c for p in TEXTS for c in commands(p) if "runs/quickstart" in c and " app " not in c}
)


@pytest.mark.parametrize("command", DRAWN)
def test_commands_on_the_quickstarts_run_work(command: str, workplace: Path) -> None:
    smaller = ["--steps", "2"] if " sample " in command else []
    run = python(*shlex.split(command), *smaller, cwd=workplace)
    assert run.returncode == 0, run.stderr[-3000:]


@cache
def options(*program: str) -> set[str]:
    help_text = python(*program, "--help").stdout
    return set(re.findall(r"(?<![\w-])--[\w-]+", help_text))


@pytest.mark.parametrize("name", [n for n in NAMES if commands(ROOT / n)])
def test_commands_name_files_options_and_keys_that_exist(name: str) -> None:
    for command in commands(ROOT / name):
        script, words = program(command)
        assert script[0] == "-m" or (ROOT / script[0]).is_file(), command
        unknown = {w for w in words if w.startswith("--")} - options(*script)
        assert not unknown, f"{command}: no such options"
        if "--config" not in words:
            continue
        named = words[words.index("--config") + 1]
        file = ROOT / named if "/" in named else named
        overrides = [w for w in words if re.match(r"[a-z_]+(\.\w+)*=", w)]
        load_config(file, overrides)  # raises ConfigError


@pytest.mark.parametrize("name", NAMES)
def test_named_files_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    places = r"(?:tread_ssm|scripts|configs|benchmarks|docs|notebooks|tests)/[\w/.-]*\w"
    named = re.findall(rf"(?<![\w/.-])({places})\b(?!/\.\.\.)", text)
    missing = [n for n in named if not (ROOT / n).exists()]
    assert not missing


@pytest.mark.parametrize("name", [n for n in NAMES if blocks(ROOT / n, "yaml")])
def test_yaml_examples_are_configurations(name: str) -> None:
    for text in blocks(ROOT / name, "yaml"):
        base = yaml.safe_load((ROOT / "configs" / "dim_s.yaml").read_text())
        for section, value in yaml.safe_load(text).items():
            # What a `kind` decides is replaced as a whole.
            whole = "kind" in value or section not in base
            base[section] = value if whole else base[section] | value
        build(RunConfig, Document(base, name))  # raises ConfigError


def test_examples_of_ours_and_of_the_dry_run_say_what_they_print() -> None:
    run = python("-m", "tread_ssm", "train", "--config", "dim_l", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "386.1M parameters" in run.stdout
    assert "| 4 to 45 | 366 | 238 |" in run.stdout


def test_every_environment_variable_of_the_code_is_in_the_table() -> None:
    table = (DOCS / "kernels.md").read_text(encoding="utf-8")
    sources = [p for n in ("tread_ssm", "notebooks") for p in (ROOT / n).rglob("*.py")]
    text = "".join(p.read_text(encoding="utf-8") for p in sources)
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", text))
    read |= set(re.findall(r"TREAD_SSM_[A-Z]+", text))
    assert {"TREAD_SSM_BACKEND", "TREAD_SSM_FAST", "TRITON_INTERPRET"} <= read
    launcher = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)|(ACCELERATE|FSDP)_\w+")  # what it sets
    listed = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    assert not {n for n in read - listed if not launcher.fullmatch(n)}


def test_every_scan_backend_is_in_its_table() -> None:
    _, selective, product = (
        (DOCS / "kernels.md").read_text(encoding="utf-8").split("| backend |", 2)
    )
    product = product.split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", selective, re.MULTILINE) == list(SELECTIVE_BACKENDS)
    assert re.findall(r"^\| `(\w+)` \|", product, re.MULTILINE) == list(SSD_BACKENDS)


# Set by a tuple assignment or a base class, where reading the source does not show them.
INHERITED = {"config", "grid", "depth"}


def entry_names(entry: Any) -> list[str]:
    """The names before the colon of an entry; griffe takes the second of several for a type."""
    together = f"{entry.name} {entry.annotation or ''}" if entry.name.endswith(",") else entry.name
    return [n.strip(" *()") for n in together.split(",")]


def test_docstrings_describe_arguments_and_fields_that_exist() -> None:
    wrong, described = [], 0
    for path in sorted((ROOT / "tread_ssm").rglob("*.py")):
        found: list[Any] = [griffe.visit(path.stem, path, path.read_text(encoding="utf-8"))]
        for item in found:  # grows
            members = [m for m in item.members.values() if not m.is_alias]
            found += [m for m in members if m.is_function or m.is_class]
            if item.docstring is None or item.is_module:
                continue
            known = set(item.members) | INHERITED
            if item.is_class and "__init__" in item.members:  # described with the class
                known |= {p.name for p in item.members["__init__"].parameters}
            if item.is_function:
                known = {p.name.lstrip("*") for p in item.parameters}
            for part in item.docstring.parse("google", warnings=False):
                if part.kind.value in ("parameters", "attributes"):
                    named = {n for entry in part.value for n in entry_names(entry)}
                    wrong += [f"{path.name}, {item.path}: {n}" for n in sorted(named - known)]
                    described += len(named)
    assert described > 20
    assert not wrong


def test_public_functions_describe_their_arguments_and_errors() -> None:
    functions = [o for n in tread_ssm.__all__ if inspect.isfunction(o := getattr(tread_ssm, n))]
    assert len(functions) >= 8
    for function in functions:
        sections = griffe.Docstring(inspect.getdoc(function) or "").parse("google", warnings=False)
        kinds = {section.kind.value for section in sections}
        assert {"text", "parameters", "raises"} <= kinds, function.__name__
        described = {
            name
            for section in sections
            if section.kind.value == "parameters"
            for entry in section.value
            for name in entry_names(entry)
        }
        assert described == inspect.signature(function).parameters.keys(), function.__name__


def test_every_key_of_a_configuration_has_a_meaning() -> None:
    generated = runpy.run_path(str(DOCS / "generated.py"))
    classes = generated["configuration_classes"]()
    assert {RunConfig, Route, DiMConfig} <= classes.keys()
    silent = []
    for cls in classes:
        _, meanings = generated["documented"](cls)
        keys = {f.name for f in dataclasses.fields(cls) if f.init}
        silent += [f"{cls.__name__}.{name}" for name in sorted(keys - meanings.keys() - {"kind"})]
        assert meanings.keys() <= keys, f"{cls.__name__} has no {meanings.keys() - keys}"
    assert not silent, "without a line under `Attributes:`"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    run = python("-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "routing.routes.0" in page
    assert "generated:" not in page
    html = [p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html")]
    fetched = {
        u for t in html for u in re.findall(r"<(?:link|script|img)[^>]*?\"(https?://[^\"]*)", t)
    }
    assert not fetched, "the site fetches nothing from elsewhere"


def test_the_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    run = python("docs/draw_pictures.py", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) >= 5
    for picture in drawn:
        with Image.open(picture) as new, Image.open(DOCS / "pictures" / picture.name) as kept:
            assert abs(new.width - kept.width) < 20 and abs(new.height - kept.height) < 20
    used = "".join(p.read_text(encoding="utf-8") for p in TEXTS)
    assert all(p.name in used for p in (DOCS / "pictures").iterdir())
