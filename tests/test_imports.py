"""Imports point one way, and importing the package is cheap."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tread_ssm"

GROUND = {"errors", "files", "machine", "processes", "randomness", "tables", "timing"}
CORE = GROUND | {"tokens", "routing", "scan", "models", "diffusion"}

# What each room may import of this package, besides itself: a room, or one file of it.
ALLOWED = {
    **{name: {"errors"} for name in GROUND},
    "machine": {"errors", "tables"},
    "tokens": set(),
    "routing": {"tokens"},
    "scan": {"tokens"},
    "models": {"errors", "tokens", "routing", "scan"},
    "diffusion": {"tokens", "routing.plan", "routing.guidance"},
    "data": GROUND,
    # Besides: configurations that stand beside what they build, and import no more than torch.
    "config": CORE
    | {"data", "evaluation.metrics"}
    | {"training.optimizer", "training.averages.power_ema", "training.learning_rate"}
    | {"sampling.recipe"},
    "pretrained": CORE | {"data", "config"},
    "sampling": CORE | {"data", "config", "pretrained"},
    "evaluation": GROUND | {"data", "config", "pretrained", "sampling"},
    "training": CORE | {"data", "config", "pretrained", "sampling", "evaluation"},
    "plots": {"files", "tables", "routing", "tokens"},
    "report": CORE
    | {"data", "config", "pretrained", "sampling", "evaluation", "training", "plots"},
    "app": CORE | {"data", "config", "pretrained", "sampling", "plots"},
    "launcher": {"errors", "processes"},
    "command": GROUND | {"launcher"},
    "env": {"scan"},
    "commands": CORE
    | {"data", "config", "pretrained", "sampling", "evaluation", "training", "plots", "report"}
    | {"command", "env", "app"},
    "__main__": {"commands"},
    "__init__": {"routing", "scan", "models", "pretrained", "sampling.pictures"},
}


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def imported(path: Path) -> set[str]:
    """Names below tread_ssm that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the module's full name"
            modules = [node.module or ""]
        names |= {m.removeprefix("tread_ssm.") for m in modules if m.startswith("tread_ssm.")}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: "/".join(parts(p)))
def test_imports_point_one_way(path: Path) -> None:
    part = parts(path)[0]
    allowed = ALLOWED[part] | {part}
    for name in imported(path):
        prefixes = {name, *(name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1))}
        assert prefixes & allowed, f"{part} may not import tread_ssm.{name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {".".join(parts(p)).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")}
    graph = {name: imported(path) & files.keys() for name, path in files.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"files import each other: {' <- '.join(error.args[1])}") from None


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


HEAVY = {"mamba_ssm", "causal_conv1d", "diffusers", "timm", "accelerate", "einops", "matplotlib"}


@pytest.mark.parametrize(
    "statement", ["import tread_ssm", "import tread_ssm.routing", "from tread_ssm import Route"]
)
def test_importing_the_package_loads_nothing_but_torch(statement: str) -> None:
    extra = loaded_after(statement) - loaded_after("import torch")
    assert extra == {"tread_ssm"}, f"{statement} also loads {sorted(extra)}"


def test_the_list_of_commands_does_not_wait_for_torch() -> None:
    assert "torch" not in loaded_after("import tread_ssm.__main__ as command; command._usage()")


def test_state_space_models_need_neither_timm_nor_accelerate() -> None:
    loaded = loaded_after("from tread_ssm import DiM, selective_scan")
    assert not loaded & (HEAVY - {"einops"})


def test_public_names_exist() -> None:
    import tread_ssm

    assert all(getattr(tread_ssm, name) is not None for name in tread_ssm.__all__)
    assert set(tread_ssm.__all__) <= set(dir(tread_ssm))
    with pytest.raises(AttributeError, match="no attribute 'Dim'"):
        _ = tread_ssm.Dim
