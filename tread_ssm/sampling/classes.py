"""Classes as people name them: by name, or by number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tread_ssm.config.strict import nearest
from tread_ssm.errors import ConfigError

_MOST_SHOWN = 20


def class_number(wanted: str | int, known: Sequence[str]) -> int:
    """The label of a class that is named by its name or, where no class is called so, its number.

    Where the names are ImageNet's synsets ("n01443537"), its words for them are known as well.

    Args:
        wanted: "Flags", "2" or 2; "goldfish".
        known: The names of all classes, in the order of their labels.

    Raises:
        ConfigError: There is no such class.
    """
    wanted = str(wanted)
    if wanted in known:
        return known.index(wanted)
    if wanted.isdecimal():
        if int(wanted) < len(known):
            return int(wanted)
        raise ConfigError(f"class {wanted}: this run has the classes 0 to {len(known) - 1}.")
    if (synset := _synset(wanted, known)) is not None:
        return known.index(synset)
    folded = {name.casefold(): name for name in known}
    if wanted.casefold() in folded:
        near = f"; did you mean {folded[wanted.casefold()]!r}?"
    else:
        shown = known if len(known) <= _MOST_SHOWN else [*known[:_MOST_SHOWN], "..."]
        near = nearest(wanted, shown)
    raise ConfigError(f"{wanted!r} is not a class of this run{near}")


def _synset(wanted: str, known: Sequence[str]) -> str | None:
    """The synset of `known` that ImageNet describes by this word, in whichever case."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in known):
        return None
    from timm.data import ImageNetInfo  # a second to import

    info, word = ImageNetInfo(), wanted.casefold()
    there = set(info.label_names())
    for synset in filter(there.__contains__, known):
        described = info.label_name_to_description(synset)
        if word in (text.strip().casefold() for text in described.split(",")):
            return synset
    return None
