"""Routes on a model whose blocks are not called by `run_blocks`: hooks on the blocks.

Nothing of the model changes: neither its modules, nor its state dict, nor what it does outside a
route. Shape legend: B batch, N image tokens, K kept ones, S tokens of the stream, D channels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tread_ssm.routing.attach.arguments import Blocks, Call, argument_names, for_batch
from tread_ssm.routing.attach.drawing import Drawing
from tread_ssm.routing.attach.explain import TORCH_ERRORS, explain_between, explain_within
from tread_ssm.routing.attach.leave import put_back, rejoined, stream_places
from tread_ssm.routing.attach.recompute import Pass, Recomputations
from tread_ssm.routing.attach.source import by_number
from tread_ssm.routing.attach.unfit import is_sequence_first, refuse_routes, refuse_unfit
from tread_ssm.routing.attach.verify import verify
from tread_ssm.routing.plan import Draw, Route
from tread_ssm.routing.rejoin import OpenRoute
from tread_ssm.tokens import Grid, TokenSubset

attached: WeakSet[nn.Module] = WeakSet()
"""Blocks that have routes."""


class Attached:
    """Hooks on a stack of blocks; made by `attach`.

    Attributes:
        draw: The last draw that was used, () for a dense pass: what losses and logs need to know.
        drawing: What draws by itself in training; None where each draw comes by `using`.
        blocks: The blocks that have the hooks, in the order in which they are called.
        model: The model that holds them; None where the blocks alone were given.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[nn.Module, Blocks]],
        drawing: Drawing | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """Add the hooks; `attach` calls it with what it found out about a model.

        Args:
            blocks: Each block in order, and how it is called.
            drawing: Routes that draw by themselves. None: routes are passed to `using`.
            model: What the blocks belong to. None: not known.
        """
        self.blocks = tuple(block for block, _ in blocks)
        self.model = model
        self._rows = tuple(row for _, row in blocks)
        self._names = [argument_names(b)[0] for b in self.blocks]
        self._made = [by_number(block) for block in self.blocks]
        self.draw: Draw = ()
        self.drawing = drawing
        self._pass: Pass | None = None
        self._explicit = False
        self._repeats = Recomputations(len(self.blocks))
        self._partial = WeakTensorKeyDictionary()  # outputs inside a route: that route
        self._fit: set[tuple[int, bool]] = set()  # blocks that were looked through
        self._handles = []
        for i, block in enumerate(self.blocks):
            before, behind = partial(self._before, i), partial(self._behind, i)
            explain = partial(self._explain, i)
            if block._compiled_call_impl is not None:
                # Hooks of a block that is compiled by itself are not in its graph, and compiled
                # ones could not tell a recomputation.
                before, behind = torch.compiler.disable(before), torch.compiler.disable(behind)
                explain = torch.compiler.disable(explain)
            self._handles += [
                block.register_forward_pre_hook(before, with_kwargs=True),
                block.register_forward_hook(behind, with_kwargs=True),
                block.register_forward_hook(explain, always_call=True),
            ]
            attached.add(block)
        if model is not None:
            end = model.register_forward_hook(self._end, always_call=True)
            self._handles.append(end)

    def __reduce__(self) -> tuple[type[Attached], tuple[tuple[()]]]:
        # Hooks go along when a model is copied or pickled (an average of weights): routes do not.
        return Attached, ((),)

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @contextmanager
    def using(self, draw: Draw, *, offsets: Tensor | None = None) -> Iterator[None]:
        """Route the forward passes inside with `draw`; () runs the dense model.

        Args:
            draw: Of `RoutePlan.draw(batch, grid, device=...)` with this stack's depth. A draw for
                one sample serves all the samples of a batch.
            offsets: (B,) int64, where the image of each sample begins in streams and joint tables,
                for models that pack texts of different length in front of it.

        Raises:
            ValueError: Inside another `using`, for routes that do not fit the stack, and where no
                block was called.
        """
        if self._explicit:
            raise ValueError(
                "attach: `using` stands inside another `using` of the same blocks; leave the "
                "outer one first, or put all routes into one draw."
            )
        self._check_routes(draw)
        self._pass = now = Pass(draw, offsets)
        self.draw, self._explicit = draw, True
        try:
            yield
        except TORCH_ERRORS as error:
            explain_between(error, now)
            raise
        finally:
            self._pass, self._explicit = None, False
        if draw and not now.ran:
            raise ValueError(
                f"attach: none of the {len(self.blocks)} blocks was called inside `using`, so "
                f"nothing was routed; call the model that holds them, not a copy or replica, and "
                f"attach before a compiled model's first run, or call torch.compiler.reset()."
            )

    def step(self, step: int | None = None) -> None:
        """Tell the routes that draw by themselves that a training step is over.

        Args:
            step: The number of the step that comes next, after a run was resumed; None: one more.

        Raises:
            ValueError: These routes do not draw by themselves.
        """
        if self.drawing is None:
            raise ValueError(
                "attach: these routes do not draw by themselves; write attach(model, drop=0.5), or "
                "give each draw by `using`."
            )
        self.drawing.step(step)

    def verify(self, call: Callable[[], Any], grid: Grid | None = None) -> str:
        """Check once, before training, that what is declared of the blocks is true.

        Each block is compared with a call of itself on permuted tokens (`attach.verify`).

        Args:
            call: Runs the model once on real inputs, such as lambda: model(x, t).
            grid: Token grid; needed only where the stream holds an unknown number of others.

        Returns:
            A sentence that says what was compared.

        Raises:
            ValueError: A block gives something else, with the argument to blame where one is found.
        """
        n = None if grid is None else math.prod(grid)
        with self.using(()):
            return verify(self.blocks, self._rows, self._names, call, n)

    def stream_length(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Tokens of the stream, prefix included, that a call of a block gets.

        Args:
            i: The block's number.
            args: What it is called with, by place.
            kwargs: What it is called with, by name.

        Raises:
            ValueError: There is no stream (B, S, D) where it is declared.
        """
        kind = type(self.blocks[i]).__name__
        call = Call(i, kind, self._names[i], args, kwargs, self._rows[i])
        return call.streams()[0].shape[1]

    def detach(self) -> None:
        """Take the hooks away; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for block in self.blocks:
            attached.discard(block)

    # --- the hooks

    def _before(
        self, i: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._owns(i, block):
            return None
        recomputes = _recomputes()
        if i == 0 and not recomputes and self.drawing is not None and not self._explicit:
            self._pass = self._drawn(block, args, kwargs)
        if self._pass is None and not recomputes:
            return None
        row = self._rows[i]
        call = Call(i, type(block).__name__, self._names[i], args, kwargs, row)
        must = self.drawing is not None and block.training
        now = self._repeats.enter(call, must) if recomputes else self._pass
        if now is None or not (now.draw or must):
            return None
        offsets = now.offsets
        if offsets is None and row.present and now.draw:
            offsets = call.begins(now.draw[0][1].length)
        call = call if offsets is None else replace(call, offsets=offsets)
        now.ran, now.call = True, call
        if not recomputes and not torch.compiler.is_compiling():
            self._repeats.remember(call, now)
        if not now.draw:
            return None
        inside = self._enter(i, call, now)
        call = self._with_skips(call, inside)
        if inside is None:
            return call.args, call.kwargs
        whole = i == inside.route.start or row.whole_between
        return call.inside(inside.subset, enters=whole)

    def _behind(
        self, i: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self._owns(i, block):
            return None
        recomputes = _recomputes()
        now = self._repeats.now if recomputes else self._pass
        if now is None:
            return None
        call, now.call = now.call, None
        if now.inside is not None and call is not None:
            if i + 1 == now.inside.route.stop:
                output = rejoined(call, now.inside, output)
                now.inside = None
            elif call.blocks.whole_between:
                output = put_back(call, now.inside, output)
            elif any(row.skips for row in self._rows):
                for place in stream_places(call, output):
                    self._partial[output if place is None else output[place]] = now.inside
        if recomputes and call is not None:
            self._repeats.leave(i, output, stream_places(call, output)[0])
        if not recomputes and i + 1 == len(self.blocks) and not self._explicit:
            self._pass = None
        return output

    def _explain(self, i: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Called behind each block, also where it failed: says what a bare error does not."""
        if torch.compiler.is_compiling():
            return
        now = self._repeats.now if _recomputes() else self._pass
        error = sys.exc_info()[1]
        if now is None or now.call is None or not isinstance(error, TORCH_ERRORS):
            return
        call, now.call = now.call, None
        if call.number == i and self._owns(i, block):
            explain_within(error, call, now)

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Called behind the model, also where it failed between blocks."""
        if self._pass is None or self._explicit or torch.compiler.is_compiling():
            return
        error = sys.exc_info()[1]
        if isinstance(error, TORCH_ERRORS):
            explain_between(error, self._pass)
        self._pass = None

    def _owns(self, i: int, block: nn.Module) -> bool:
        return i < len(self.blocks) and self.blocks[i] is block

    def _drawn(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Pass | None:
        """The pass that begins with block 0, where routes draw by themselves."""
        assert self.drawing is not None
        if not (block.training and torch.is_grad_enabled()):
            self.draw = ()
            return None
        call = Call(0, type(block).__name__, self._names[0], args, kwargs, self._rows[0])
        self.draw = self.drawing.next(call, self._rows)
        return Pass(self.draw)

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
        prefix = call.blocks.n_prefix
        others = length - subset.length if prefix is None else prefix
        assert isinstance(others, int)
        n = length - others
        if subset.index.shape[0] not in (1, batch) or subset.length != n or others < 0:
            raise ValueError(
                f"{place}: the draw is for {subset.index.shape[0]} samples of {subset.length} "
                f"tokens, the stream has {batch} of {n} beside {others} others; draw with "
                f"plan.draw({batch}, grid). If the stream holds other tokens, say how many by "
                f"n_prefix (None: any number), and image='first' if the image's stand before them."
            )
        if subset.index.device != streams[0].device:
            raise ValueError(
                f"{place}: the draw is on {subset.index.device}, the stream on "
                f"{streams[0].device}; draw with plan.draw(batch, grid, device=x.device)."
            )
        self._check_fit(route, subset)
        if (
            batch == length
            and not call.blocks.sequence_first
            and is_sequence_first(self.blocks[call.number])
        ):
            raise ValueError(
                f"{place}: batch and tokens are both {batch}, and a part of the block takes tokens "
                f"before the batch (batch_first=False), so it is unknown which is which; declare "
                f"sequence_first=True, or use another batch size."
            )
        return OpenRoute(route, subset, streams, now.input)

    def _with_skips(self, call: Call, inside: OpenRoute | None) -> Call:
        """The call with long skips taken or put where they cross a route's end."""
        values = call.values
        found = [n for n in call.blocks.skips if isinstance(values.get(n), Tensor)]
        for name in found:
            skip = values[name]
            origin = self._partial.get(skip)
            if origin is not None and origin is not inside:
                subset = for_batch(origin.subset, skip.shape[0])
                others = skip.shape[1] - subset.n_kept
                whole = call.around(subset, others)
                skip = whole.put(skip, origin.start[0])
            if inside is not None and origin is not inside:
                subset = for_batch(inside.subset, skip.shape[0])
                skip = call.around(subset, skip.shape[1] - subset.length).take(skip)
            values[name] = skip
        if not found:
            return call
        args = tuple(values.values())[: len(call.args)]
        return replace(call, args=args, kwargs={name: values[name] for name in call.kwargs})

    def _check_fit(self, route: Route, subset: TokenSubset) -> None:
        for j in range(route.start, route.stop):
            seen = j, subset.grid is None
            if torch.compiler.is_compiling() or seen not in self._fit:
                refuse_unfit(j, self.blocks[j], self._rows[j], subset, self._made[j])
                if not torch.compiler.is_compiling():
                    self._fit.add(seen)

    def _check_routes(self, draw: Draw) -> None:
        refuse_routes(route for route, _ in draw)
        free_from, depth = 0, len(self.blocks)
        for route, subset in draw:
            if subset.is_none:
                raise ValueError(
                    f"attach: the draw keeps no token of Route(start={route.start}, stop="
                    f"{route.stop}), and hooks cannot keep a model from calling blocks; use "
                    f"run_blocks."
                )
            if not free_from <= route.start < route.stop <= depth:
                raise ValueError(
                    f"attach: Route(start={route.start}, stop={route.stop}) does not fit: routes "
                    f"must follow one another inside {depth} blocks; draw from a "
                    f"RoutePlan(routes, depth={depth})."
                )
            free_from = route.stop


def _recomputes() -> bool:
    """Whether a block is called by the backward pass: a checkpoint repeats it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
