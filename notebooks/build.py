"""Make the stored notebooks anew from their sources: python notebooks/build.py [01_routing ...]

Each NAME.py (percent format, what a diff shows) becomes NAME.ipynb with the outputs of a full run.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from pathlib import Path

import jupytext
import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
NAMES = sorted(p.stem for p in HERE.glob("[0-9]*.py"))


def converted(source: Path) -> nbformat.NotebookNode:
    """The notebook of a percent source, without outputs; the same bytes for the same source."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    return notebook


def execute(source: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`. Raises where a cell fails."""
    notebook = converted(source)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell["metadata"].pop("execution", None)  # times of day: they would change in every diff
        if cell.cell_type == "code":  # warnings and progress bars are of this machine
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = with_palette(data["image/png"])
    notebook["metadata"].pop("language_info", None)
    return notebook


def with_palette(png: str) -> str:
    """A drawing (base64) with at most 256 colours, a third of the bytes; photographs stay as is."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    flat = picture.quantize(256, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(flat.convert("RGB"), int) - np.asarray(picture, int)).mean()
    if error > 1.5:
        return png
    small = io.BytesIO()
    flat.save(small, format="PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Execute and write the notebooks named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {NAMES}")
    for name in parser.parse_args().names or NAMES:
        notebook = execute(HERE / f"{name}.py", HERE)
        final = HERE / f"{name}.ipynb"
        temporary = final.with_name(final.name + ".tmp")
        nbformat.write(notebook, temporary)
        os.replace(temporary, final)
        print(f"{final.name}: {final.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
