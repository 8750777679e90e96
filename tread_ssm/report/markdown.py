"""Text that stays itself in Markdown, and sentences that several pages say."""

from __future__ import annotations

import html
import re

from tread_ssm.routing import RoutePlan


def literal(text: str) -> str:
    """Text that shows as it is, on one line, whatever HTML or Markdown it holds."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """Code in a line, or in a cell of a table."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return fence + text.replace("|", "\\|") + fence


def routes_text(plan: RoutePlan, between: str) -> str:
    """What skips which blocks: "50% past blocks 2 to 5", where `between` is " past blocks "."""
    return ", ".join(
        f"{100 * route.drop:g}%{between}{route.start} to {route.stop - 1}" for route in plan.routes
    )
