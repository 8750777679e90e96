"""Text that stays itself in Markdown."""

from __future__ import annotations

import html
import re


def literal(text: str) -> str:
    """Text that shows as it is, on one line, whatever HTML or Markdown it holds."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """Code in a line, or in a cell of a table."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return fence + text.replace("|", "\\|") + fence
