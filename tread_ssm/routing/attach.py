"""Routes on a model whose blocks are not called by `run_blocks`: hooks on the blocks.

    routing = attach(model.blocks, per_token=("rope",))
    with routing.using(plan.draw(batch, grid)):
        loss = criterion(model(x))
    routing.detach()

Nothing of the model changes: neither its modules, nor its state dict, nor what it does outside
`using`. Shape legend: B batch, N image tokens, K kept ones, P prefix tokens (class token ...),
S = P + N tokens of the stream, D channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tread_ssm.routing.arguments import (
    Call,
    PerToken,
    Signature,
    Streams,
    of_stream,
)
from tread_ssm.routing.plan import Draw, Route
from tread_ssm.tokens import TokenSubset

_attached: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class _Inside:
    """A block's place in a route. start: the streams at its beginning, where they are needed."""

    route: Route
    subset: TokenSubset  # of the image tokens
    start: Streams | None
    rejoin: Streams | None  # what dropped tokens become, None where that is `start` itself


class Attached:
    """Hooks on a stack of blocks; made by `attach`."""

    def __init__(self, blocks: Sequence[nn.Module], signature: Signature) -> None:
        self._blocks, self._signature = tuple(blocks), signature
        self._names = [tuple(inspect.signature(b.forward).parameters) for b in self._blocks]
        self._draw: Draw | None = None
        self._inside: _Inside | None = None
        self._input: Streams | None = None
        # Per block, by its first stream: what a recomputation in the backward pass needs to know
        # of the forward pass that it repeats. Entries go when the stream does.
        self._forwards = [WeakTensorKeyDictionary() for _ in self._blocks]
        self._repeated: dict[int, _Inside] = {}
        self._handles = []
        for i, block in enumerate(self._blocks):
            self._handles += [
                block.register_forward_pre_hook(self._before(i), with_kwargs=True),
                block.register_forward_hook(self._behind(i), with_kwargs=True),
            ]
            _attached.add(block)

    @contextmanager
    def using(self, draw: Draw) -> Iterator[None]:
        """Route the forward passes inside with `draw`; () runs the dense model.

        draw: of `RoutePlan.draw(batch, grid, device=...)` with this stack's depth. A draw for one
              sample serves all the samples of a batch.

        Raises ValueError inside another `using`, or for routes that do not fit the stack.
        """
        if self._draw is not None:
            raise ValueError(
                "attach: `using` stands inside another `using` of the same blocks; leave the "
                "outer one first, or put all routes into one draw."
            )
        self._check_routes(draw)
        self._draw = draw
        try:
            yield
        finally:
            self._draw = self._inside = self._input = None

    def detach(self) -> None:
        """Take the hooks away; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for block in self._blocks:
            _attached.discard(block)

    # --- the hooks

    def _before(self, i: int) -> Callable[..., Any]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            recomputes = not torch.compiler.is_compiling() and _in_backward()
            # A deep copy of the model (an average of weights) has the hooks, but no routes.
            if block is not self._blocks[i] or (self._draw is None and not recomputes):
                return None
            call = Call(i, type(block).__name__, self._names[i], args, kwargs, self._signature)
            inside = self._repeat(call) if recomputes else self._enter(i, block, call)
            if inside is None:
                return None
            return call.inside(inside.subset, enters=i == inside.route.start)

        return hook

    def _behind(self, i: int) -> Callable[..., Any]:
        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            if block is not self._blocks[i]:
                return None
            recomputes = not torch.compiler.is_compiling() and _in_backward()
            inside = self._repeated.pop(i, None) if recomputes else self._inside
            if inside is None or i + 1 != inside.route.stop:
                return None
            if not recomputes:
                self._inside = None
            return self._rejoin(i, block, inside, output)

        return hook

    def _repeat(self, call: Call) -> _Inside | None:
        """The place in the forward pass that a call in the backward pass recomputes."""
        stream, forwards = call.first_stream(), self._forwards[call.number]
        if not isinstance(stream, Tensor):
            return None
        inside: _Inside | None = forwards.get(stream)
        if inside is None:
            # A reentrant checkpoint hands on a detached copy, and would lose the gradient of
            # the dropped tokens, which pass it by.
            if any(k.data_ptr() == stream.data_ptr() for k in list(forwards.keys())):
                raise ValueError(
                    f"attach: {call.name} is recomputed by a reentrant checkpoint, which loses "
                    f"the gradient of dropped tokens; use "
                    f"torch.utils.checkpoint with use_reentrant=False."
                )
            return None
        if call.number + 1 == inside.route.stop:
            # Only where something rejoins: a recomputation may end before the hook behind others.
            if call.number == inside.route.start:
                inside = replace(inside, start=call.streams())
            self._repeated[call.number] = inside
        return inside

    def _enter(self, i: int, block: nn.Module, call: Call) -> _Inside | None:
        """The route that block i is in, opened where it begins; remembered for a recomputation."""
        assert self._draw is not None
        if i == 0:
            self._input, self._inside = call.streams(), None
        for route, subset in self._draw:
            if route.start == i:
                self._inside = self._open(block, call, route, subset)
        inside = self._inside
        if inside is not None and not torch.compiler.is_compiling():
            # A stream must not be kept alive by the entry under itself: block `start` finds the
            # route's start in its arguments, and only the last block rejoins.
            last = i + 1 == inside.route.stop
            self._forwards[i][call.streams()[0]] = replace(
                inside,
                start=inside.start if last and i != inside.route.start else None,
                rejoin=inside.rejoin if last and i != 0 else None,
            )
        return inside

    def _open(self, block: nn.Module, call: Call, route: Route, subset: TokenSubset) -> _Inside:
        streams = call.streams()
        batch, length = streams[0].shape[:2]
        place = f"attach: Route(start={route.start}, stop={route.stop}), {call.name}"
        n = length - self._signature.n_prefix
        if subset.index.shape[0] not in (1, batch) or subset.length != n:
            raise ValueError(
                f"{place}: the draw is for {subset.index.shape[0]} samples of {subset.length} "
                f"tokens, the stream has {batch} of {n} behind {self._signature.n_prefix} prefix "
                f"tokens; draw with plan.draw({batch}, grid), and name the prefix as n_prefix."
            )
        if subset.index.device != streams[0].device:
            raise ValueError(
                f"{place}: the draw is on {subset.index.device}, the stream on "
                f"{streams[0].device}; draw with plan.draw(batch, grid, device=x.device)."
            )
        self._check_grid(route, subset)
        if route.rejoin == "start":
            rejoin = None
        else:
            assert self._input is not None
            if self._input[0].shape != streams[0].shape:
                raise ValueError(f"{place}: rejoin={route.rejoin!r} needs streams of one shape.")
            rejoin = self._input
            if route.rejoin == "sum":
                rejoin = tuple(a + b for a, b in zip(streams, self._input, strict=True))
        return _Inside(route, subset, streams, rejoin)

    def _rejoin(self, i: int, block: nn.Module, inside: _Inside, output: Any) -> Any:
        into = inside.start if inside.rejoin is None else inside.rejoin
        assert into is not None
        subset = of_stream(inside.subset, into[0].shape[0], self._signature.n_prefix)
        if isinstance(output, Tensor):
            return subset.put(output, into[0])
        if not isinstance(output, (tuple, list)):
            raise ValueError(
                f"attach: block {i} ({type(block).__name__}) returned "
                f"{type(output).__name__}; expected a tensor, or a tuple that holds the streams."
            )
        results = list(output)
        for place, whole in zip(self._signature.returns, into, strict=True):
            results[place] = subset.put(results[place], whole)
        return type(output)(results)

    # --- checks

    def _check_routes(self, draw: Draw) -> None:
        free_from, depth = 0, len(self._blocks)
        for route, _ in draw:
            if not free_from <= route.start < route.stop <= depth:
                raise ValueError(
                    f"attach: Route(start={route.start}, stop={route.stop}) does not fit: routes "
                    f"must follow one another inside {depth} blocks; draw from a "
                    f"RoutePlan(routes, depth={depth})."
                )
            free_from = route.stop

    def _check_grid(self, route: Route, subset: TokenSubset) -> None:
        if subset.grid is not None and self._signature.grid_arguments is not None:
            return
        for j in range(route.start, route.stop):
            block, names = self._blocks[j], self._signature.grid_arguments
            if not _needs_grid(block):
                continue
            remedy = (
                "choose a selection whose kept tokens form a rectangle (Rows)"
                if subset.grid is None
                else "name the arguments that hold it, as grid_arguments=('height', 'width')"
            )
            raise ValueError(
                f"attach: block {j} ({type(block).__name__}) holds a 2-D convolution and needs "
                f"the grid of its tokens, grid_arguments={names}, kept grid {subset.grid} of "
                f"{subset.n_kept} tokens; {remedy}, or end the route before block {j}."
            )


def attach(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    *,
    per_token: Sequence[str] | Mapping[str, PerToken] = (),
    n_prefix: int = 0,
    streams: Sequence[str] | None = None,
    returns: Sequence[int] = (0,),
    whole: Sequence[str] = (),
    grid_arguments: tuple[str, str] | None = None,
) -> Attached:
    """Routes for a model that you may not edit: hooks on its blocks, used by `Attached.using`.

    blocks:         in the order in which the model calls them; Flux: [*model.transformer_blocks,
                    *model.single_transformer_blocks].
    per_token:      arguments besides the stream that have an entry for each token (rotary tables,
                    masks, positions); a name alone is PerToken(): tokens in the dimension before
                    the last. They are declared, never guessed.
    n_prefix:       tokens in front of the image tokens, such as a class token; never dropped.
    streams:        arguments that hold the image tokens (B, S, D); None: the first one. Two where
                    blocks take (hidden, residual). Joint blocks: the image's, so that text stays.
    returns:        where the streams stand in a returned tuple; SD3 and Flux: (1,).
    whole:          arguments that do not go by tokens although a size equals their number.
    grid_arguments: names of the arguments that tell a block the rows and columns of its tokens;
                    inside a route they become those of the kept rectangle.

    Gradients with activation checkpointing (use_reentrant=False) are those without: a recomputed
    block takes the draw of the forward pass that it repeats, whatever is drawn meanwhile.

    Raises ValueError for blocks that have routes already, or names that no block knows.
    """
    names = {n: PerToken() for n in per_token} if not isinstance(per_token, Mapping) else per_token
    signature = Signature(
        streams=None if streams is None else tuple(streams),
        returns=tuple(returns),
        per_token=dict(names),
        whole=tuple(whole),
        grid_arguments=grid_arguments,
        n_prefix=n_prefix,
    )
    n_streams = 1 if signature.streams is None else len(signature.streams)
    if len(signature.returns) != n_streams:
        raise ValueError(
            f"attach: {n_streams} streams, but returns={signature.returns}; name one place of the "
            f"returned tuple for each stream."
        )
    known: set[str] = set()
    for i, block in enumerate(blocks):
        if block in _attached:
            raise ValueError(
                f"attach: block {i} ({type(block).__name__}) has routes already; detach() first."
            )
        known.update(inspect.signature(block.forward).parameters)
    for name in (*(signature.streams or ()), *names, *signature.whole, *(grid_arguments or ())):
        if name not in known:
            raise ValueError(
                f"attach: no block has an argument `{name}`; they have {', '.join(sorted(known))}."
            )
    return Attached(list(blocks), signature)


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _needs_grid(block: nn.Module) -> bool:
    return any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in block.modules())
