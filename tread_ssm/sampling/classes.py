"""Classes as people name them: by name, or by number."""

from __future__ import annotations

from collections.abc import Sequence

from tread_ssm.config.strict import nearest
from tread_ssm.errors import ConfigError

_MOST_SHOWN = 20


def class_number(wanted: str, known: Sequence[str]) -> int:
    """The label of a class that is named by its name or, where no class is called so, its number.

    Args:
        wanted: "Flags" or "2".
        known: The names of all classes, in the order of their labels.

    Raises:
        ConfigError: There is no such class.
    """
    if wanted in known:
        return known.index(wanted)
    if wanted.isdecimal():
        if int(wanted) < len(known):
            return int(wanted)
        raise ConfigError(f"class {wanted}: this run has the classes 0 to {len(known) - 1}.")
    folded = {name.casefold(): name for name in known}
    if wanted.casefold() in folded:
        near = f"; did you mean {folded[wanted.casefold()]!r}?"
    else:
        shown = known if len(known) <= _MOST_SHOWN else [*known[:_MOST_SHOWN], "..."]
        near = nearest(wanted, shown)
    raise ConfigError(f"{wanted!r} is not a class of this run{near}")
