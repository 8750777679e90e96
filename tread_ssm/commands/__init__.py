"""The console command's subcommands, a file each: `tread-ssm NAME` runs `main` of NAME.py.

A new file is a new subcommand. Its docstring's first line stands in the list that `tread-ssm`
prints, and the whole docstring in its help.
"""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All subcommands, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))


def summary(name: str) -> str:
    """What a subcommand does, in a line; read without importing it."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def run_command(name: str, arguments: list[str]) -> int:
    """Run a subcommand; returns its exit code."""
    code: int = import_module(f"tread_ssm.commands.{name}").main(arguments)
    return code
