"""Whether attached routes are right for a model: a permuted pass against the dense one.

Blocks that do not care where tokens stand, apart from arguments that go with them, give the same
for permuted tokens. So each block of a dense pass is called once more with its image tokens, and
what is declared per token, in another order for each sample; what it returns must be what it
returned before, permuted. An argument that should have been declared, or was declared wrongly,
breaks this, and so do windows, convolutions and positions that a block makes by itself. Blocks
that read tokens in order (scans, causal attention) or on a grid cannot be compared so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tread_ssm.routing.attach.arguments import Blocks, Call, for_batch
from tread_ssm.routing.attach.drawing import serves_the_batch
from tread_ssm.routing.attach.leave import image_of, stream_places
from tread_ssm.routing.attach.per_token import PerToken
from tread_ssm.tokens import TokenSubset

Recorded = tuple[Call, Any]


def verify(
    blocks: Sequence[nn.Module],
    rows: Sequence[Blocks],
    names: Sequence[tuple[str, ...]],
    call: Callable[[], Any],
    n: int | None,
) -> str:
    """Compare the blocks of a dense pass with permuted calls of the same blocks.

    Args:
        blocks: As attached.
        rows: What is declared of each.
        names: Names of each block's positional arguments.
        call: Runs the model once, such as lambda: model(x, t); with two samples or more, since
            one tells nothing about the forms of tables for each sample.
        n: Image tokens; None where the stream tells.

    Returns:
        A sentence that says what was compared.

    Raises:
        ValueError: A block gives something else, or fails; with the argument to blame where one is
            found.
    """
    with _ready(blocks):
        recorded = _record(blocks, rows, names, call)
        if not recorded:
            raise ValueError("verify: the call ran none of the blocks that routes are attached to.")
        ordered = [i for i in recorded if rows[i].closes_gaps or rows[i].grid_arguments]
        for i in sorted(set(recorded) - set(ordered)):
            _verify_block(blocks[i], *recorded[i], n)
    said = f"{len(recorded) - len(ordered)} of {len(blocks)} blocks agree with the dense pass"
    return (
        f"{said}; {len(ordered)} work on neighbours and were not compared."
        if ordered
        else f"{said}."
    )


def _verify_block(block: nn.Module, call: Call, output: Any, n: int | None) -> None:
    streams = call.streams()
    length = streams[0].shape[1]
    if call.blocks.present and n is not None:
        call = replace(call, offsets=call.begins(n))
    if n is None and not isinstance(call.blocks.n_prefix, int):
        raise ValueError(
            f"verify: {call.name} has {length} tokens, of which it is unknown how many are the "
            f"image's; give them as verify(call, grid=(rows, columns))."
        )
    n_image = n if n is not None else length - int(call.blocks.n_prefix or 0)
    worst, why = _difference(block, call, output, n_image, _shared(call.blocks))
    if worst <= _tolerance(streams[0]):
        return
    remedy = _remedy(block, call, output, n_image)
    raise ValueError(
        f"verify: {call.name} gives something else when its {n_image} image tokens stand in "
        f"another order ({why}); {remedy}."
    )


def _remedy(block: nn.Module, call: Call, output: Any, n: int) -> str:
    """What to do about a block that does not agree."""
    tables = call.blocks.per_token
    arrows = {name: how for name, how in tables.items() if "->" in repr(how)}
    tolerance = _tolerance(call.streams()[0])
    if arrows and _difference(block, call, output, n, shared=True)[0] <= tolerance:
        return (
            f"it agrees where one order serves the whole batch, so what stands behind the arrow of "
            f"{_names(arrows)} is not a form that the block takes; declare no arrow, and draw with "
            f"plan.draw(1, grid)"
        )
    blamed = _blame(block, call, output, n)
    if blamed:
        return f"declare {blamed}"
    whole = [
        f"`{name}` {tuple(v.shape)}"
        for name, v in call.values.items()
        if isinstance(v, Tensor) and name not in (*call.stream_names, *tables)
    ]
    return (
        f"look at how {_names(tables)} are declared and what else it gets "
        f"({', '.join(whole) or 'nothing'}); it may make positions, windows or convolutions by "
        f"itself, and then no route may hold it"
    )


def _difference(
    block: nn.Module, call: Call, output: Any, n: int, shared: bool
) -> tuple[float, str]:
    """How far the permuted call is from the dense one, relative to what the block adds.

    shared: Whether all samples stand in one order.
    """
    batch, device = call.streams()[0].shape[0], call.streams()[0].device
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(1 if shared else batch, n, generator=generator).to(device)
    order = TokenSubset(score.argsort(dim=1), n)
    try:
        args, kwargs = _permuted(call, order)
        found = block(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        return float("inf"), f"it fails: {error}"
    rows, worst = for_batch(order, batch), 0.0
    for k, (a, b) in enumerate(zip(_streams(call, output), _streams(call, found), strict=True)):
        if a.shape != b.shape:
            return float("inf"), f"it returns {tuple(b.shape)} instead of {tuple(a.shape)}"
        image = image_of(call, b, n)
        back = rows.put(image, torch.zeros_like(image))
        expected = image_of(call, a, n)
        before = image_of(call, call.streams()[k], n)
        added = expected - before if expected.shape == before.shape else expected
        worst = max(worst, _rms(back - expected) / max(_rms(added), 1e-12))
    return worst, f"relative difference {worst:.1e}"


def _shared(row: Blocks) -> bool:
    """Whether all samples must stand in one order, because a table has no form for each."""
    return any(serves_the_batch(how) for how in row.per_token.values())


def _permuted(call: Call, order: TokenSubset) -> tuple[tuple[Any, ...], dict[str, Any]]:
    skips = PerToken("n b d" if call.blocks.sequence_first else "b n d")
    per_token = {**call.blocks.per_token, **{name: skips for name in call.blocks.skips}}
    blocks = replace(call.blocks, per_token=per_token, whole=tuple(call.values))
    return replace(call, blocks=blocks).inside(order, enters=True)


def _blame(block: nn.Module, call: Call, output: Any, n: int) -> str:
    """A declaration that would make the block agree, "" where none is found."""
    for name, value in call.values.items():
        if name in call.stream_names or not isinstance(value, Tensor):
            continue
        for how in _guesses(value, n, call.streams()[0].shape[0]):
            row = replace(call.blocks, per_token={**call.blocks.per_token, name: how})
            tried, shared = replace(call, blocks=row), _shared(row)
            if _difference(block, tried, output, n, shared)[0] <= _tolerance(value):
                first = ", image='first'" if how.image else ""
                return f"per_token={{{name!r}: PerToken({how.dims!r}{first})}}"
    return ""


def _guesses(value: Tensor, n: int, batch: int) -> Iterator[PerToken]:
    """Forms that a tensor with n entries in some dimensions, or more, may have."""
    equal = [d for d, size in enumerate(value.shape) if size == n]
    longer = [d for d, size in enumerate(value.shape) if size > n]
    yield from (PerToken(dims) for dims in _namings(value, equal, batch))
    yield from (PerToken(dims, image="first") for dims in _namings(value, longer, batch))


def _namings(value: Tensor, axes: Sequence[int], batch: int) -> Iterator[str]:
    """Patterns in which one of the axes, or two, are the tokens."""
    letters = [f"d{d}" for d in range(value.dim())]
    options = [(a,) for a in axes] + [(a, b) for a in axes for b in axes if a < b]
    for option in options:
        left = ["n" if d in option else letters[d] for d in range(value.dim())]
        batched = ["b" if d == 0 and name != "n" else name for d, name in enumerate(left)]
        if value.shape[0] in (1, batch) and batched != left:
            yield " ".join(batched)
        if len(option) == 1:
            yield f"{' '.join(left)} -> b {' '.join(left)}"
            yield f"{' '.join(left)} -> b 1 {' '.join(left)}"
        yield " ".join(left)


def _record(
    blocks: Sequence[nn.Module],
    rows: Sequence[Blocks],
    names: Sequence[tuple[str, ...]],
    call: Callable[[], Any],
) -> dict[int, Recorded]:
    recorded: dict[int, Recorded] = {}

    def note(i: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            made = Call(i, type(block).__name__, names[i], args, kwargs, rows[i])
            recorded.setdefault(i, (made, out))

        return hook

    handles = [b.register_forward_hook(note(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return recorded


@contextmanager
def _ready(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """No dropout, no gradients, and nothing that starts at zero (gates) hides what a block does."""
    training = [(module, module.training) for block in blocks for module in block.modules()]
    zeros = [
        p
        for block in blocks
        for p in block.parameters()
        if type(p.data) is Tensor and p.numel() and not bool(p.detach().any())
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in blocks:
            block.eval()
        for p in zeros:
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        try:
            yield
        finally:
            for p in zeros:
                p.zero_()
            for module, was in training:
                module.training = was


def _streams(call: Call, output: Any) -> list[Tensor]:
    places = stream_places(call, output)
    found = [output if p is None else output[p] for p in places]
    return [x.transpose(0, 1) if call.blocks.sequence_first else x for x in found]


def _tolerance(x: Tensor) -> float:
    return 2000 * torch.finfo(x.dtype if x.is_floating_point() else torch.float32).eps


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _names(per_token: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in per_token) or "no arguments"
