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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tread_ssm.routing.attach.arguments import (
    Call,
    PerToken,
    Signature,
    argument_names,
    like,
    of_stream,
)
from tread_ssm.routing.attach.recompute import Pass, Recomputations
from tread_ssm.routing.plan import Draw, Route
from tread_ssm.routing.rejoin import OpenRoute
from tread_ssm.tokens import TokenSubset

_attached: WeakSet[nn.Module] = WeakSet()


class Attached:
    """Hooks on a stack of blocks; made by `attach`."""

    def __init__(self, blocks: Sequence[nn.Module], signature: Signature) -> None:
        self._blocks, self._signature = tuple(blocks), signature
        self._names = [argument_names(b)[0] for b in self._blocks]
        self._pass: Pass | None = None
        self._repeats = Recomputations(len(self._blocks))
        self._handles = []
        for i, block in enumerate(self._blocks):
            before, behind = partial(self._before, i), partial(self._behind, i)
            if block._compiled_call_impl is not None:
                # Hooks of a block that is compiled by itself are not in its graph, and compiled
                # ones could not tell a recomputation.
                before, behind = torch.compiler.disable(before), torch.compiler.disable(behind)
            self._handles += [
                block.register_forward_pre_hook(before, with_kwargs=True),
                block.register_forward_hook(behind, with_kwargs=True),
            ]
            _attached.add(block)

    def __reduce__(self) -> tuple[type[Attached], tuple[tuple[()], Signature]]:
        # Hooks go along when a model is copied or pickled (an average of weights): routes do not.
        return Attached, ((), self._signature)

    @contextmanager
    def using(self, draw: Draw) -> Iterator[None]:
        """Route the forward passes inside with `draw`; () runs the dense model.

        draw: of `RoutePlan.draw(batch, grid, device=...)` with this stack's depth. A draw for one
              sample serves all the samples of a batch.

        Raises ValueError inside another `using`, for routes that do not fit the stack, and where
        no block was called.
        """
        if self._pass is not None:
            raise ValueError(
                "attach: `using` stands inside another `using` of the same blocks; leave the "
                "outer one first, or put all routes into one draw."
            )
        self._check_routes(draw)
        self._pass = now = Pass(draw)
        try:
            yield
        finally:
            self._pass = None
        if draw and not now.ran:
            raise ValueError(
                f"attach: none of the {len(self._blocks)} blocks was called inside `using`, so "
                f"nothing was routed; call the model that holds them, not a copy or replica, and "
                f"attach before a compiled model's first run, or call torch.compiler.reset()."
            )

    def detach(self) -> None:
        """Take the hooks away; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for block in self._blocks:
            _attached.discard(block)

    # --- the hooks

    def _before(
        self, i: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        recomputes = _recomputes()
        if not self._owns(i, block) or (self._pass is None and not recomputes):
            return None
        call = Call(i, type(block).__name__, self._names[i], args, kwargs, self._signature)
        now = self._repeats.enter(call) if recomputes else self._pass
        if now is None or not now.draw:
            return None
        now.ran = True
        if not recomputes and not torch.compiler.is_compiling():
            self._repeats.remember(call, now)
        inside = self._enter(i, call, now)
        if inside is None:
            return None
        drawn = next(subset for route, subset in now.draw if route is inside.route)
        return call.inside(drawn, enters=i == inside.route.start)

    def _behind(
        self,
        i: int,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        if not self._owns(i, block):
            return None
        recomputes = _recomputes()
        now = self._repeats.now if recomputes else self._pass
        if now is None:
            return None
        if now.inside is not None and i + 1 == now.inside.route.stop:
            output = self._rejoin(i, block, now.inside, output)
            now.inside = None
        if recomputes:
            self._repeats.leave(i, output, self._signature.returns[0])
        return output

    def _owns(self, i: int, block: nn.Module) -> bool:
        return i < len(self._blocks) and self._blocks[i] is block

    def _enter(self, i: int, call: Call, now: Pass) -> OpenRoute | None:
        """The route that block i is in, opened where it begins."""
        if i == 0:
            now.inside, now.input = None, call.streams() if now.needs_input else None
        here = [(r, s) for r, s in now.draw if r.start <= i < r.stop]
        if here and here[0][0].start == i:
            now.inside = self._open(call, *here[0], now)
        elif (now.inside is None) != (not here):
            missed = here[0][0].start if here else i - 1
            raise ValueError(
                f"attach: {call.name} was called, but block {missed} before it was not, where a "
                f"route {'starts' if here else 'stops'}; give `attach` the blocks in the order "
                f"in which the model calls them, and call all of them."
            )
        return now.inside

    def _open(self, call: Call, route: Route, subset: TokenSubset, now: Pass) -> OpenRoute:
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
        if route.rejoin != "start":
            assert now.input is not None
            if now.input[0].shape != streams[0].shape:
                raise ValueError(
                    f"{place}: rejoin={route.rejoin!r} needs streams of one shape, but block 0 got "
                    f"{tuple(now.input[0].shape)} and this one {tuple(streams[0].shape)}; use "
                    f"rejoin='start'."
                )
        whole = of_stream(subset, batch, self._signature.n_prefix)
        return OpenRoute(route, whole, streams, now.input)

    def _rejoin(self, i: int, block: nn.Module, inside: OpenRoute, output: Any) -> Any:
        name, subset = f"block {i} ({type(block).__name__})", inside.subset
        single = isinstance(output, Tensor)
        if not isinstance(output, (Tensor, tuple, list)):
            raise ValueError(
                f"attach: {name} returned {type(output).__name__}; expected a tensor, or a tuple "
                f"that holds the streams."
            )
        results = [output] if single else list(output)
        places = (0,) if single else self._signature.returns
        for place in places:
            found = results[place] if place < len(results) else None
            if not isinstance(found, Tensor) or found.shape[:2] != subset.index.shape:
                what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"attach: {name} returned {what} at place {place}; expected the stream, "
                    f"({subset.index.shape[0]}, {subset.n_kept}, ...) inside this route; say where "
                    f"it stands with attach(..., returns=(...))."
                )
        streams = inside.rejoin(tuple(results[place] for place in places))
        for place, stream in zip(places, streams, strict=True):
            results[place] = stream
        return results[0] if single else like(output, results)

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

    Raises ValueError for blocks that have routes already or stand twice, and for names that no
    block knows.
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
    known: set[str] | None = set()
    for i, block in enumerate(blocks):
        if block in _attached or any(block is b for b in blocks[:i]):
            raise ValueError(
                f"attach: block {i} ({type(block).__name__}) has routes already or stands twice "
                f"in the stack; detach() first, and use run_blocks where blocks are shared."
            )
        names_here = argument_names(block)[1]
        known = None if known is None or names_here is None else known | names_here
    for name in (*(signature.streams or ()), *names, *signature.whole, *(grid_arguments or ())):
        if known is not None and name not in known:
            raise ValueError(
                f"attach: no block has an argument `{name}`; they have {', '.join(sorted(known))}."
            )
    return Attached(list(blocks), signature)


def _recomputes() -> bool:
    """Whether a block is called by the backward pass: a checkpoint repeats it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _needs_grid(block: nn.Module) -> bool:
    return any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in block.modules())
