"""The end of a route in a foreign block: where its streams stand in what it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tread_ssm.routing.attach.arguments import Call, for_batch
from tread_ssm.routing.attach.per_token import like, offset_of
from tread_ssm.routing.rejoin import OpenRoute
from tread_ssm.tokens import TokenSubset


def stream_places(
    call: Call, output: Any, inside: OpenRoute | None = None
) -> tuple[int | None, ...]:
    """Where the streams stand in what a block returned; (None,) where it is the stream itself.

    Raises:
        ValueError: The block returned something else, or, inside a route, several tensors of which
            none is declared.
    """
    if isinstance(output, Tensor):
        return (None,)
    if not isinstance(output, (tuple, list)):
        raise ValueError(
            f"attach: {call.name} returned {type(output).__name__}; expected a tensor, or a tuple "
            f"that holds the streams."
        )
    if call.blocks.returns is not None:
        return call.blocks.returns
    streams = [p for p, v in enumerate(output) if isinstance(v, Tensor) and v.dim() == 3]
    if len(streams) > 1 and inside is not None:
        shape = tuple(output[streams[0]].shape)
        raise ValueError(
            f"attach: {call.name} returned {shape} at place {streams[0]}; expected one stream, "
            f"({shape[0]}, {inside.subset.n_kept}, ...), but {len(streams)} tensors "
            f"could be it; say which with returns=(...), e.g. returns=({streams[-1]},)."
        )
    return (streams[0] if streams else 0,)


def rejoined(call: Call, inside: OpenRoute, output: Any) -> Any:
    """What a route's last block returned, with every token at its place again.

    Raises:
        ValueError: The stream is not where it was declared, or not as long as it must be.
    """
    places = stream_places(call, output, inside)
    if places == (None,):
        return _whole(call, inside, 0, output, "")
    results = list(output)
    for k, place in enumerate(places):
        assert place is not None
        found = results[place] if place < len(results) else None
        results[place] = _whole(call, inside, k, found, f" at place {place}")
    return like(output, results)


def put_back(call: Call, inside: OpenRoute, output: Any) -> Any:
    """What a block inside a route returned, among the tokens that it was not shown."""
    route = replace(inside.route, rejoin="start")
    return rejoined(call, replace(inside, route=route, start=call.streams()), output)


def _whole(call: Call, inside: OpenRoute, k: int, found: Any, place: str) -> Tensor:
    """Stream number k behind the route, from what the block returned."""
    first = call.blocks.sequence_first
    start = inside.start[k]
    subset = for_batch(inside.subset, start.shape[0])
    prefix = call.blocks.n_prefix
    part = found.transpose(0, 1) if first and isinstance(found, Tensor) else found
    others = part.shape[1] - subset.n_kept if isinstance(part, Tensor) and part.dim() > 1 else -1
    fits = others >= 0 and prefix in (None, others) and part.shape[0] == start.shape[0]
    if not fits:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = subset.n_kept + (prefix if isinstance(prefix, int) else 0)
        raise ValueError(
            f"attach: {call.name} returned {what}{place}; expected the stream, "
            f"({start.shape[0]}, {expected}, ...) inside this route; say where it stands with "
            f"attach(..., returns=(...))."
        )
    bases = [start]
    if inside.route.rejoin != "start":
        assert inside.input is not None
        bases.append(inside.input[k])
        if bases[1].shape[::2] != start.shape[::2]:
            raise ValueError(
                f"attach: {call.name}: rejoin={inside.route.rejoin!r} needs streams of one shape, "
                f"but block 0 got {tuple(bases[1].shape)} and the route's first block "
                f"{tuple(start.shape)}; use rejoin='start'."
            )
    if all(base.shape[1] == subset.length + others for base in bases):
        kept = call.around(subset, others)
        whole = replace(inside, subset=kept, start=start, input=bases[-1]).rejoin(part)
    else:
        whole = _beside_others(call, replace(inside, subset=subset), bases, part, others)
    return whole.transpose(0, 1) if first else whole


def _beside_others(
    call: Call, inside: OpenRoute, bases: list[Tensor], part: Tensor, others: int
) -> Tensor:
    """The stream behind a route that began in blocks with other tokens beside the image's."""
    if call.offsets is not None:
        raise ValueError(
            f"attach: {call.name} ends a route whose stream had other tokens beside the image's "
            f"where it began, which cannot be told apart with `offsets`; end it among alike blocks."
        )
    images = [image_of(call, base, inside.subset.length) for base in bases]
    kept = image_of(call, part, inside.subset.n_kept)
    whole = replace(inside, start=images[0], input=images[-1]).rejoin(kept)
    front = offset_of(call.blocks.image, others)
    behind = part[:, front + inside.subset.n_kept :]
    return torch.cat([part[:, :front], whole, behind], dim=1)


def image_of(call: Call, stream: Tensor, n: int) -> Tensor:
    """The n image tokens x_BnD of a stream x_BSD."""
    if call.offsets is not None:
        index = call.offsets[:, None] + torch.arange(n, device=stream.device)
        return TokenSubset(index, stream.shape[1]).take(stream)
    return stream.narrow(1, offset_of(call.blocks.image, stream.shape[1] - n), n)
