"""Forward passes through attached blocks, and their repetition by activation checkpoints.

A checkpoint runs a block, or a stretch of blocks, once more in the backward pass. What it must
then find is kept here, under the block's first stream, for as long as that tensor lives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.weak import WeakTensorKeyDictionary

from tread_ssm.routing.attach.arguments import Call, Streams
from tread_ssm.routing.plan import Draw
from tread_ssm.routing.rejoin import OpenRoute


@dataclass
class Pass:
    """A forward pass, and where it is.

    Attributes:
        draw: Which tokens each route keeps.
        offsets: (B,) where the image of each sample begins in the stream; None: as declared.
        inside: The route that the pass is in, over the image tokens alone.
        input: What block 0 got, where a route needs it.
        call: The block's call that is under way, None between blocks.
        ran: Whether any block was called.
        repeated: Whether the backward pass has been here.
        ambiguous: Whether the same tensor went through with another draw.
    """

    draw: Draw
    offsets: Tensor | None = None
    inside: OpenRoute | None = None
    input: Streams | None = None
    call: Call | None = None
    ran: bool = False
    repeated: bool = False
    ambiguous: bool = False

    @property
    def needs_input(self) -> bool:
        """Whether a route rejoins with what block 0 got."""
        return any(route.rejoin != "start" for route, _ in self.draw)


class Recomputations:
    """What `n_blocks` blocks need to know to repeat a forward pass in the backward pass."""

    def __init__(self, n_blocks: int) -> None:
        self._passes = [WeakTensorKeyDictionary() for _ in range(n_blocks)]
        self._now: Pass | None = None
        self._next: tuple[int, ReferenceType[Tensor]] | None = None

    def remember(self, call: Call, now: Pass) -> None:
        """Keep where a forward pass is in front of a block."""
        block, stream = call.number, call.first_stream()
        if not isinstance(stream, Tensor):
            return
        old: Pass | None = self._passes[block].get(stream)
        if old is not None and not torch.is_grad_enabled():
            return  # never repeated
        other = old is not None and old.draw is not now.draw and not old.repeated
        # A stream must not be kept alive by the entry under itself.
        own = now.input is not None and now.input[0] is stream
        self._passes[block][stream] = replace(
            now,
            call=None,
            inside=None if block == 0 else now.inside,
            input=None if block == 0 or own else now.input,
            ambiguous=other or (old is not None and old.ambiguous),
        )

    def enter(self, call: Call, known: bool) -> Pass | None:
        """The forward pass that a block's call in the backward pass repeats, None if dense.

        known: Whether every pass with gradients was remembered, so that another one had none.
        """
        stream = call.first_stream()
        if not isinstance(stream, Tensor):
            return None
        then: Pass | None = self._passes[call.number].get(stream)
        if then is not None:
            if then.ambiguous:
                raise ValueError(
                    f"attach: {call.name} got one tensor {tuple(stream.shape)} under two draws "
                    f"before the backward pass, so its checkpoint cannot tell which one to "
                    f"repeat; give the second pass a copy (x.clone())."
                )
            then.repeated = True
            own = then.needs_input and then.input is None
            self._now = replace(then, input=call.streams() if own else then.input)
            Variable._execution_engine.queue_callback(self._forget)
        elif not self._follows(call.number, stream):
            self._refuse_reentrant(call, stream, known)
            self._now = None
        self._next = None
        return self._now

    def leave(self, block: int, output: Any, place: int | None) -> None:
        """A block has been repeated; the same checkpoint may go on with the next one."""
        stream = output if place is None else output[place]
        if isinstance(stream, Tensor):
            self._next = block + 1, ref(stream)

    @property
    def now(self) -> Pass | None:
        """The forward pass that is being repeated."""
        return self._now

    def _follows(self, block: int, stream: Tensor) -> bool:
        return self._next is not None and self._next[0] == block and self._next[1]() is stream

    def _refuse_reentrant(self, call: Call, stream: Tensor, known: bool) -> None:
        # A reentrant checkpoint hands on a detached copy, and would lose the gradient of the
        # dropped tokens, which pass it by.
        kept = list(self._passes[call.number].items())
        if known or any(k.data_ptr() == stream.data_ptr() and p.draw for k, p in kept):
            raise ValueError(
                f"attach: {call.name} is recomputed by a reentrant checkpoint, which loses "
                f"the gradient of dropped tokens; use "
                f"torch.utils.checkpoint with use_reentrant=False."
            )

    def _forget(self) -> None:
        self._now = self._next = None
