"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float, unit: str = "") -> str:
    """A count with one decimal: "386.1M" parameters, or "27.5 MFLOPs" with a unit."""
    size, letter = prefix(number)
    gap = " " if unit else ""
    return f"{number / size:.{1 if letter else 0}f}{gap}{letter}{unit}"


def prefix(number: float) -> tuple[float, str]:
    """The largest power of 1000 that a count fills, and its letter: (1e6, "M")."""
    return next(((s, letter) for s, letter in _SIZES if number >= 0.99995 * s), (1.0, ""))


def duration(seconds: float) -> str:
    """Seconds as the largest unit that fits, such as "3.4 days"."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
