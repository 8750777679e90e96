"""A hook of MkDocs: fills in what a page marks as `<!-- generated: NAME -->`.

Nothing that is generated is committed, so the tables cannot disagree with the code.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from griffe import Docstring, DocstringSectionKind

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`, which is not installed

from tread_ssm.config.run import RunConfig, load_config  # noqa: E402
from tread_ssm.diffusion import SAMPLERS  # noqa: E402
from tread_ssm.files import read_json  # noqa: E402
from tread_ssm.models import MixerConfig  # noqa: E402
from tread_ssm.routing.attach.presets import PRESETS  # noqa: E402
from tread_ssm.tables import markdown_table  # noqa: E402

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
UNRECORDED = "Nothing is recorded yet: it needs a quiet machine."
SCALARS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with each page's text. Raises KeyError for an unknown name."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


def configuration() -> str:
    """Every key of a run's YAML file: one table for each dataclass below RunConfig."""
    seen: dict[type, str] = {}
    return "\n".join(["## Top level", "", *_class_lines(RunConfig, "", 2, seen)])


def documented(cls: type) -> tuple[str, dict[str, str]]:
    """A dataclass's first paragraph, and its fields' meanings from the docstrings' `Attributes:`.

    A field that a base class documents need not be documented again.
    """
    meanings: dict[str, str] = {}
    summary = ""
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner) or not owner.__doc__:
            continue
        parsed = Docstring(owner.__doc__, parser="google").parse(warnings=False)
        for part in parsed:
            if part.kind is DocstringSectionKind.text:
                summary = part.value.split("\n\n")[0]
                break
        for part in parsed:
            if part.kind is DocstringSectionKind.attributes:
                for item in part.value:
                    text = " ".join(item.description.split())
                    meanings |= {name.strip(): text for name in item.name.split(",")}
    return summary, meanings


def configuration_classes() -> dict[type, str]:
    """Every dataclass that a run's YAML file may hold -> the key under which it stands."""
    seen: dict[type, str] = {}
    _class_lines(RunConfig, "", 2, seen)
    return seen


def _class_lines(cls: type, path: str, level: int, seen: dict[type, str]) -> list[str]:
    """The class's summary and table, then a section for each dataclass that its fields may hold."""
    seen[cls] = path
    summary, meanings = documented(cls)
    hints = get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init and f.name != "kind"]
    lines = [summary, ""] if path else []
    if fields:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        lines.append(
            f"| `{field.name}` | {_type(hints[field.name], _join(path, field.name))} "
            f"| {_default(field)} | {meanings.get(field.name, '')} |"
        )
    lines.append("")
    for field in fields:
        inner = _join(path, field.name)
        members = list(_dataclasses(hints[field.name]))
        if not members:
            continue
        # The entries of a list are addressed by their number.
        if get_origin(hints[field.name]) is tuple:
            inner = f"{inner}.0"
        if members[0] in seen:
            continue
        lines += [f"{'#' * level} `{inner}`", ""]
        for member in members:
            kind = _kind(member)
            if kind is not None:
                lines += [f"{'#' * (level + 1)} `{inner}: {{kind: {kind}}}`", ""]
            lines += _class_lines(member, inner, min(level + 1, 4), seen)
    return lines


def _type(hint: Any, path: str) -> str:
    """A type in the words of YAML."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        *first, last = (f"`{a}`" for a in args)
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (Union, types.UnionType):
        none = type(None)
        if all(a is none or dataclasses.is_dataclass(a) for a in args):
            kinds = ", ".join(f"`{_kind(a)}`" for a in args if a is not none)
            return f"section, `kind` {kinds}" + (", or `null`" if none in args else "")
        return " or ".join("`null`" if a is none else _type(a, path) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {'sections' if list(_dataclasses(args[0])) else _type(args[0], path)}"
        return f"list of {len(args)}: {_type(args[0], path)}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return SCALARS[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        kind = _kind(type(value))
        return "its defaults" if kind is None else f"`{{kind: {kind}}}`"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _dataclasses(hint: Any) -> Iterator[type]:
    """The dataclasses that a value of this type may be, or hold as a list."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for arg in get_args(hint):
        yield from _dataclasses(arg)


def _kind(cls: type) -> str | None:
    hint = get_type_hints(cls).get("kind")
    return None if hint is None else str(get_args(hint)[0])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def estimates() -> str:
    """Memory and speed of the ImageNet configurations on eight A100s."""
    from tread_ssm.report.plan import estimates_table

    return estimates_table(map(load_config, sorted((ROOT / "configs").glob("di*.yaml"))), gpus=8)


def tokens64() -> str:
    """Routed against dense networks at 64 tokens."""
    return _answer("t64-dim-50", "t64-dim-75", "t64-dit-50", "t64-dit-75")


def tokens256() -> str:
    """Routed against dense networks at 256 tokens."""
    return _answer(*_arms256(routed=True))


def options256() -> str:
    """Options of a DiM at 256 tokens, each against the same without it."""
    return _answer(*_arms256(routed=False), partner="the same without it")


def _arms256(routed: bool) -> list[str]:
    """Arms at 256 tokens that add a route to their partner, or those that add something else."""
    from benchmarks.study.arms import ARMS

    pairs = [(a.name, a.partner) for a in ARMS if a.setting == "tokens256" and a.partner]
    return [a for a, b in pairs if ("dense" in b and "dense" not in a) == routed]


def _answer(*names: str, partner: str = "its dense partner") -> str:
    from benchmarks.study import curves, pace, results, tables

    arms = curves.recorded(results.read(), pace.recorded())
    there = [n for n in names if n in arms and arms[n].arm.partner in arms]
    return tables.answer_table(arms, there, partner)


