"""The oracle of the presets: a dense pass in which the dropped tokens' keys are hidden.

No token leaves a stream, and nothing of `attach` is used: attention is intercepted, and behind a
route's last block the dropped tokens are put back as they were in front of its first one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tread_ssm.routing import Draw


class Hidden(TorchFunctionMode):
    """Hides the keys of the image tokens outside kept_BN in each attention over the image."""

    def __init__(self, kept: Tensor, image: str | tuple[int, ...]) -> None:
        super().__init__()
        self.kept, self.image, self.on, self.calls = kept, image, False, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and self.on:
            names = ("query", "key", "value", "attn_mask")
            call = dict(zip(names, args, strict=False)) | kwargs
            n, length = self.kept.shape[1], call["key"].shape[-2]
            if length >= n:  # text is shorter
                kept = self.kept
                if len(call["query"]) == 1:  # sample by sample
                    kept = kept[self.calls % len(kept)][None]
                self.calls += 1
                mask = call.get("attn_mask")
                if call.pop("is_causal", False):
                    mask = torch.ones(length, length, dtype=torch.bool).tril()
                call["attn_mask"] = self._mask(kept, mask, length)
                return func(**call)
        return func(*args, **kwargs)

    def _mask(self, kept: Tensor, mask: Tensor | None, length: int) -> Tensor:
        n = kept.shape[1]
        seen = torch.ones(len(kept), length, dtype=torch.bool)
        parts = image_parts(self.image, length, n, len(kept))
        for row, part, tokens in zip(seen, parts, kept, strict=True):
            row[part] = tokens
        seen = seen[:, None, None]
        if mask is None:
            return seen
        return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


def image_parts(image: str | tuple[int, ...], length: int, n: int, batch: int) -> list[slice]:
    """Where the n image tokens of each sample stand among `length`."""
    if isinstance(image, tuple) and length > n:
        return [slice(begin, begin + n) for begin in image[:batch]]
    begin = 0 if image == "first" else length - n
    return [slice(begin, begin + n)] * batch


def masked_dense(
    blocks: Sequence[nn.Module],
    run: Callable[[], Any],
    draw: Draw,
    image: str | tuple[int, ...],
    returns: Sequence[int | None],
    batch: int,
) -> Any:
    """What `run` gives where routes hide keys instead of dropping tokens.

    Args:
        blocks: In the order in which the model calls them.
        run: The forward pass.
        draw: One route, rejoin "start".
        image: Whether the image's tokens stand "first" or "last" among others.
        returns: For each block the place of the image's stream in what it returns.
        batch: Samples.
    """
    ((route, subset),) = draw
    kept = subset.mask().expand(batch, -1)
    mode, start = Hidden(kept, image), []

    def before(block: nn.Module, args: Any, kwargs: Any) -> None:
        name = next(iter(inspect.signature(block.forward).parameters))
        x = args[0] if args else kwargs[name]
        parts = image_parts(image, x.shape[1], kept.shape[1], len(x))
        start.append([row[part] for row, part in zip(x, parts, strict=True)])
        mode.on = True

    def behind(block: nn.Module, args: Any, output: Any) -> Any:
        mode.on = False
        place = returns[route.stop - 1]
        x = output if place is None else output[place]
        joined = x.clone()
        for b, part in enumerate(image_parts(image, x.shape[1], kept.shape[1], len(x))):
            joined[b, part] = torch.where(kept[b][:, None], x[b, part], start[0][b])
        if place is None:
            return joined
        return type(output)(joined if i == place else v for i, v in enumerate(output))

    handles = [
        blocks[route.start].register_forward_pre_hook(before, with_kwargs=True),
        blocks[route.stop - 1].register_forward_hook(behind),
    ]
    try:
        with mode:
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    assert mode.calls >= route.stop - route.start, "attention was not intercepted"
    return result
