"""Sentences for errors of torch inside a route, where a shorter stream is the likely reason."""

from __future__ import annotations

from torch import Tensor

from tread_ssm.routing.attach.arguments import Call
from tread_ssm.routing.attach.recompute import Pass

TORCH_ERRORS = (RuntimeError, ValueError, IndexError, AssertionError)


def explain_within(error: BaseException, call: Call, now: Pass) -> None:
    """Say of an error inside a block how many tokens it got, and what was not declared."""
    if "attach:" in str(error):
        return
    inside = now.inside
    where = (
        "outside the routes; one before it drops tokens, and a long skip that leaves it must be "
        "named, as skips=(...)"
        if inside is None
        else f"inside Route(start={inside.route.start}, stop={inside.route.stop}), where it got "
        f"{inside.subset.n_kept} of {inside.subset.length} image tokens"
    )
    gone = {*call.blocks.per_token, *call.blocks.skips, *call.stream_names}
    passed = [
        f"`{name}` {tuple(value.shape)}"
        for name, value in call.values.items()
        if isinstance(value, Tensor) and name not in gone
    ]
    declared = [f"`{name}`" for name in call.blocks.per_token if name in call.values]
    _add(
        error,
        f"attach: {call.name} failed {where}. Declared as per_token: "
        f"{', '.join(declared) or 'nothing'}; passed on whole: {', '.join(passed) or 'nothing'}. "
        f"What goes by tokens must be declared, in the form that the block takes.",
    )


def explain_between(error: BaseException, now: Pass) -> None:
    """Say of an error between two blocks that the model uses a shorter stream there."""
    if now.inside is None or now.call is not None or "attach:" in str(error):
        return
    route, subset = now.inside.route, now.inside.subset
    _add(
        error,
        f"attach: the model failed between blocks, inside Route(start={route.start}, stop="
        f"{route.stop}), where the stream has {subset.n_kept} of {subset.length} image tokens; "
        f"what the model adds to the stream there (ControlNet's residuals, VACE's hints) has "
        f"all of them. End the route before, or declare Blocks(..., whole_between=True).",
    )


def _add(error: BaseException, sentence: str) -> None:
    """Append a sentence to what an error says."""
    said = " ".join(str(a) for a in error.args)
    error.args = (f"{said}\n{sentence}",)