def guidance256() -> str:
    """FD-emoji with guidance, at 256 tokens."""
    from benchmarks.study import guidance, results

    rows = results.read(results.RESULTS.with_name("study_guidance.jsonl"))
    return guidance.table(rows) if rows else UNRECORDED


def runs256() -> str:
    """What each arm reached at 256 tokens."""
    from benchmarks.study import results, tables
    from benchmarks.study.arms import arm_of

    rows = [row for row in results.read() if arm_of(row["arm"]).setting == "tokens256"]
    return tables.table(rows)


def rates256() -> str:
    """The learning rates that were tried at 256 tokens."""
    from benchmarks.study import results, tables

    names = ("dim-dense", "dim-50", "dit-dense", "dit-50")
    return tables.rates_table(results.read(), names, 300)


def quick_mixers() -> str:
    """The quickstart with other mixers, in the same CPU time; earlier lengths are left out."""
    from benchmarks.study import results, tables
    from benchmarks.study.jobs import jobs

    lengths = {(job.arm.name, job.steps) for job in jobs() if job.arm.setting == "quickstart"}
    return tables.table([r for r in results.read() if (r["arm"], r["steps"]) in lengths])


def speedruns() -> str:
    """The recorded speed runs."""
    from benchmarks import speedrun
    from benchmarks.study import results

    rows = results.read(speedrun.RESULTS)
    return speedrun.table(rows) if rows else UNRECORDED


def attached() -> str:
    """What attached routes that drop nothing cost."""
    path = ROOT / "benchmarks" / "results" / "attach_cpu.json"
    if not path.is_file():
        return UNRECORDED
    found = read_json(path)
    times = found["over_plain"]
    again, attached = times["plain again"], times["attached"]
    told = ": attaching costs nothing that can be told apart" if attached - again < 0.01 else ""
    what = (
        f"The time of a step with attached routes differs from the plain model's by "
        f"{attached - 1:+.1%}, and that of a second plain model by {again - 1:+.1%}{told}. "
        '"drawing, dense" are routes that draw by themselves, at a point of their schedule that '
        f"drops nothing. The hooks of a dense pass by themselves take "
        f"{1e6 * found['hooks_seconds']:.0f} µs, {found['hooks_over_plain']:.3%} of a step.\n\n"
    )
    rows = [[side, f"{ratio - 1:+.1%}"] for side, ratio in times.items()]
    conditions = (
        f"{found['depth']} blocks of {found['width']} channels, {found['tokens']} tokens, batch "
        f"{found['batch']}, medians of {found['repeats']}, threads: {found['threads']}, "
        f"{found['machine']}, commit {found['commit']}, {found['date']}."
    )
    table = markdown_table(["model", "against the plain model"], rows)
    return f"{what}{table}\n\n{conditions}"


def recorded(name: str, folder: Path = ROOT / "benchmarks" / "results") -> str:
    """A table as a benchmark wrote it, if it has."""
    path = folder / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else UNRECORDED


def mixer_steps() -> str:
    """Training steps of DiM by mixer on a CPU."""
    return recorded("mixers_cpu")


def ssd_speed() -> str:
    """`ssd` on a CPU against others."""
    return recorded("ssd_cpu")


def records() -> str:
    """The table that benchmarks/record.py keeps."""
    return (ROOT / "benchmarks" / "results" / "records.md").read_text(encoding="utf-8")


def presets() -> str:
    """The models that `attach` knows: what their blocks get for each token, what is special."""
    lines = ["| class | blocks | goes by tokens | besides |", "|---|---|---|---|"]
    for name, rows in PRESETS.items():
        tables = {n: _dims(how) for row in rows for n, how in row.per_token.items()}
        lists = ", ".join(f"`{row.path}`" for row in rows)
        declared = "; ".join(f"`{n}` {dims}" for n, dims in tables.items())
        special = [
            "image first" if any(row.image == "first" for row in rows) else "",
            "text in the stream" if any(row.n_prefix is None for row in rows) else "",
            "needs `Rows`" if any(row.grid_arguments for row in rows) else "",
            "all tokens between blocks" if any(row.whole_between for row in rows) else "",
            "long skips" if any(row.skips for row in rows) else "",
            "a sequence" if any(row.closes_gaps for row in rows) else "",
        ]
        lines.append(f"| `{name}` | {lists} | {declared} | {', '.join(s for s in special if s)} |")
    return "\n".join(lines)


def _dims(how: Any) -> str:
    if isinstance(how, tuple):
        return "(" + ", ".join("-" if h is None else _dims(h) for h in how) + ")"
    return " or ".join(f"`{form.strip()}`" for form in how.dims.split("|"))


def mixers() -> str:
    """The kinds of mixers, with the first sentence about each."""
    rows = [f"| `{_kind(cls)}` | {documented(cls)[0]} |" for cls in _dataclasses(MixerConfig)]
    return "\n".join(["| `kind` | what it is |", "|---|---|", *rows])


def samplers() -> str:
    """The samplers, with the first sentence about each."""
    rows = []
    for name, function in SAMPLERS.items():
        summary = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        rows.append(f"| `{name}` | {summary} |")
    return "\n".join(["| `--sampler` | what it is |", "|---|---|", *rows])


_MEASURED = (
    *(tokens64, tokens256, options256, guidance256, runs256, rates256, quick_mixers, speedruns),
    *(attached, mixer_steps, ssd_speed),
)
GENERATED = {
    f.__name__: f
    for f in (configuration, estimates, records, presets, mixers, samplers, *_MEASURED)
}
