"""The notebooks run, and what is stored of them is what their sources and records say."""

import re
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest

from benchmarks.study import curves, pace, results, tables
from tests.loading import module_of

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
NAMES = ["01_routing", "02_dim_vs_dit", "03_your_model", "04_own_images"]
LARGEST = 500_000  # bytes of a stored notebook


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return module_of(NOTEBOOKS / "build.py")


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def n_pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in o.get("data", {}) for o in outputs(notebook))


def test_all_notebooks_are_tested() -> None:
    assert sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_the_fast_mode(
    name: str, build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREAD_SSM_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    executed = build.execute(NOTEBOOKS / f"{name}.py", tmp_path)  # raises where a cell fails
    assert n_pictures(executed) == n_pictures(stored(name))


@pytest.mark.parametrize("name", NAMES)
def test_source_and_stored_notebook_agree(name: str) -> None:
    source, notebook = jupytext.read(NOTEBOOKS / f"{name}.py"), stored(name)
    wanted = [(c.cell_type, c.source) for c in source.cells]
    assert [(c.cell_type, c.source) for c in notebook.cells] == wanted, (
        f"run python notebooks/build.py {name}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_whole_and_of_no_particular_machine(name: str) -> None:
    notebook, file = stored(name), NOTEBOOKS / f"{name}.ipynb"
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert n_pictures(notebook) >= 1
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]
    assert file.stat().st_size < LARGEST
    for output in outputs(notebook):
        output.get("data", {}).pop("image/png", None)  # base64 holds slashes as well
    text = nbformat.writes(notebook)
    assert not re.findall(r"/(?:home|root|tmp|work|Users|var|mnt|opt|usr)/[\w.-]+", text)


def test_the_comparison_shows_the_recorded_numbers() -> None:
    recorded = curves.recorded(results.read(), pace.recorded())
    data = [o.get("data", {}) for o in outputs(stored("02_dim_vs_dit"))]
    shown = [d["text/markdown"] for d in data if "text/markdown" in d]
    for measure in ("loss", "distance"):
        pairs = [("t64-dim-dense", "t64-dim-50"), ("t64-dit-dense", "t64-dit-50")]
        table = tables.matched_table(recorded, pairs, measure)
        for line in table.splitlines():
            assert any(line in text for text in shown), f"not in the notebook: {line}"
    table = tables.answer_table(recorded, [n for n in ("dim-50", "dim-75") if n in recorded])
    for line in table.splitlines():
        assert any(line in text for text in shown), f"not in the notebook: {line}"
