"""Strict loading of plain YAML into dataclasses: every key and every type is checked.

Types that may stand in a dataclass here: bool, int, float, str, Literal, Optional, tuples,
dataclasses, and unions of dataclasses that are told apart by their field `kind`; a section without
`kind` is of the kind that stands there by default. Whatever goes wrong is one sentence with the
file, the line and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from tread_ssm.errors import ConfigError

T = TypeVar("T")
Tree = dict[str, Any]

_DEEPEST = 50
_OVERRIDE = "override"
_OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


@dataclass(frozen=True)
class Document:
    """A parsed file with its overrides.

    Attributes:
        tree: What it holds.
        name: What messages call it.
        places: Where each key came from ("FILE, line 12").
        notes: What the user should know about it, in sentences; building it adds some.
    """

    tree: Tree
    name: str
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def at(self, path: str) -> str:
        """Where the nearest known key above `path` stands."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return self.name


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` for the most similar known word, otherwise the known ones."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}."


def read(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Parse a YAML file and apply `a.b.0.c=value` overrides.

    Raises:
        ConfigError: The file cannot be read, or an override has no place in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text in UTF-8.") from None
    places: dict[str, str] = {}
    tree = _parse(text, str(path), places)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level.")
    document = Document(tree, str(path), places)
    for override in overrides:
        _override(document, override)
    return document


def build(cls: type[T], document: Document) -> T:
    """An instance of the dataclass `cls` from a parsed file.

    Raises:
        ConfigError: A key is unknown or missing, or a value has another type or is refused.
    """
    return _dataclass(cls, document.tree, "", document)


def part(hint: Any, value: Any, path: str, document: Document) -> Any:
    """What stands at `path` of a parsed file, as the type `hint`; errors as of `build`."""
    return _value(hint, value, path, document)


def plain(value: Any) -> Any:
    """A dataclass as the dicts, lists and scalars that `build` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def dump(value: Any) -> str:
    """A dataclass as YAML text."""
    return yaml.safe_dump(
        plain(value), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def _parse(text: str, name: str, places: dict[str, str]) -> Any:
    """YAML as plain Python. Aliases are refused, because some expand without end."""
    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            line = f"{name}, line {token.start_mark.line + 1}"
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _DEEPEST:
                raise ConfigError(f"{line}: more than {_DEEPEST} sections inside each other.")
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(f"{line}: write *{token.value} out; no aliases here.")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _plain(node, "", name, places)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:  # such as a NUL
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name}: not valid YAML: {reason}.") from None


def _plain(node: yaml.Node, path: str, name: str, places: dict[str, str]) -> Any:
    """The node as plain Python, its keys' places written down, doubled keys refused."""
    where = f"{name}, line {node.start_mark.line + 1}"
    places.setdefault(path, where)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(n, _join(path, i), name, places) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        tree: Tree = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key is one word, no list or section.")
            key = str(key_node.value)
            inner = _join(path, key)
            where = f"{name}, line {key_node.start_mark.line + 1}"
            if key in tree:
                raise ConfigError(f"{where}: the key {inner} stands twice.")
            places[inner] = where
            tree[key] = _plain(value_node, inner, name, places)
        return tree
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, AttributeError):  # a date that is none, thousands of digits
        raise ConfigError(f"{where}: {path or 'this'} is no value that can be read.") from None


def _override(document: Document, text: str) -> None:
    path, equals, value = text.partition("=")
    where = f"{_OVERRIDE} {text[:80]!r}"
    if not equals or not path:
        raise ConfigError(f"{where}: write it as section.key=value.")
    parts = path.split(".")
    at: Any = document.tree
    for depth, part in enumerate(parts):
        key: str | int = part
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise ConfigError(
                    f"{where}: {'.'.join(parts[:depth])} has {len(at)} entries, numbered from 0; "
                    f"{part!r} is none of them."
                )
            key = int(part)
        elif not isinstance(at, dict):
            raise ConfigError(f"{where}: {'.'.join(parts[:depth])} is a value, not a section.")
        if depth == len(parts) - 1:
            at[key] = _parse(value, where, {})
            # What the file said below this key is gone, and so are its line numbers.
            for old in [p for p in document.places if p.startswith(path + ".")]:
                del document.places[old]
            document.places[path] = where
        elif isinstance(at, dict) and at.get(part) is None:
            at[part] = {}
            document.places[".".join(parts[: depth + 1])] = where
        at = at[key]


def _dataclass(cls: type[T], tree: Any, path: str, document: Document) -> T:
    if not isinstance(tree, dict):
        raise _wrong(tree, path, "a section of `key: value` lines", document)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            inner = _join(path, key)
            raise ConfigError(
                f"{document.at(inner)}: {inner} is not a known key{nearest(key, list(fields))}"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in tree
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{document.at(path)}: {_join(path, missing[0])} is missing.")
    hints = get_type_hints(cls)
    values = {
        k: _value(hints[k], _with_kind(v, fields[k]), _join(path, k), document)
        for k, v in tree.items()
    }
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{document.at(path)}: {path or 'the run'}: {error}") from None


def _with_kind(value: Any, of: dataclasses.Field[Any]) -> Any:
    """A section that does not name its kind gets that of the field's default, if it has one."""
    if not isinstance(value, dict) or "kind" in value:
        return value
    default: Any = of.default
    if of.default_factory is not dataclasses.MISSING:
        default = of.default_factory()
    if "kind" not in getattr(default, "__dataclass_fields__", ()):
        return value
    return {"kind": default.kind, **value}


def _value(hint: Any, value: Any, path: str, document: Document) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), value, path, document)
    if origin is Literal:
        choices = get_args(hint)
        for choice in choices:
            if value == choice and type(value) is type(choice):
                return choice
        names = [str(c) for c in choices]
        raise ConfigError(
            f"{document.at(path)}: {path} is {value!r}, which is not one of its values"
            f"{nearest(str(value), names)}"
        )
    if origin in (tuple, Sequence):
        return _tuple(get_args(hint), value, path, document)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, path, document)  # type: ignore[arg-type]
    return _scalar(hint, value, path, document)


def _union(members: tuple[Any, ...], value: Any, path: str, document: Document) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(m for m in members if m is not type(None))
    if len(members) == 1:
        return _value(members[0], value, path, document)
    if not isinstance(value, dict):
        raise _wrong(value, path, "a section of `key: value` lines", document)
    kinds = {get_args(get_type_hints(m)["kind"])[0]: m for m in members}
    kind = value.get("kind")
    if kind is None:
        raise ConfigError(
            f"{document.at(path)}: {path}.kind is missing; known are {', '.join(kinds)}."
        )
    if not isinstance(kind, str) or kind not in kinds:
        where = document.at(_join(path, "kind"))
        raise ConfigError(
            f"{where}: {path}.kind {kind!r} is not known{nearest(str(kind), list(kinds))}"
        )
    return _dataclass(kinds[kind], _known(kinds, kind, value, path, document), path, document)


def _known(kinds: dict[str, Any], kind: str, value: Tree, path: str, document: Document) -> Tree:
    """Without what the file says about another kind, if an override has changed the kind."""
    if not document.at(_join(path, "kind")).startswith(_OVERRIDE):
        return value
    own = {f.name for f in dataclasses.fields(kinds[kind])}
    others = {f.name for cls in kinds.values() for f in dataclasses.fields(cls)} - own
    of_file = [k for k in value if not document.at(_join(path, k)).startswith(_OVERRIDE)]
    dropped = [k for k in of_file if k in others]
    if dropped:
        document.notes.append(
            f"{path}.kind={kind} does not know {', '.join(dropped)} of {document.name}, left out."
        )
    return {key: inner for key, inner in value.items() if key not in dropped}


def _tuple(hints: tuple[Any, ...], value: Any, path: str, document: Document) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(value, path, "a list", document)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise _wrong(value, path, f"a list of {len(hints)} entries", document)
    return tuple(
        _value(h, v, _join(path, i), document)
        for i, (h, v) in enumerate(zip(hints, value, strict=True))
    )


def _scalar(hint: Any, value: Any, path: str, document: Document) -> Any:
    if hint is bool or hint is str:
        if type(value) is hint:
            return value
        expected = "true or false" if hint is bool else "text (put it in quotes)"
        raise _wrong(value, path, expected, document)
    # PyYAML reads 1e-4 as text: YAML 1.1 asks for a dot in front of the exponent.
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise _wrong(value, path, "a number", document)
    if hint is float:
        try:
            return float(number)
        except OverflowError:  # a whole number of more than 308 digits
            raise _wrong(value, path, "a number below 1e308", document) from None
    if not abs(number) < 2**63 or number != int(number):
        raise _wrong(value, path, "a whole number below 2^63", document)
    return int(number)


def _wrong(value: Any, path: str, expected: str, document: Document) -> ConfigError:
    shown = "a section" if isinstance(value, dict) else repr(value)
    return ConfigError(f"{document.at(path)}: {path} is {shown}; expected {expected}.")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
