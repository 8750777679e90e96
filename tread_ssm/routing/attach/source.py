"""Positions that a block makes from the number of its tokens, as its source tells.

Inside a route, the k-th token that a block sees is not the k-th of the image. A block that counts
its tokens, or takes as many entries of a table of its own, therefore gives them wrong positions.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from torch import Tensor, nn


def made_positions(block: nn.Module) -> tuple[str, str]:
    """The part of a block that makes positions of the number of its tokens, and where it does.

    Only Python source of the parts' own classes is read, and no function outside them.

    Returns:
        Path of the part, and the line; two empty strings where nothing is seen.
    """
    for path, part in block.named_modules():
        for table, line in _by_length(type(part)):  # type: ignore[arg-type]
            if not table or isinstance(_attribute(part, table), Tensor):
                return path, line
    return "", ""


@cache
def _by_length(kind: Any) -> tuple[tuple[str, str], ...]:
    """For each suspicious line of a class: the attribute that is cut, "" if it counts; the line."""
    if kind.__module__.split(".")[0] == "torch":
        return ()
    found, names = [], ["forward"]
    for name in names:  # grows by the methods that are called
        function = _tree(getattr(kind, name, None))
        if function is None:
            continue
        names += [m for m in _methods(function) if m not in names]
        aliases, fixed = _variables(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript):
                table = _path(node.value, aliases)
                if table and any(_varies(end, fixed) for end in _ends(node.slice)):
                    found.append((table, ast.unparse(node)))
            elif isinstance(node, ast.Call) and any(_varies(n, fixed) for n in _counts(node)):
                found.append(("", ast.unparse(node)))
    return tuple(found)


def _tree(function: object) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return None  # written in C, or at a prompt


def _ends(index: ast.expr) -> Iterator[ast.expr]:
    """The upper bounds of the slices of a subscript."""
    parts: Sequence[ast.expr] = index.elts if isinstance(index, ast.Tuple) else (index,)
    for part in parts:
        if isinstance(part, ast.Slice) and part.upper is not None:
            yield part.upper


def _varies(number: ast.expr, fixed: Collection[str]) -> bool:
    """Whether a number is made of anything but constants and the module's own attributes."""
    names = {node.id for node in ast.walk(number) if isinstance(node, ast.Name)}
    return bool(names - {"self", *fixed, *dir(builtins)})


def _variables(function: ast.AST) -> tuple[dict[str, str], set[str]]:
    """Variables that stand for an attribute of the module, and those that hold fixed numbers."""
    aliases: dict[str, str] = {}
    fixed: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, path = node.targets[0].id, _path(node.value, aliases)
            if path:
                aliases[name] = path
            if not _varies(node.value, fixed):
                fixed.add(name)
    return aliases, fixed


def _path(node: ast.expr, aliases: dict[str, str]) -> str:
    """The attribute of `self` that an expression stands for, whatever its methods make of it."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, "")
    if isinstance(node, ast.Subscript):
        return _path(node.value, aliases)
    if isinstance(node, ast.Call):
        return _path(node.func.value, aliases) if isinstance(node.func, ast.Attribute) else ""
    if not isinstance(node, ast.Attribute):
        return ""
    if isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    path = _path(node.value, aliases)
    return f"{path}.{node.attr}" if path else ""


def _methods(function: ast.AST) -> list[str]:
    """The methods of the module itself that a function calls."""
    calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
    own = [f for f in calls if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)]
    return [f.attr for f in own if isinstance(f.value, ast.Name) and f.value.id == "self"]


def _counts(node: ast.Call) -> Sequence[ast.expr]:
    """From where to where a call counts; () where it does not."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return node.args if name in ("arange", "linspace") else ()


def _attribute(module: nn.Module, path: str) -> object:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None
