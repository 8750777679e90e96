"""Positions and windows that a block makes from the number of its tokens, as its source tells.

Inside a route, the k-th token that a block sees is not the k-th of the image. A block that counts
its tokens, or takes as many entries of a table of its own, therefore gives them wrong positions;
one that divides their number, or takes its square root, puts strangers into a window or a row.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor, nn


class Counted(NamedTuple):
    """Where a block uses the number of its tokens; empty strings where nothing is seen."""

    path: str = ""  # of the part
    makes: str = ""  # "positions" or "windows or rows"
    line: str = ""


def by_number(block: nn.Module) -> Counted:
    """The part of a block that makes positions or windows of the number of its tokens.

    Only Python source of the parts' own classes is read, and no function outside them.
    """
    for path, part in block.named_modules():
        for table, makes, line in _by_length(type(part)):  # type: ignore[arg-type]
            if not table or isinstance(_attribute(part, table), Tensor):
                return Counted(path, makes, line)
    return Counted()


@cache
def _by_length(kind: Any) -> tuple[tuple[str, str, str], ...]:
    """For each suspicious line of a class: the attribute that is cut or "", what it makes, it."""
    if kind.__module__.split(".")[0] == "torch":
        return ()
    found, names = [], ["forward"]
    for name in names:  # grows by the methods that are called
        function = _tree(getattr(kind, name, None))
        if function is None:
            continue
        names += [m for m in _methods(function) if m not in names]
        aliases, fixed = _variables(function)
        numbers = _numbers_of_tokens(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript):
                table = _path(node.value, aliases)
                if table and any(_varies(end, fixed) for end in _ends(node.slice)):
                    found.append((table, "positions", ast.unparse(node)))
            elif isinstance(node, ast.Call) and any(_varies(n, fixed) for n in _counts(node)):
                found.append(("", "positions", ast.unparse(node)))
            elif any(ast.unparse(n) in numbers for n in _divided(node)):
                found.append(("", "windows or rows", ast.unparse(node)))
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


def _numbers_of_tokens(function: ast.AST) -> set[str]:
    """Expressions for the length of a stream (batch, tokens, channels)."""
    nodes = list(ast.walk(function))
    lengths = ("shape[1]", "size(1)")
    found = {
        text
        for node in nodes
        if isinstance(node, (ast.Subscript, ast.Call))
        and (text := ast.unparse(node)).rpartition(".")[2] in lengths
    }
    for node in nodes:
        if isinstance(node, ast.Assign):
            names, value = node.targets[0], ast.unparse(node.value)
            three = isinstance(names, ast.Tuple) and len(names.elts) == 3
            if three and value.endswith((".shape", ".size()")):
                found.add(ast.unparse(names.elts[1]))  # type: ignore[attr-defined]
            elif value in found:
                found.add(ast.unparse(names))
    return found


def _divided(node: ast.AST) -> Sequence[ast.expr]:
    """What a node divides by something, or takes the root of; () for other nodes."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.FloorDiv, ast.Mod, ast.Pow)):
        return (node.left,)
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return node.args if name in ("sqrt", "isqrt", "divmod") else ()
    return ()


def _attribute(module: nn.Module, path: str) -> object:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None
